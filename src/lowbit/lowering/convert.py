"""From a trained network prepared with `integer_only=True` to the integer graph.

The nodes of the traced network are walked in order; the handler of each node's kind (`lowbit.lowering.handlers`) says
what it becomes. A computation (layer, addition, …) waits until the quantizer behind it says on which grid its result
is; only then is an integer node made. What lies between, batch-norm and clamps, goes into the node; what only moves
codes (pooling by maximum, reshaping, …) is done behind it. `lowbit.lowering.values` has what stands for a tensor
meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from lowbit.errors import LowbitError
from lowbit.integer.graph import FloatType, Graph, Node, Shape, TensorType
from lowbit.integer.ops import Concatenate, Constant, Lookup, Quantize, Requantize
from lowbit.integer.ops.lookup import codes_at
from lowbit.integer.validate import validate
from lowbit.layers.rules import INSERTED
from lowbit.lowering import kinds as k
from lowbit.lowering.calls import REMEDY_FOR_ONE, Modules, arguments, describe, nodes_in, outputs_of
from lowbit.lowering.checks import check_norms, check_parameters, check_quantizers, check_shapes
from lowbit.lowering.codes import type_of
from lowbit.lowering.constants import constant
from lowbit.lowering.handlers import HANDLERS
from lowbit.lowering.handlers.masks import finite_codes, moved_mask
from lowbit.lowering.layouts import Layout, layout_of
from lowbit.lowering.shapes import Shapes, named_examples, shapes_of
from lowbit.lowering.simplify import simplified
from lowbit.lowering.tracer import batch_of
from lowbit.lowering.trained import Places, Traced, trained_runner
from lowbit.lowering.values import Codes, Computation, Concatenation, Finite, Held, Masked, Move, Value
from lowbit.quantizer.module import Quantizer

__all__ = ["Converter", "Traced", "convert", "trained_runner"]


def convert(
    model: nn.Module, example_input: Any, *, fractional_zero_points: bool = False, allow_diverged: bool = False
) -> tuple[Graph, Places]:
    """The integer graph of a trained network, validated, and where its tensors stand in the network.

    Args:
        model: from `lowbit.prepare(…, integer_only=True)`, calibrated or trained. It is not changed.
        example_input: a batch of inputs, as `named_examples` takes them; shapes without the batch become those of the
            graph's inputs.
        fractional_zero_points: take zero points that are not integers as they are. No integers compute such a graph.
        allow_diverged: take steps that training has driven out of their bounds, with the bound as the step.

    Raises:
        LowbitError: a model prepared otherwise, a quantizer without step, a step, offset or parameter that is not
            finite, a fractional offset, an example that the network does not take, or an operation in a form that has
            no integer counterpart; the message names the layer. Also what `validate` raises.
    """
    if not isinstance(model, fx.GraphModule) or not hasattr(model, INSERTED):
        raise LowbitError(
            "the network was not prepared for integers: use lowbit.prepare(model, integer_only=True, …); on the "
            "command line, lowbit train … --quantization.integer-only"
        )
    check_quantizers(model, fractional_zero_points, allow_diverged)
    check_norms(model)
    check_parameters(model)
    examples = named_examples(model, example_input)
    shapes = shapes_of(model, examples)
    converter = Converter(model, shapes)
    graph = validate(converter.graph(), fractional_zero_points=fractional_zero_points)
    check_shapes(graph, converter.places, model, converter.modules, shapes)
    return simplified(graph, converter.places)


class Refusal(LowbitError):
    """An operation is in a form that has no integer counterpart."""


class _Behind(LowbitError):
    """An operation takes what a refused one would have made."""


_REFUSED = object()


class Converter:
    """The walk over a traced network, and what handlers need of it.

    Args:
        model: the traced network.
        shapes: of its tensors.
        refused: where to collect what is refused, and go on behind it; None to raise it.

    Attributes:
        modules, kinds, shapes: of the traced network.
        places: where the tensors that were made stand in the network.
    """

    def __init__(self, model: fx.GraphModule, shapes: Shapes, refused: list[str] | None = None) -> None:
        self.modules: Modules = dict(model.named_modules(remove_duplicate=False))
        self._refused = refused
        kinds = k.kinds_of(model.graph, self.modules)
        self.kinds: k.Kinds = {node: kind or k.UNKNOWN for node, kind in kinds.items()}
        self.shapes = shapes
        self.places: Places = {}
        self._values: dict[fx.Node, Any] = {}
        self._nodes: list[Node] = []
        self._names: set[str] = set()
        self._made: dict[tuple[Value, Quantizer], Codes] = {}

    def graph(self) -> Graph:
        """The integer graph, not validated."""
        inputs: dict[str, Shape] = {}
        outputs: list[str] = []
        names: Sequence[str | None] = ()
        for node, kind in self.kinds.items():
            try:
                if kind is k.INPUT and node in self.shapes:
                    inputs[str(node.target)] = self.layout(node).sample(self.shapes[node])
                    self._values[node] = self._input(str(node.target))
                elif kind is k.INDEX_INPUT and node in self.shapes:
                    inputs[str(node.target)] = self.layout(node).sample(self.shapes[node])
                    self._names.add(str(node.target))
                elif kind is k.OUTPUT:
                    names, tensors = zip(*outputs_of(node))
                    outputs = [self._output(tensor, node) for tensor in tensors]
                elif kind is k.UNKNOWN:
                    raise self.refusal(node, "")
                elif why := kind.lack(node, self.modules):
                    raise self.refusal(node, f": {why}")
                elif kind is k.CONSTANT:
                    self._values[node] = None  # computed when it is taken
                elif kind not in (k.SHAPE, k.INPUT, k.INDEX_INPUT):
                    self._values[node] = HANDLERS[kind](self, node)
            except LowbitError as error:
                if self._refused is None:
                    raise
                if isinstance(error, Refusal):
                    self._refused.append(str(error))
                self._values[node] = _REFUSED
        return self._named(Graph(inputs, tuple(self._nodes), tuple(outputs)), names)

    def _input(self, name: str) -> Computation:
        self._names.add(name)
        return Computation(f"{name}_codes", lambda n, y: Quantize(name=n, inputs=(name,), type=y))

    def _output(self, tensor: fx.Node, node: fx.Node) -> str:
        value = self.value(tensor, node)
        if self.layout(tensor) != Layout():
            raise self.refusal(
                tensor, ": the network gives its tensor with the batch in another place than the first dimension"
            )
        if isinstance(value, Codes):
            return value.name
        if not isinstance(value, Computation) or not value.may_be_float or value.moves:
            raise LowbitError("the network's output has no quantizer: prepare the network again")
        return self._add(value.node(self._unique(value.name), FloatType()))

    def _named(self, graph: Graph, names: Sequence[str | None]) -> Graph:
        """The graph with its outputs named as the keys of the dictionary that the network gives, where it gives one."""
        new = {
            old: name
            for old, name in zip(graph.outputs, names)
            if name is not None and name not in self._names and graph.outputs.count(old) == 1
        }
        if not new:
            return graph
        self.places = {place: new.get(name, name) for place, name in self.places.items()}
        nodes = tuple(
            replace(node, name=new.get(node.name, node.name), inputs=tuple(new.get(each, each) for each in node.inputs))
            for node in graph.nodes
        )
        return Graph(graph.inputs, nodes, tuple(new.get(name, name) for name in graph.outputs))

    # What a node of the traced network takes.

    def layout(self, node: fx.Node) -> Layout:
        """Where the batch lies in a node's tensor."""
        layout = layout_of(self.shapes[node])
        if layout is None:
            raise self.refusal(node, " mixes the samples of a batch, which has no integer form")
        return layout

    def place(self, axis: int, tensor: fx.Node, node: fx.Node) -> int:
        """A dimension of a tensor, as one of the integer graph's, where the batch is 0.

        Refuses the node that of the batch.
        """
        layout, axis = self.layout(tensor), axis % len(self.shapes[tensor])
        place = layout.place(axis)
        if axis == layout.axis or place is None:
            raise self.refusal(node, " works along the dimension of the batch, which has no integer form")
        return place

    def check_batch_first(self, node: fx.Node) -> None:
        """Refuse a node that works on positions of channels, where windows or heads are folded into the batch."""
        if self.layout(self.input_of(node)) != Layout():
            raise self.refusal(node, " takes a batch that does not lie alone in the first dimension")

    def sample(self, node: fx.Node) -> Shape:
        """The shape of the node's tensor in the integer graph."""
        return self.layout(node).sample(self.shapes[node])

    def input_of(self, node: fx.Node) -> fx.Node:
        """The node whose tensor this one takes."""
        return self.arguments(node)["input"]

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """`calls.arguments` of a node."""
        return arguments(node, self.modules)

    def options(self, node: fx.Node, *names: str) -> list[Any]:
        """Arguments that are numbers, or made of numbers, by their names. Refuses those that the network computes."""
        given = self.arguments(node)
        values = [given[name] for name in names]
        if any(
            not isinstance(self.shapes.get(each), (int, float)) or batch_of(self.shapes[each])
            for each in nodes_in(values)
        ):
            raise self.refusal(node, " is called with what forward computes from data or from the batch")
        return fx.node.map_arg(values, self.shapes.__getitem__)

    def value(self, tensor: Any, node: fx.Node) -> Any:
        """What stands for a tensor that the node takes: a `Value`, or a list of them for what gives several tensors."""
        if not isinstance(tensor, fx.Node):
            raise self.refusal(node, f" takes {tensor!r}, where only tensors have an integer form")
        if self.kinds.get(tensor) is k.CONSTANT and self._values[tensor] is None:
            self._values[tensor] = self._held(tensor)
        if tensor not in self._values:
            raise self.refusal(tensor, f" makes what {self.describe(node)} takes, and has no integer form")
        if self._values[tensor] is _REFUSED:
            raise _Behind
        return self._values[tensor]

    def _held(self, node: fx.Node) -> Held:
        layout = self.layout(node)
        return Held(node.name, layout.to_samples(constant(node, self.kinds, self.shapes, self.modules), 1)[0])

    def parameter(self, argument: Any, node: fx.Node) -> Tensor:
        """A tensor that the network holds, or computes of such tensors, in full precision."""
        if not isinstance(argument, fx.Node) or self.kinds[argument] is not k.CONSTANT:
            raise self.refusal(node, " takes a weight, bias or mask that is computed from data")
        return constant(argument, self.kinds, self.shapes, self.modules)

    def places_of(self, argument: Any, node: fx.Node) -> Tensor:
        """Indices that the network holds, or writes as a list."""
        if isinstance(argument, (tuple, list)) and not nodes_in(argument):
            return torch.tensor(argument, device="cpu")
        return self.parameter(argument, node)

    def codes_at(self, tensor: Any, node: fx.Node) -> Codes:
        """The codes of a tensor that the node takes, which a quantizer has put on a grid."""
        value = self.value(tensor, node)
        if isinstance(value, Finite):
            value = finite_codes(self, value, node)
        if isinstance(value, Masked):
            raise self.refusal(node, " takes scores behind a mask, where only a softmax has an integer form")
        if not isinstance(value, Codes):
            raise LowbitError(f"{self.describe(node)} takes a tensor without a quantizer: prepare the network again")
        return value

    def describe(self, node: fx.Node) -> str:
        """`calls.describe` of a node."""
        return describe(node, self.modules)

    def refusal(self, node: fx.Node, why: str) -> Refusal:
        """The error for a node in a form that has no integer counterpart.

        Its description, what follows it, and the remedy.
        """
        return Refusal(f"{self.describe(node)}{why}; {REMEDY_FOR_ONE}")

    # What becomes of it in the integer graph.

    def found(self, node: fx.Node, codes: Codes, *, of_input: bool = False) -> None:
        """Note that the quantizer of a node, or of the input of its layer, gives these codes."""
        self.places[Traced(node.name, of_input, self.layout(self.input_of(node)))] = codes.name

    def on_grid(self, value: Value, quantizer: Quantizer) -> Codes:
        """The value on the quantizer's grid."""
        key = (value, quantizer)
        if key not in self._made:
            self._made[key] = self._on_grid(value, quantizer)
        return self._made[key]

    def _on_grid(self, value: Value, quantizer: Quantizer) -> Codes:
        grid = type_of(quantizer)
        if isinstance(value, Codes):
            if value.type.code_type == grid.code_type:
                return value
            name, source = f"{value.name}_requantized", value.name
            return self.emit(name, lambda n: Requantize(name=n, inputs=(source,), type=grid))
        if isinstance(value, Held):
            codes = quantizer.codes(value.tensor.to(quantizer.raw_step.device)).to(torch.int16).cpu()
            made = self.emit(value.name, lambda n: Constant(name=n, inputs=(), type=grid, codes=codes))
            return self.moved(made, value.moves)
        if isinstance(value, Concatenation):
            codes = self.concatenated(value.name, [self.on_grid(part, quantizer) for part in value.parts], value.axis)
        else:
            codes = self._clamped(self.emit(value.name, lambda n: value.node(n, grid)), value.clamp)
        return self.moved(codes, value.moves)

    def concatenated(self, name: str, parts: Sequence[Codes], axis: int) -> Codes:
        """Codes on one grid, one after the other along a dimension, counted with the batch as 0."""
        inputs = tuple(part.name for part in parts)
        return self.emit(name, lambda n: Concatenate(name=n, inputs=inputs, type=parts[0].type, axis=axis))

    def moved(self, value: Any, moves: Sequence[Move]) -> Any:
        """The value with its codes moved: at once, or when it is put on a grid."""
        if isinstance(value, Masked):
            return moved_mask(self, value, moves)
        if not isinstance(value, Codes):
            return replace(value, moves=(*value.moves, *moves))
        for move in moves:
            source, y = value.name, value.type
            made = self.emit(move.name, lambda n, move=move, source=source: move.node(n, source), y)
            value = made
        return value

    def emit(self, name: str, make: Callable[[str], Node], type: TensorType | None = None) -> Codes:
        """Add the node that `make` makes of its final name; `type` where the node leaves that to its input."""
        node = make(self._unique(name))
        y = type if node.type is None else node.type
        assert isinstance(y, TensorType)
        return Codes(self._add(node), y)

    def _add(self, node: Node) -> str:
        self._nodes.append(node)
        return node.name

    def _unique(self, name: str) -> str:
        unique, number = name.replace(":", "_"), 1
        while unique in self._names:
            number += 1
            unique = f"{name}_{number}"
        self._names.add(unique)
        return unique

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
        return self.emit(f"{codes.name}_clamped", lambda n: Lookup(name=n, inputs=(codes.name,), type=y, table=table))
