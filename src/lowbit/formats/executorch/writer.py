"""An integer graph as torch operators in the patterns that ExecuTorch's XNNPACK backend knows.

The codes' carriers and the arithmetic are those of `xnnpack`. A hardtanh before each quantization holds the codes'
range, which XNNPACK would otherwise take to be the whole byte. Changes of grid are float32 operators on integers. An
addition for which no pair of float32 factors gives the code that `Add` states for every pair of input codes is computed
in float64, outside XNNPACK; tables are an index, outside it too. The file takes one sample at a time; its inputs and
outputs are those of the graph, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.errors import LowbitError
from lowbit.files import atomic_write
from lowbit.formats import xnnpack
from lowbit.formats.executorch import positions  # noqa: F401  # registers its operations
from lowbit.formats.executorch.codes import LOWERINGS, Step, bytes_of, decomposed, steps_of
from lowbit.formats.xnnpack import FoldedLayer, zero_byte
from lowbit.integer.arithmetic import f32, sum_constants
from lowbit.integer.graph import FloatType, Graph, Node, Pads, TensorType, known_shape
from lowbit.integer.ops import (
    Add,
    AveragePool,
    ChannelShuffle,
    Concatenate,
    Convolution,
    GlobalAveragePool,
    Linear,
    Lookup,
    LookupPerChannel,
    MaxPool,
    Multiply,
    Quantize,
    Requantize,
    Reshape,
    Slice,
)
from lowbit.integer.ops.add import changes_places
from lowbit.integer.ops.broadcast import aligned
from lowbit.integer.ops.elementwise import Elementwise
from lowbit.integer.ops.layer import Layer
from lowbit.integer.ops.pad import ZeroPadding
from lowbit.integer.ops.take import Take

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager  # pyrefly: ignore[missing-import]  # may not be installed

_ROUNDER = 12582912.0
"""1.5 · 2^23: adding it to a float32 of magnitude below 2^22 rounds it to an integer, half to even."""


def build(graph: Graph, shown: Sequence[str] = ()) -> ExecutorchProgramManager:
    """The program of a validated graph, for one sample.

    Args:
        graph: what is written.
        shown: names of nodes whose codes come out behind the graph's outputs, as signed bytes (see `xnnpack`).

    Raises:
        LowbitError: XNNPACK has no exact form of something in it; the message names the node.
    """
    # pyrefly: ignore[missing-import]  # may not be installed
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    # pyrefly: ignore[missing-import]  # may not be installed
    from executorch.exir import to_edge_transform_and_lower

    module = _Network(graph, tuple(shown)).eval()
    exported = torch.export.export(module, tuple(torch.zeros(1, *shape) for shape in graph.inputs.values()))
    return to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()


def write(graph: Graph, path: Path) -> None:
    """Write a validated graph to `path`. Raises as `build`."""
    program = build(graph)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        program.write_to_file(file)


class _Network(nn.Module):
    """The graph as torch operators; gives its outputs, and the codes of the nodes in `shown`."""

    def __init__(self, graph: Graph, shown: tuple[str, ...]) -> None:
        super().__init__()
        self.graph, self.shown = graph, shown
        self.steps = nn.ModuleList(LOWERINGS.of(node)(node, graph.input_types(node)) for node in graph.nodes)
        self.results = nn.ModuleList(_result(graph.by_name[name].type) for name in graph.outputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(self.graph.inputs, inputs))
        for node, step in zip(self.graph.nodes, self.steps):
            values[node.name] = step(*(values[name] for name in node.inputs))
        results = [result(values[name]) for name, result in zip(self.graph.outputs, self.results)]
        return (*results, *(values[name] for name in self.shown))


def _result(kind: TensorType | FloatType | None) -> Step:
    """From a node's tensor to the float32 output."""
    if not isinstance(kind, TensorType):
        return Step(lambda x: x)
    return Step(lambda x, scale: steps_of(x, kind) * scale, scale=f32(kind.scale).reshape(1))


# ---------------------------------------------------------------- codes


@LOWERINGS(Quantize)
def _write_input(node: Quantize, types: Sequence[TensorType]) -> Step:
    y = node.codes_of()
    return Step(lambda x, scale: bytes_of(x / scale, y), scale=f32(y.scale).reshape(1))


# ---------------------------------------------------------------- layers


def _dimensions(node: Node, space: int, *functions: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function for one or for two spatial dimensions."""
    if space > len(functions):
        raise LowbitError(f"node {node.name!r}: XNNPACK has one and two spatial dimensions, not {space}")
    return functions[space - 1]


def _flat(padding: Pads) -> list[int]:
    """ZeroPadding in torch's order: the last dimension first."""
    return [size for pair in reversed(padding) for size in pair]


@LOWERINGS(Convolution)
def _convolution(node: Convolution, types: Sequence[TensorType]) -> Step:
    where = xnnpack.geometry(node)
    if isinstance(node.type, FloatType):
        space = node.weight.codes.ndim - 2
        convolution = _dimensions(node, space, F.conv1d, F.conv2d)
        pads, how = _flat(node.padding), {**where, "padding": 0}

        def compute(steps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return convolution(F.pad(steps, pads), weight, bias, **how)

        return _float_layer(node, types[0], compute, space)
    return _folded_layer(node, types[0], xnnpack.layer(node, types[0], **where))


@LOWERINGS(Linear)
def _linear(node: Linear, types: Sequence[TensorType]) -> Step:
    if isinstance(node.type, FloatType):
        return _float_layer(node, types[0], F.linear, 0)
    return _folded_layer(node, types[0], xnnpack.layer(node, types[0]))


def _folded_layer(node: Node, x: TensorType, layer: FoldedLayer) -> Step:
    """An integer convolution or linear layer in the pattern for XNNPACK."""
    y, space = node.codes_of(), layer.codes.ndim - 2
    constants = {"codes": layer.codes, "scale": layer.scale, "zero": torch.zeros(len(layer.codes), dtype=torch.int64)}
    if layer.bias is not None:
        real = layer.bias.to(torch.float32) * layer.scale
        if not torch.equal(torch.round(real * (1.0 / layer.scale)).to(torch.int32), layer.bias):
            raise LowbitError(
                f"node {node.name!r}: its bias reaches {int(layer.bias.abs().max())}, which ExecuTorch, where a bias "
                "is a float32, does not hold exactly; give the layer's input fewer bits"
            )
        constants["bias"] = real
    same = all(before == after for before, after in layer.padding)
    flat = _flat(layer.padding)
    how: dict[str, Any] = {}
    function: Callable[..., Tensor] = F.linear
    if space:
        function = _dimensions(node, space, F.conv1d, F.conv2d)
        how = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
        how["padding"] = [before if same else 0 for before, _ in layer.padding]

    def compute(carrier: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None = None) -> Tensor:
        if not same:
            carrier = F.pad(carrier, flat, value=zero_byte(x))
        weight = decomposed.dequantize_per_channel(codes, scale, zero, 0, -128, 127, torch.int8)
        return bytes_of(function(steps_of(carrier, x), weight, bias, **how), y)

    return Step(compute, **constants)


def _float_layer(node: Layer, x: TensorType, function: Callable[..., Tensor], space: int) -> Step:
    """The accumulator as float32 sums of integers, times its scale; `function` of steps, weight and bias makes one."""
    summands, scale = xnnpack.float_layer(node, x)
    constants = {"scale": scale.reshape(-1, *[1] * space)}
    for number, each in enumerate(summands):
        constants[f"weight{number}"] = each.codes.to(torch.float32) * each.factor
        constants[f"bias{number}"] = torch.zeros(len(scale)) if each.bias is None else each.bias.to(torch.float32)

    def compute(carrier: Tensor, scale: Tensor, **constants: Tensor) -> Tensor:
        steps, total = steps_of(carrier, x), None
        for number in range(len(summands)):
            part = function(steps, constants[f"weight{number}"], constants[f"bias{number}"])
            total = part if total is None else total + part
        assert total is not None
        return total * scale

    return Step(compute, **constants)


# ---------------------------------------------------------------- sums over windows, changes of grid


@LOWERINGS(AveragePool)
def _average_pool(node: AveragePool, types: Sequence[TensorType]) -> Step:
    ones = xnnpack.ones_layer(node, types[0], node.kernel, node.stride, node.padding)
    return _folded_layer(node, types[0], ones)


@LOWERINGS(GlobalAveragePool)
def _global_average_pool(node: GlobalAveragePool, types: Sequence[TensorType]) -> Step:
    return _folded_layer(node, types[0], xnnpack.ones_layer(node, types[0], known_shape(types[0])[1:]))


@LOWERINGS(Requantize)
def _requantize(node: Requantize, types: Sequence[TensorType]) -> Step:
    (x,), y, (multiplier,) = types, node.codes_of(), node.multipliers(types)
    return Step(lambda carrier, m: bytes_of(steps_of(carrier, x) * m, y), m=multiplier.single.reshape(1))


@LOWERINGS(Lookup)
def _lookup(node: Lookup, types: Sequence[TensorType]) -> Step:
    return Step(lambda x, table: table[x.to(torch.int64) + 128], table=xnnpack.table(node, types[0]))


@LOWERINGS(LookupPerChannel)
def _lookup_per_channel(node: LookupPerChannel, types: Sequence[TensorType]) -> Step:
    space = len(node.shape_of()) - 1
    first = (128 + 256 * torch.arange(len(node.tables))).reshape(-1, *[1] * space)
    table = xnnpack.tables(node, types[0]).flatten()
    return Step(lambda x, table, first: table[x.to(torch.int64) + first], table=table, first=first)


# ---------------------------------------------------------------- codes that move


@LOWERINGS(Concatenate)
def _concatenate(node: Concatenate, types: Sequence[TensorType]) -> Step:
    y = node.codes_of()
    return Step(lambda *x: bytes_of(torch.cat([steps_of(each, y) for each in x], node.axis), y))


@LOWERINGS(MaxPool)
def _max_pool(node: MaxPool, types: Sequence[TensorType]) -> Step:
    (x,), flat = types, _flat(node.padding)
    pool = _dimensions(node, len(node.kernel), F.max_pool1d, F.max_pool2d)

    def compute(carrier: Tensor) -> Tensor:
        # Padded with the lowest code, which never wins; on bytes, since XNNPACK refuses to pad a pool's floats with 0.
        if any(flat):
            carrier = F.pad(carrier, flat, value=x.qn + xnnpack.carrier(x))
        return bytes_of(pool(steps_of(carrier, x), node.kernel, node.stride, 0, node.dilation), x)

    return Step(compute)


@LOWERINGS(Reshape)
def _reshape(node: Reshape, types: Sequence[TensorType]) -> Step:
    shape = node.shape_of()
    return Step(lambda x: x.reshape(len(x), *shape))


@LOWERINGS(Slice)
def _slice(node: Slice, types: Sequence[TensorType]) -> Step:
    return Step(lambda x: torch.ops.aten.slice(x, node.axis, node.start, node.stop, node.step))


@LOWERINGS(ZeroPadding)
def _pad(node: ZeroPadding, types: Sequence[TensorType]) -> Step:
    y, sizes = node.codes_of(), _flat(node.sizes(known_shape(types[0])))
    return Step(lambda x: bytes_of(F.pad(steps_of(x, y), sizes), y))


@LOWERINGS(ChannelShuffle)
def _shuffle(node: ChannelShuffle, types: Sequence[TensorType]) -> Step:
    return Step(lambda x: x.unflatten(1, (node.groups, -1)).transpose(1, 2).flatten(1, 2))


@LOWERINGS(Take)
def _take(node: Take, types: Sequence[TensorType]) -> Step:
    """An index_select per dimension of which something is taken, outside XNNPACK."""
    places = {f"places{axis}": torch.tensor(taken) for axis, taken in node.indices(known_shape(types[0])).items()}

    def compute(x: Tensor, **places: Tensor) -> Tensor:
        for name, taken in places.items():
            x = x.index_select(int(name.removeprefix("places")), taken)
        return x

    return Step(compute, **places)


# ---------------------------------------------------------------- float operators


class _Operators:
    """The operators of `Elementwise` on torch tensors.

    Args:
        constants: what `constant` gives, one after the other; None to have them collected.
    """

    def __init__(self, constants: Iterator[Tensor] | None = None) -> None:
        self._given = constants
        self.collected: list[Tensor] = []

    def constant(self, value: float) -> Tensor:
        if self._given is not None:
            return next(self._given)
        self.collected.append(f32(value).reshape(1))
        return self.collected[-1]

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


@LOWERINGS(Elementwise)
def _elementwise(node: Elementwise, types: Sequence[TensorType]) -> Step:
    """The operators of `in_floats`, with its constants as constants of the step."""
    y, tried = node.codes_of(), _Operators()
    node.in_floats(tried, [torch.zeros(1) for _ in types], types)

    def compute(*carriers: Tensor, **constants: Tensor) -> Tensor:
        steps = [steps_of(each, x) for each, x in zip(aligned(carriers), types)]
        return bytes_of(node.in_floats(_Operators(iter(constants.values())), steps, types), y)

    return Step(compute, **{f"constant{number}": value for number, value in enumerate(tried.collected)})


@LOWERINGS(Add)
def _add(node: Add, types: Sequence[TensorType]) -> Step:
    (a, b), y = types, node.codes_of()
    factors = xnnpack.plain_factors(node, a, b)
    if factors is not None:

        def plain(u: Tensor, v: Tensor, r_a: Tensor, r_b: Tensor) -> Tensor:
            u, v = aligned([u, v])
            return bytes_of(steps_of(u, a) * r_a + steps_of(v, b) * r_b, y)

        return Step(plain, r_a=factors[0].reshape(1), r_b=factors[1].reshape(1))
    swapped = changes_places(a, b)

    def compute(u: Tensor, v: Tensor, r_a: Tensor, r_b: Tensor, constant: Tensor) -> Tensor:
        u, v = aligned([v, u] if swapped else [u, v])
        inner = ((v.to(torch.float64) + 128) * r_b + constant).to(torch.float32)
        total = ((u.to(torch.float64) + 128) * r_a + inner).to(torch.float32)
        bytes = total.round().clamp(y.qn + y.carrier_offset, y.qp + y.carrier_offset)
        return (bytes - 128).to(torch.int8)

    exact = dict(zip(("r_a", "r_b", "constant"), sum_constants(types[::-1] if swapped else types, y)))
    return Step(compute, **{name: value.to(torch.float64).reshape(1) for name, value in exact.items()})


@LOWERINGS(Multiply)
def _multiply(node: Multiply, types: Sequence[TensorType]) -> Step:
    """Rounded in bytes, with the zero point: it decides which way a half goes."""
    (a, b), y, (multiplier,) = types, node.codes_of(), node.multipliers(types)
    zero = float(y.zero_point + y.carrier_offset)
    low, high = float(y.qn + y.carrier_offset), float(y.qp + y.carrier_offset)

    def compute(u: Tensor, v: Tensor, m: Tensor, zero: Tensor, rounder: Tensor, back: Tensor) -> Tensor:
        u, v = aligned([u, v])
        total = F.hardtanh(steps_of(u, a) * steps_of(v, b) * m + zero, low, high)
        return bytes_of((total + rounder) - back, y)

    constants = {"m": multiplier.single, "zero": f32(zero), "rounder": f32(_ROUNDER), "back": f32(_ROUNDER + zero)}
    return Step(compute, **{name: value.reshape(1) for name, value in constants.items()})
