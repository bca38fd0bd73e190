"""From a trained network prepared with `integer_only=True` to the integer graph.

The nodes of the traced network are walked in order. A computation (layer, addition, …) waits as a `_Waiting` until the
quantizer behind it says on which grid its result is; only then is an integer node made. What lies between, batch-norm
and clamps, goes into the node; what only moves codes (pooling by maximum, reshaping, …) is done behind it.

Folding batch-norm γ·(a − μ)/σ + β behind a layer with accumulator n, a = n·s_x·s_w + b, σ = sqrt(variance + ε):

    scale of output channel o     s_x·s_w·γ/σ        goes into the weight's scale, negative γ included
    integer bias                  rint((γ·(b − μ)/σ + β) / scale)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lowbit.errors import LowbitError
from lowbit.integer.graph import FloatType, Graph, Node, Pads, TensorType, Weight
from lowbit.integer.ops import (
    Add,
    AveragePool,
    ChannelShuffle,
    Concatenate,
    Convolution,
    GlobalAveragePool,
    Linear,
    Lookup,
    MaxPool,
    Multiply,
    PadChannels,
    Quantize,
    Requantize,
    Reshape,
    Slice,
)
from lowbit.integer.ops.lookup import codes_at, lookup_table
from lowbit.integer.result import Result, Runner
from lowbit.integer.validate import validate
from lowbit.layers.modes import evaluation
from lowbit.layers.quantized import QuantizedLayer
from lowbit.lowering import trace as t
from lowbit.lowering.folding import ALONE_CODE, fold, fold_alone
from lowbit.lowering.placement import folds_into
from lowbit.quantizer.module import Quantizer


@dataclass(frozen=True)
class Codes:
    """A tensor of codes in the integer graph."""

    name: str
    type: TensorType


@dataclass
class _Waiting:
    """A computation whose result has no grid yet; `make(name, type)` gives its integer node."""

    name: str
    make: Callable[[str, Any], Node]
    clamp: tuple[float, float] = (-float("inf"), float("inf"))
    moves: list[_Move] = field(default_factory=list)
    is_layer: bool = False


@dataclass
class _Joined:
    """Tensors without a grid yet, to be concatenated."""

    name: str
    parts: list
    moves: list[_Move] = field(default_factory=list)


@dataclass(frozen=True)
class _Move:
    """`make(name, input)` gives the integer node that moves codes, or None where it would do nothing."""

    name: str
    make: Callable[[str, str], Node]


@dataclass(frozen=True)
class Traced:
    """Where the codes of an integer tensor are found in the trained network: the quantizer of this fx node."""

    node: str
    of_input: bool  # a layer's input quantizer; else the node is an inserted quantizer


def convert(
    model: nn.Module, example_input: Tensor, *, fractional_zero_points: bool = False
) -> tuple[Graph, dict[str, Traced]]:
    """The integer graph of a trained network, validated, and where its tensors stand in the network.

    Args:
        model: from `lowbit.prepare(…, integer_only=True)`, calibrated or trained. It is not changed.
        example_input: an input batch; its shape without the batch becomes the graph's input shape.
        fractional_zero_points: take offsets that are not snapped as they are. No integers compute such a graph.

    Raises:
        LowbitError: a model prepared otherwise, a quantizer without step, a step, offset or parameter that is not finite, a
            fractional offset, an example that the network does not take, or an operation in a form that has no integer
            counterpart; the message names the layer. Also what `check.validate` raises.
    """
    if not isinstance(model, fx.GraphModule) or not hasattr(model, "streams"):
        raise LowbitError(
            "the network was not prepared for integers: use lowbit.prepare(model, integer_only=True, …); on the command line, "
            "lowbit train … --quantization.integer-only"
        )
    _check_quantizers(model, fractional_zero_points)
    _check_parameters(model)
    shapes = _shapes(model, example_input)
    graph, traced = _Converter(model, shapes).run(example_input)
    graph = validate(graph, fractional_zero_points=fractional_zero_points)
    _check_shapes(graph, traced, model, shapes)
    return _simplified(graph, traced)


def _simplified(graph: Graph, traced: Mapping[str, Traced]) -> tuple[Graph, dict[str, Traced]]:
    """Without nodes that do what an earlier one does, and reshapes that another one follows or that change nothing.

    A tensor that is split waits for its grid in each part, and so is made once a part; reshapes stand around a channel shuffle.
    """
    nodes: dict[str, Node] = {}
    seen: dict[tuple, str] = {}
    same: dict[str, str] = {}
    for node in graph.nodes:
        node = replace(node, inputs=tuple(same.get(name, name) for name in node.inputs))
        if isinstance(node, Reshape):
            before = nodes[node.inputs[0]]
            if isinstance(before, Reshape):
                node, before = replace(node, inputs=before.inputs), nodes[before.inputs[0]]
            if before.type.shape == node.type.shape:
                same[node.name] = before.name
                continue
        content = (type(node), *(_value(getattr(node, f.name)) for f in fields(node) if f.name != "name"))
        earlier = seen.setdefault(content, node.name)
        if earlier != node.name:
            same[node.name] = earlier
            continue
        nodes[node.name] = node
    outputs = tuple(same.get(name, name) for name in graph.outputs)
    used = {name for node in nodes.values() for name in node.inputs} | {*outputs}
    kept = tuple(node for node in nodes.values() if node.name in used or not isinstance(node, Reshape))
    names = {node.name for node in kept}
    places = {same.get(name, name): place for name, place in traced.items()}
    return replace(graph, nodes=kept, outputs=outputs), {n: place for n, place in places.items() if n in names}


def _value(field: Any) -> Any:
    """A node's field as something that equals another field of the same content."""
    if isinstance(field, Weight):
        return _value(field.codes), _value(field.scale), field.bits
    return (field.dtype, field.shape, field.numpy().tobytes()) if isinstance(field, Tensor) else field


def _check_quantizers(model: nn.Module, fractional_zero_points: bool) -> None:
    for module in model.modules():
        if not isinstance(module, Quantizer):
            continue
        if not module.started:
            raise LowbitError(f"{module.name} has no step yet: calibrate and train the network before converting it")
        for value, what in ((module.raw_step, "step"), (module.offset, "offset")):
            if value is not None and not bool(torch.isfinite(value).all()):
                raise LowbitError(
                    f"{module.name} has a {what} that is not finite: training has diverged; go back to an earlier "
                    "checkpoint and lower the learning rate"
                )
        if module.has_fraction and not fractional_zero_points:
            raise LowbitError(
                f"{module.name} has a fractional offset, which integers can't express: call lowbit.snap_offsets(model) "
                "first, best before the last epochs of training"
            )
        offset = 1 << (module.bits - 1) if module.grid.signed else 0
        if bool(((module.zero_point + offset < 0) | (module.zero_point + offset > 255)).any()):
            raise LowbitError(
                f"{module.name} has the zero point {float(module.zero_point.flatten()[0]):g}, which the byte of its codes can't hold: "
                "its values lie far to one side of 0, where an offset doesn't pay; prepare it without one (method='lsq' by a rule)"
            )
        if module.grid.binary and not module.name.startswith("the weight"):
            raise LowbitError(f"{module.name} is binary {{-1, 1}}, which has no zero: give activations 2 bits or more")


def _check_parameters(model: nn.Module) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if not value.is_floating_point():
            continue
        holder, _, what = name.rpartition(".")
        if value.dtype != torch.float32:
            raise LowbitError(f"layer {holder!r}: its {what} is {value.dtype}, not float32: call model.float() first")
        if not bool(torch.isfinite(value).all()):
            raise LowbitError(
                f"layer {holder!r}: its {what} holds NaN or infinity: training has diverged; go back to an earlier checkpoint "
                "and lower the learning rate"
            )


def _check_shapes(
    graph: Graph, traced: Mapping[str, Traced], model: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]]
) -> None:
    """Refuse a graph whose tensors have other shapes than the trained network's: an operation was not what it was taken for."""
    nodes = {node.name: node for node in model.graph.nodes}
    for name, place in traced.items():
        tensor = nodes[place.node].args[0]
        if graph.by_name[name].type.shape != shapes[tensor][1:]:
            raise LowbitError(
                f"{t.describe(tensor)} gives shape {shapes[tensor][1:]} in the trained network and {graph.by_name[name].type.shape} "
                f"in integers: it is used in a way that has no integer form; {t.WAY_OUT}"
            )


def _shapes(model: fx.GraphModule, example_input: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """The shape of every node's tensor, with a batch of two, in which no dimension of one is taken for the batch."""
    if not isinstance(example_input, Tensor) or example_input.dtype != torch.float32 or example_input.ndim == 0:
        what = example_input.dtype if isinstance(example_input, Tensor) else type(example_input).__name__
        raise LowbitError(f"the example input must be a batch of float32 inputs in one tensor, not {what}")
    shapes: dict[fx.Node, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            out = super().run_node(node)
            if isinstance(out, Tensor):
                shapes[node] = tuple(out.shape)
            elif isinstance(out, (tuple, list)) and all(isinstance(part, Tensor) for part in out):
                shapes[node] = [tuple(part.shape) for part in out]
            return out

    two = torch.zeros(2, *example_input.shape[1:], device=next(model.parameters()).device)
    try:
        with evaluation(model), torch.no_grad():
            Recorder(model).run(two)
    except LowbitError:
        raise
    except Exception as error:  # whatever the network's own operations raise
        reason = str(error).partition("\n")[0]
        raise LowbitError(
            f"the network does not take a batch of two inputs of shape {tuple(two.shape[1:])}, as the example's are: {reason}"
        ) from error
    return shapes


class _Converter:
    def __init__(self, model: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]]) -> None:
        self.model, self.shapes = model, shapes
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.kinds = {node: t.kind_of(node, self.modules) for node in model.graph.nodes}
        self.values: dict[fx.Node, Any] = {}
        self.nodes: list[Node] = []
        self.names: set[str] = set()
        self.made: dict[tuple[int, int], Codes] = {}  # (waiting value, quantizer) → its codes
        self.traced: dict[str, Traced] = {}
        self.keep: list[Any] = []  # values whose identity is a key of `made` must outlive it

    def run(self, example_input: Tensor) -> tuple[Graph, dict[str, Traced]]:
        name, output = "input", None
        for node in self.model.graph.nodes:
            kind = self.kinds[node]
            if kind == t.INPUT:
                name = node.name
                self.names.add(name)
                self.values[node] = _Waiting(
                    f"{name}_codes", lambda n, y, name=name: Quantize(name=n, inputs=(name,), type=y)
                )
            elif kind == t.OUTPUT:
                output = self._output(node)
            elif kind == t.SHAPE:
                continue
            else:
                try:
                    self.values[node] = getattr(self, f"_{kind}")(node)
                except (AttributeError, IndexError, KeyError, TypeError) as error:  # arguments that were not thought of
                    raise LowbitError(
                        f"{t.describe(node)} is called in a way that has no integer form ({error!r}); {t.WAY_OUT}"
                    ) from error
        graph = Graph({name: tuple(example_input.shape[1:])}, tuple(self.nodes), (output,))
        return graph, self.traced

    # What each kind of node becomes.

    def _quantizer(self, node: fx.Node) -> Codes:
        codes = self._codes(self.values[node.args[0]], self.modules[node.target])
        self.traced.setdefault(codes.name, Traced(node.name, of_input=False))
        return codes

    def _layer(self, node: fx.Node) -> _Waiting:
        layer: QuantizedLayer = self.modules[node.target]
        x = self._codes(self.values[node.args[0]], layer.input_quantizer)
        self.traced.setdefault(x.name, Traced(node.name, of_input=True))
        return self._affine(node, layer, x, None)

    def _norm(self, node: fx.Node) -> _Waiting:
        before = node.args[0]
        norm = self.modules[node.target]
        if folds_into(before, self.kinds) is node:
            layer = self.modules[before.target]
            x = self._codes(self.values[before.args[0]], layer.input_quantizer)
            return self._affine(before, layer, x, norm)
        # Behind anything else: a depthwise 1×1 convolution.
        x = self._known(self.values[before], node)
        gain, scale, bias = (part.cpu() for part in fold_alone(torch.tensor(x.type.scale), norm))
        ones = (1,) * (len(self.shapes[node]) - 2)
        codes = torch.where(gain == 0, 0, ALONE_CODE).to(torch.int8).reshape(-1, 1, *ones)
        weight, bias = Weight(codes, scale, 8), _int32(f"layer {node.target!r}", bias)
        return self._convolution(node.name, x, weight, bias, ones, tuple((0, 0) for _ in ones), ones, len(gain))

    def _clamp(self, node: fx.Node) -> _Waiting:
        value, bounds = self.values[node.args[0]], t.clamp_range(node, self.modules)
        if isinstance(value, Codes):
            return self._lookup_of(node, value, lambda x: x.clamp(*bounds))
        low, high = value.clamp
        return replace(value, clamp=(max(low, bounds[0]), min(high, bounds[1])))

    def _lookup(self, node: fx.Node) -> _Waiting:
        function = t.lookup_function(node, self.modules)
        return self._lookup_of(node, self._known(self.values[node.args[0]], node), function)

    def _add(self, node: fx.Node) -> _Waiting:
        a, b = self._operands(node)
        return _Waiting(node.name, lambda n, y: Add(name=n, inputs=(a.name, b.name), type=y))

    def _multiply(self, node: fx.Node) -> _Waiting:
        a, b = self._operands(node)
        return _Waiting(node.name, lambda n, y: Multiply(name=n, inputs=(a.name, b.name), type=y))

    def _average(self, node: fx.Node) -> _Waiting:
        x, before, after = self._known(self.values[node.args[0]], node), self.shapes[node.args[0]], self.shapes[node]
        if before == after:
            return x
        spatial = len(before) - 2
        is_global = spatial >= 1 and (after == before[:2] or after == (*before[:2], *(1,) * spatial))
        if node.target in (torch.mean, "mean") and not is_global:
            raise LowbitError(
                f"{t.describe(node)} takes the mean over other dimensions than all positions of a channel, which has no "
                "integer form"
            )
        if is_global:
            pooled = _Waiting(node.name, lambda n, y: GlobalAveragePool(name=n, inputs=(x.name,), type=y))
            return pooled if len(after) > 2 else replace(pooled, moves=[_reshape(node.name, (after[1],))])
        options = self._pooling_options(node, "avg_pool")
        if (
            options.get("divisor_override")
            or options["ceil_mode"]
            or not (options["count_include_pad"] or not any(options["padding"]))
        ):
            raise LowbitError(f"{t.describe(node)}: only plain average pooling has an integer form (no ceil_mode, …)")
        return _Waiting(
            node.name,
            lambda n, y: AveragePool(
                name=n, inputs=(x.name,), type=y, kernel=options["kernel_size"], stride=options["stride"],
                padding=tuple((p, p) for p in options["padding"]),
            ),
        )  # fmt: skip

    def _concatenate(self, node: fx.Node) -> Codes | _Joined:
        tensors = node.args[0]
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if axis % len(self.shapes[node]) != 1:
            raise LowbitError(f"{t.describe(node)}: only channels (dimension 1) can be concatenated in integers")
        # One node where the parts that chunk or split gave are passed on as they are.
        parts = self.values[tensors] if isinstance(tensors, fx.Node) else [self.values[tensor] for tensor in tensors]
        if len(parts) == 1:
            return parts[0]
        if all(isinstance(part, Codes) for part in parts) and len({part.type.code_type for part in parts}) == 1:
            return self._emit(node.name, lambda n: Concatenate(name=n, inputs=tuple(p.name for p in parts)), parts[0])
        return _Joined(node.name, parts)

    def _move(self, node: fx.Node) -> Any:
        source = node.args[0]
        value = self.values.get(source)
        if isinstance(value, list):  # one of the parts that chunk or split gave
            return value[node.args[1]]
        moves = self._moves(node)
        if isinstance(self.shapes[node], list):
            return [self._moved(value, [move]) for move in moves]
        return self._moved(value, moves)

    # Helpers.

    def _known(self, value: Any, node: fx.Node) -> Codes:
        if not isinstance(value, Codes):
            raise LowbitError(f"{t.describe(node)} takes a tensor without a quantizer: prepare the network anew")
        return value

    def _operands(self, node: fx.Node) -> tuple[Codes, Codes]:
        a, b = node.args[:2]
        if len(self.shapes[a]) == len(self.shapes[b]) and self.shapes[a][2:] != self.shapes[b][2:]:
            if all(size == 1 for size in self.shapes[a][2:]):
                a, b = b, a  # the integer operations broadcast their second operand
        return self._known(self.values[a], node), self._known(self.values[b], node)

    def _unique(self, name: str) -> str:
        unique, number = name.replace(":", "_"), 1
        while unique in self.names:
            number += 1
            unique = f"{name}_{number}"
        self.names.add(unique)
        return unique

    def _emit(self, name: str, make: Callable[[str], Node], like: Codes | None = None) -> Codes:
        node = make(self._unique(name))
        self.nodes.append(node)
        return Codes(node.name, like.type if like is not None else node.type)

    def _moved(self, value: Any, moves: list[_Move]) -> Any:
        if isinstance(value, Codes):
            for move in moves:
                value = self._emit(move.name, lambda n, m=move, v=value: m.make(n, v.name), value)
            return value
        return replace(value, moves=[*value.moves, *moves])

    def _codes(self, value: Any, quantizer: Quantizer) -> Codes:
        """The value on the quantizer's grid."""
        key = (id(value), id(quantizer))
        if key in self.made:
            return self.made[key]
        self.keep.append(value)
        grid = _type_of(quantizer)
        if isinstance(value, Codes):
            if value.type.code_type == grid.code_type:
                return value
            codes = self._emit(
                f"{value.name}_requantized", lambda n: Requantize(name=n, inputs=(value.name,), type=grid)
            )
        elif isinstance(value, _Joined):
            parts = [self._codes(part, quantizer) for part in value.parts]
            codes = self._emit(value.name, lambda n: Concatenate(name=n, inputs=tuple(p.name for p in parts)), parts[0])
            codes = self._moved(codes, value.moves)
        else:
            codes = self._emit(value.name, lambda n: value.make(n, grid))
            codes = self._moved(self._clamped(codes, value.clamp), value.moves)
        self.made[key] = codes
        return codes

    def _clamped(self, codes: Codes, clamp: tuple[float, float]) -> Codes:
        """A clamp (ReLU, ReLU6) on codes: nothing where the grid's own range does it, else a table.

        Rounding is monotonic, so clamping codes at the codes of the bounds equals quantizing the clamped value.
        """
        y = codes.type
        ends = torch.tensor(clamp, dtype=torch.float32) / torch.tensor(y.scale, dtype=torch.float32)
        low, high = codes_at(ends, y).tolist()
        if low <= y.qn and high >= y.qp:
            return codes
        table = torch.arange(y.qn, y.qp + 1, dtype=torch.float32).clamp(low, high).to(torch.int16)
        return self._emit(f"{codes.name}_clamped", lambda n: Lookup(name=n, inputs=(codes.name,), type=y, table=table))

    def _lookup_of(self, node: fx.Node, x: Codes, function: Callable[[Tensor], Tensor]) -> _Waiting:
        def make(name: str, y: TensorType) -> Node:
            return Lookup(name=name, inputs=(x.name,), type=y, table=lookup_table(function, x.type, y))

        return _Waiting(node.name, make)

    def _affine(self, node: fx.Node, layer: QuantizedLayer, x: Codes, norm: nn.Module | None) -> _Waiting:
        """A convolution or linear layer, with the batch-norm behind it."""
        where = f"layer {node.target!r}"
        codes = _weight_codes(layer)
        gain, scale, bias = (part.cpu() for part in fold(layer.input_quantizer.step, layer, norm))
        codes[gain == 0] = 0  # a channel that batch-norm switches off is its bias alone
        weight = Weight(
            codes, scale[:1].reshape(()) if bool((scale == scale[0]).all()) else scale, layer.weight_quantizer.bits
        )
        bias = _int32(where, bias)
        if isinstance(layer, nn.Linear):
            if len(self.shapes[node]) != 2:
                raise LowbitError(f"{where}: linear layers on more than [batch, features] have no integer form yet")
            waiting = _Waiting(
                node.name,
                lambda n, y: Linear(name=n, inputs=(x.name,), type=y, weight=weight, bias=bias),
                is_layer=True,
            )
            return waiting
        spatial = tuple(layer.stride), _padding(layer), tuple(layer.dilation), layer.groups
        return replace(self._convolution(node.name, x, weight, bias, *spatial), is_layer=True)

    def _convolution(self, name, x, weight, bias, stride, padding, dilation, groups) -> _Waiting:
        return _Waiting(
            name,
            lambda n, y: Convolution(
                name=n, inputs=(x.name,), type=y, weight=weight, bias=bias, stride=stride, padding=padding,
                dilation=dilation, groups=groups,
            ),
        )  # fmt: skip

    def _output(self, node: fx.Node) -> str:
        value = self.values[node.args[0]]
        if isinstance(value, Codes):
            return value.name
        if not isinstance(value, _Waiting) or not value.is_layer or value.moves:
            raise LowbitError("the network's output has no quantizer: prepare the network anew")
        made = value.make(self._unique(value.name), FloatType())
        self.nodes.append(made)
        return made.name

    def _pooling_options(self, node: fx.Node, function: str) -> dict[str, Any]:
        """Keyword arguments of a pooling node, sizes as tuples."""
        spatial = len(self.shapes[node.args[0]]) - 2
        names = {
            "max_pool": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
            "avg_pool": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
        }[function]
        defaults = {"padding": 0, "dilation": 1, "ceil_mode": False, "count_include_pad": True, "stride": None}
        if node.op == "call_module":
            module = self.modules[node.target]
            options = {name: getattr(module, name) for name in names if hasattr(module, name)}
        else:
            options = dict(zip(names, node.args[1:])) | {k: v for k, v in node.kwargs.items() if k in names}
        options = defaults | options
        if "kernel_size" not in options or "adaptive" in getattr(node.target, "__name__", ""):
            raise LowbitError(f"{t.describe(node)}: adaptive pooling to a size other than 1 has no integer form")
        options["stride"] = options["stride"] if options["stride"] not in (None, ()) else options["kernel_size"]
        for key in ("kernel_size", "stride", "padding", "dilation"):
            size = options[key]
            options[key] = tuple(size) if isinstance(size, (tuple, list)) else (size,) * spatial
        return options

    def _moves(self, node: fx.Node) -> list[_Move]:
        """The integer nodes that do what a moving operation does; for chunk and split one per part."""
        before, after = self.shapes[node.args[0]], self.shapes[node]
        target, module = node.target, self.modules.get(node.target) if node.op == "call_module" else None
        name = node.name
        spelled = type(module).__name__ if module is not None else getattr(target, "__name__", target)

        if spelled.startswith("MaxPool") or target in (F.max_pool1d, F.max_pool2d):
            options = self._pooling_options(node, "max_pool")
            if options.get("return_indices"):
                raise LowbitError(f"{t.describe(node)}: the indices of pooling have no integer form")
            padding = tuple((p, p) for p in options["padding"])
            if options["ceil_mode"]:  # the last window may reach beyond the image: as much padding more
                windows = zip(options["kernel_size"], options["stride"], options["dilation"])
                reach = [
                    (out - 1) * step + dilation * (size - 1) + 1
                    for out, (size, step, dilation) in zip(after[2:], windows)
                ]
                padding = tuple((p, max(p, r - n - p)) for p, r, n in zip(options["padding"], reach, before[2:]))
            return [
                _Move(
                    name,
                    lambda n, x: MaxPool(
                        name=n, inputs=(x,), kernel=options["kernel_size"], stride=options["stride"], padding=padding,
                        dilation=options["dilation"],
                    ),
                )
            ]  # fmt: skip
        if isinstance(after, list):
            moves, start = [], 0
            axis = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0) % len(before)
            if axis == 0:
                raise LowbitError(f"{t.describe(node)} splits the batch, which has no integer form")
            for part in after:
                moves.append(_slice(name, axis, start, start + part[axis], 1))
                start += part[axis]
            return moves
        if spelled in ("getitem",):
            return self._slices(node, before)
        if spelled in ("pad", "ZeroPad2d"):
            return [self._pad(node, before, after)]
        if isinstance(module, nn.ChannelShuffle):
            return [_shuffle(name, module.groups)]
        if spelled in ("transpose", "permute"):
            return self._transposition(node, before, after)
        if before == after:
            return []
        if before[0] != after[0]:
            raise LowbitError(f"{t.describe(node)} mixes the samples of a batch, which has no integer form")
        return [_reshape(name, tuple(after[1:]))]

    def _transposition(self, node: fx.Node, before: tuple[int, ...], after: tuple[int, ...]) -> list[_Move]:
        """(groups, channels/groups, …) to (channels/groups, groups, …), between two reshapes: a channel shuffle."""
        order = list(range(len(before)))
        if node.target in (torch.transpose, "transpose"):
            a, b = (axis % len(before) for axis in node.args[1:3])
            order[a], order[b] = order[b], order[a]
        else:
            axes = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
            order = [axis % len(before) for axis in axes]
        if order != [0, 2, 1, *range(3, len(before))]:
            raise LowbitError(f"{t.describe(node)}: among transpositions only the channel shuffle has an integer form")
        groups, rest = before[1], tuple(before[3:])
        name = node.name
        return [
            _reshape(name, (groups * before[2], *rest)),
            _shuffle(name, groups),
            _reshape(name, tuple(after[1:])),
        ]

    def _slices(self, node: fx.Node, before: tuple[int, ...]) -> list[_Move]:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if not all(isinstance(part, slice) or part is Ellipsis for part in index):
            raise LowbitError(f"{t.describe(node)}: only slices of whole dimensions have an integer form")
        if Ellipsis in index:
            place = index.index(Ellipsis)
            index = (*index[:place], *[slice(None)] * (len(before) - len(index) + 1), *index[place + 1 :])
        moves = []
        for axis, part in enumerate(index):
            start, stop, step = part.indices(before[axis])
            if (start, stop, step) != (0, before[axis], 1):
                if axis == 0 or step < 1:
                    raise LowbitError(f"{t.describe(node)}: slicing the batch or backwards has no integer form")
                moves.append(_slice(node.name, axis, start, stop, step))
        return moves

    def _pad(self, node: fx.Node, before: tuple[int, ...], after: tuple[int, ...]) -> _Move:
        mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else 0)
        amounts = list(node.args[1] if len(node.args) > 1 else node.kwargs["pad"]) if node.op != "call_module" else []
        channels = amounts[2 * (len(before) - 2) :][:2]
        only_channels = len(channels) == 2 and sum(map(abs, amounts)) == sum(channels) and min(channels) >= 0
        if mode != "constant" or value not in (0, None, 0.0) or not only_channels:
            raise LowbitError(f"{t.describe(node)}: only zero padding of channels has an integer form on its own")
        return _Move(node.name, lambda n, x: PadChannels(name=n, inputs=(x,), before=channels[0], after=channels[1]))


def _reshape(name: str, shape: tuple[int, ...]) -> _Move:
    return _Move(f"{name}_reshaped", lambda n, x: Reshape(name=n, inputs=(x,), shape=shape))


def _slice(name: str, axis: int, start: int, stop: int, step: int) -> _Move:
    return _Move(name, lambda n, x: Slice(name=n, inputs=(x,), axis=axis, start=start, stop=stop, step=step))


def _shuffle(name: str, groups: int) -> _Move:
    return _Move(name, lambda n, x: ChannelShuffle(name=n, inputs=(x,), groups=groups))


def _type_of(quantizer: Quantizer) -> TensorType:
    if quantizer.raw_step.numel() != 1:
        raise LowbitError(f"{quantizer.name} has several steps; activations of an integer network have one")
    grid = quantizer.grid
    zero_point = float(quantizer.zero_point)
    if not quantizer.has_fraction:
        zero_point = int(zero_point)
    return TensorType(float(quantizer.step.item()), zero_point, grid.bits, grid.signed, grid.narrow)


def _weight_codes(layer: QuantizedLayer) -> Tensor:
    """The weight's codes, int8 in its own shape."""
    return layer.weight_quantizer.codes(layer.weight).to(torch.int8).cpu()


def _int32(where: str, bias: Tensor) -> Tensor:
    """An integer bias as int32, refused where it does not fit."""
    if not bool(torch.isfinite(bias).all()) or bool((bias.abs() >= 2**31).any()):
        raise LowbitError(
            f"{where}: its bias does not fit 32 bits on the accumulator's grid (largest {float(bias.abs().max()):.3g}): what "
            "its input and weight give is next to nothing beside its bias, or its batch-norm's statistics; train the network, "
            "or calibrate it anew on data like the training's"
        )
    return bias.to(torch.int32)


def _padding(layer: QuantizedLayer) -> Pads:
    if isinstance(layer.padding, str):
        before_after = layer._reversed_padding_repeated_twice
        pairs = list(zip(before_after[::2], before_after[1::2]))
        return tuple(reversed(pairs))
    return tuple((p, p) for p in layer.padding)


def trained_runner(model: fx.GraphModule, graph: Graph, traced: Mapping[str, Traced]) -> Runner:
    """The trained network beside its integer graph: the codes that its own quantizers give, and its outputs. It computes on the
    CPU, on a copy.
    """
    model = copy.deepcopy(model).cpu().eval()
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted: dict[str, list[tuple[str, Traced]]] = {}
    for name, place in traced.items():
        wanted.setdefault(place.node, []).append((name, place))

    def runner(inputs: Mapping[str, Tensor]) -> Result:
        found: dict[str, Tensor] = {}

        class Recorder(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Any:
                for name, place in wanted.get(node.name, ()):
                    module = modules[node.target]
                    quantizer = module.input_quantizer if place.of_input else module
                    found[name] = _codes_of(quantizer, self.env[node.args[0]])
                return super().run_node(node)

        with torch.no_grad():
            output = Recorder(model, garbage_collect_values=False).run(*inputs.values())
        return Result(found, {graph.outputs[0]: output})

    return runner


def _codes_of(quantizer: Quantizer, x: Tensor) -> Tensor:
    return quantizer.codes(x)
