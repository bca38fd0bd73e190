"""An integer graph as LiteRT operators on signed bytes.

The codes' carriers and the arithmetic are those of `xnnpack`. LiteRT applies the delegate by default; its other
kernels round in other ways, so that codes differ by 1 there. Codes of fewer than 8 bits are held in their range by
MINIMUM and MAXIMUM on bytes. A table is a GATHER; so is an addition for which no pair of float32 factors gives the code
that `Add` states for every pair of input codes, from a table of all pairs.

Inputs and outputs are float32 in the network's own order of axes; in between, channels come last. The batch may be
resized. The tensor that holds a node's codes carries the node's name; every other name has a colon in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Operator
from ai_edge_litert.schema_py_generated import Padding
from ai_edge_litert.schema_py_generated import TensorType as Type

from lowbit.errors import LowbitError
from lowbit.formats import pairs, xnnpack
from lowbit.formats.litert import (
    positions,  # noqa: F401  # registers its operations
    sequences,  # noqa: F401  # registers its operations
)
from lowbit.formats.litert.builder import (
    LOWERINGS,
    Builder,
    FloatOperators,
    either,
    input_name,
    layout,
    layout_axis,
    plane,
    quantization,
)
from lowbit.formats.litert.windows import weight_codes, window
from lowbit.formats.xnnpack import FoldedLayer
from lowbit.integer.graph import FloatType, Graph, Node, TensorType, known_shape
from lowbit.integer.ops import (
    Add,
    AveragePool,
    ChannelShuffle,
    Concatenate,
    Constant,
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
from lowbit.integer.ops.elementwise import Elementwise
from lowbit.integer.ops.layer import Layer
from lowbit.integer.ops.pad import ZeroPadding
from lowbit.integer.ops.take import Take


def build(graph: Graph) -> bytes:
    """The file's content for a validated graph.

    Raises:
        LowbitError: something in it has no exact form; the message names the node.
    """
    builder = Builder(graph)
    builder.values = {name: builder.tensor(input_name(name), shape) for name, shape in graph.inputs.items()}
    for node in graph.nodes:
        if len(node.shape_of()) > 3:
            raise LowbitError(f"node {node.name!r}: LiteRT's file holds one and two spatial dimensions, not three")
        LOWERINGS.of(node)(builder, node)
    results = [_result(builder, graph.by_name[name]) for name in graph.outputs]
    return builder.done([builder.values[name] for name in graph.inputs], results)


def _result(builder: Builder, node: Node) -> int:
    """A node's tensor as an output of the file: floats in their own order of axes."""
    value, shape = builder.values[node.name], node.shape_of()
    if isinstance(node.type, TensorType):
        real, scale = builder.steps(node.name), builder.constant(np.float32(node.type.scale))
        value = builder.add(Operator.MUL, [real, scale], builder.tensor(f"{node.name}:real", layout(shape)))
    return builder.channels_first(value, f"{node.name}:output", shape)


@LOWERINGS(Quantize)
def _write_input(builder: Builder, node: Quantize) -> None:
    (name,) = node.inputs
    x = builder.channels_last(builder.values[name], f"{node.name}:image", builder.graph.inputs[name])
    scale = builder.constant(np.array([node.codes_of().scale], np.float32))
    builder.quantize(node, builder.binary(Operator.DIV, x, scale, f"{node.name}:scaled"))


# ---------------------------------------------------------------- layers


@LOWERINGS(Convolution)
def _convolution(builder: Builder, node: Convolution) -> None:
    _layer(builder, node, xnnpack.geometry(node))


@LOWERINGS(Linear)
def _linear(builder: Builder, node: Linear) -> None:
    if len(node.shape_of()) > 1:
        raise LowbitError(
            f"node {node.name!r}: LiteRT's fully connected layer is written for flat features, not {node.shape_of()}"
        )
    _layer(builder, node, {})


def _layer(builder: Builder, node: Layer, where: dict[str, Any]) -> None:
    (x,) = builder.graph.input_types(node)
    if isinstance(node.type, FloatType):
        _float_layer(builder, node, x, where)
    else:
        _folded_layer(builder, node, xnnpack.layer(node, x, **where))


def _folded_layer(builder: Builder, node: Node, layer: FoldedLayer) -> None:
    """An integer convolution or fully connected layer."""
    operator, x, axis, options = window(builder, node, layer, *builder.inputs(node))
    scale, zeros = layer.scale.tolist(), [0] * len(layer.scale)
    bias = np.zeros(len(zeros), np.int32) if layer.bias is None else layer.bias.numpy()
    weight = builder.constant(weight_codes(layer), quantization(scale, zeros, axis))
    inputs = [x, weight, builder.constant(bias, quantization(scale, zeros))]
    builder.codes(node, operator, inputs, options, clip=True)


def _float_layer(builder: Builder, node: Layer, kind: TensorType, where: dict[str, Any]) -> None:
    """The accumulator as float32 sums of integers, times its scale."""
    summands, scale = xnnpack.float_layer(node, kind)
    operator, x, _, options = window(
        builder, node, FoldedLayer(node.weight.codes, scale, None, **where), *builder.inputs(node)
    )
    steps, shape, total = builder.dequantize(x, f"{node.name}:steps"), layout(node.shape_of()), None
    for number, summand in enumerate(summands):
        codes = weight_codes(FoldedLayer(summand.codes, scale, None, **where))
        weight = builder.float_constant(f"{node.name}:weight{number}", codes, float(summand.factor))
        bias = np.zeros(len(scale)) if summand.bias is None else summand.bias.numpy()
        part = builder.tensor(f"{node.name}:sum{number}", shape)
        builder.add(operator, [steps, weight, builder.constant(bias.astype(np.float32))], part, options)
        total = part if total is None else builder.binary(Operator.ADD, total, part, f"{node.name}:accumulator")
    assert total is not None
    factor = builder.constant(scale.numpy())
    builder.values[node.name] = builder.binary(Operator.MUL, total, factor, f"{node.name}:scaled")


# ---------------------------------------------------------------- sums over windows, changes of grid


@LOWERINGS(AveragePool)
def _average_pool(builder: Builder, node: AveragePool) -> None:
    (x,) = builder.graph.input_types(node)
    _folded_layer(builder, node, xnnpack.ones_layer(node, x, node.kernel, node.stride, node.padding))


@LOWERINGS(GlobalAveragePool)
def _global_average_pool(builder: Builder, node: GlobalAveragePool) -> None:
    (x,) = builder.graph.input_types(node)
    _folded_layer(builder, node, xnnpack.ones_layer(node, x, known_shape(x)[1:]))


@LOWERINGS(Requantize)
def _requantize(builder: Builder, node: Requantize) -> None:
    (x,), space = builder.graph.input_types(node), len(node.shape_of()) - 1
    if space:
        _folded_layer(builder, node, xnnpack.ones_layer(node, x, (1,) * space))
    else:  # flat features have no convolution
        (multiplier,) = node.multipliers([x])
        factor = builder.constant(multiplier.single.numpy().reshape(1))
        steps = builder.steps(node.inputs[0])
        builder.quantize(node, builder.binary(Operator.MUL, steps, factor, f"{node.name}:product"))


@either(Lookup)
def _lookup(builder: Builder, node: Lookup) -> None:
    (x,), (kind,) = builder.inputs(node), builder.graph.input_types(node)
    table = builder.constant(xnnpack.table(node, kind).numpy(), builder.grid(node.codes_of()))
    builder.codes(node, Operator.GATHER, [table, builder.index(node, x)], schema.GatherOptionsT())


@either(LookupPerChannel)
def _lookup_per_channel(builder: Builder, node: LookupPerChannel) -> None:
    """A GATHER from all tables one after the other: a channel's begins at 256 times its number."""
    (x,), (kind,), shape = builder.inputs(node), builder.graph.input_types(node), layout(node.shape_of())
    table = builder.constant(xnnpack.tables(node, kind).numpy().reshape(-1), builder.grid(node.codes_of()))
    first = builder.integers([256 * channel for channel in range(len(node.tables))])
    place = builder.tensor(f"{node.name}:place", shape, Type.INT32)
    builder.add(Operator.ADD, [builder.index(node, x), first], place, schema.AddOptionsT())
    builder.codes(node, Operator.GATHER, [table, place], schema.GatherOptionsT())


# ---------------------------------------------------------------- codes that move


@either(Concatenate)
def _concatenate(builder: Builder, node: Concatenate) -> None:
    for name in node.inputs:
        if isinstance(builder.graph.by_name[name], Constant):
            raise LowbitError(f"node {node.name!r}: LiteRT's file does not repeat the constant {name!r} for a batch")
    options = schema.ConcatenationOptionsT(layout_axis(node.shape_of(), node.axis))
    builder.codes(node, Operator.CONCATENATION, builder.inputs(node), options)


@either(MaxPool)
def _max_pool(builder: Builder, node: MaxPool) -> None:
    (x,), (kind,) = builder.inputs(node), builder.graph.input_types(node)
    stride, pads, kernel = plane(node.stride, 1), plane(node.padding, (0, 0)), plane(node.kernel, 1)
    if any(d > 1 for d in node.dilation):
        raise LowbitError(f"node {node.name!r}: LiteRT has no maximum pooling with dilation {node.dilation}")
    if any(map(any, pads)):
        lowest = kind.qn + xnnpack.carrier(kind)  # which never wins
        x = builder.padded(node, x, tuple(pads), fill=lowest)
    options = schema.Pool2DOptionsT(Padding.VALID, stride[1], stride[0], kernel[1], kernel[0])
    builder.codes(node, Operator.MAX_POOL_2D, [x], options)


@either(Reshape)
def _reshape(builder: Builder, node: Reshape) -> None:
    (x,), (kind,), shape = builder.inputs(node), builder.graph.input_types(node), node.shape_of()
    plain = builder.channels_first(x, f"{node.name}:plain", known_shape(kind))
    flat = builder.reshape(plain, builder.like(plain, f"{node.name}:reshaped", shape))
    builder.values[node.name] = builder.channels_last(flat, node.name, shape)
    builder.rename(builder.values[node.name], node.name)


@either(Slice)
def _slice(builder: Builder, node: Slice) -> None:
    (x,), (kind,) = builder.inputs(node), builder.graph.input_types(node)
    shape, axis = builder.shape(x), layout_axis(known_shape(kind), node.axis)
    begin, end, step = [0] * (len(shape) + 1), [1, *shape], [1] * (len(shape) + 1)
    begin[axis], end[axis], step[axis] = node.start, node.stop, node.step
    inputs = [x, *map(builder.integers, (begin, end, step))]
    # Bit 0 of the masks: the whole batch.
    builder.codes(node, Operator.STRIDED_SLICE, inputs, schema.StridedSliceOptionsT(beginMask=1, endMask=1))


@either(ZeroPadding)
def _pad(builder: Builder, node: ZeroPadding) -> None:
    channels, *space = node.sizes(known_shape(builder.graph.input_types(node)[0]))
    rank = len(layout(node.shape_of()))
    pads = builder.constant(np.array([*[(0, 0)] * (rank - len(space)), *space, channels], np.int32))
    builder.codes(node, Operator.PAD, [*builder.inputs(node), pads], schema.PadOptionsT())


@either(ChannelShuffle)
def _shuffle(builder: Builder, node: ChannelShuffle) -> None:
    """Reshape, transpose, reshape."""
    (x,) = builder.inputs(node)
    *space, channels = builder.shape(x)
    split = (*space, node.groups, channels // node.groups)
    grouped = builder.reshape(x, builder.like(x, f"{node.name}:grouped", split))
    rank = len(space) + 3
    swapped = builder.like(x, f"{node.name}:shuffled", (*split[:-2], split[-1], split[-2]))
    order = [*range(rank - 2), rank - 1, rank - 2]
    builder.values[node.name] = builder.reshape(
        builder.transpose(grouped, order, swapped), builder.like(x, node.name, (*space, channels))
    )


@either(Take)
def _take(builder: Builder, node: Take) -> None:
    """A GATHER per dimension of which something is taken."""
    (x,), (kind,) = builder.inputs(node), builder.graph.input_types(node)
    whole = known_shape(kind)
    taken = node.indices(whole)
    for number, (axis, places) in enumerate(taken.items(), 1):
        place, shape = layout_axis(whole, axis), list(builder.shape(x))
        shape[place - 1] = len(places)
        output = builder.like(x, node.name if number == len(taken) else f"{node.name}:taken{axis}", shape)
        x = builder.add(Operator.GATHER, [x, builder.integers(places)], output, schema.GatherOptionsT(axis=place))
    builder.values[node.name] = x if taken else builder.reshape(x, builder.like(x, node.name, builder.shape(x)))


# ---------------------------------------------------------------- float operators


def _aligned_steps(builder: Builder, node: Node, name: str) -> int:
    """The steps q − z of one of a node's inputs, in a layout that broadcasts."""
    return builder.aligned(node, name, builder.steps(name))


@LOWERINGS(Elementwise)
def _elementwise(builder: Builder, node: Elementwise) -> None:
    types, steps = builder.graph.input_types(node), [_aligned_steps(builder, node, name) for name in node.inputs]
    builder.quantize(node, node.in_floats(FloatOperators(builder, node), steps, types))


@LOWERINGS(Add)
def _addition(builder: Builder, node: Add) -> None:
    factors = xnnpack.plain_factors(node, *builder.graph.input_types(node))
    if factors is None:
        _sum_table(builder, node)
        return
    parts = []
    for number, (name, factor) in enumerate(zip(node.inputs, factors)):
        steps, by = _aligned_steps(builder, node, name), builder.constant(factor.numpy().reshape(1))
        parts.append(builder.binary(Operator.MUL, steps, by, f"{node.name}:part{number}"))
    a, b = parts
    builder.quantize(node, builder.binary(Operator.ADD, a, b, f"{node.name}:sum"))


def _sum_table(builder: Builder, node: Add) -> None:
    """The output code of every pair of input codes: exact where no float factors are."""
    (a, b), y, shape = builder.graph.input_types(node), node.codes_of(), layout(node.shape_of())
    codes = np.zeros((256, 256), np.int8)
    rows, columns = (slice(t.qn + t.carrier_offset, t.qp + t.carrier_offset + 1) for t in (a, b))
    codes[rows, columns] = (pairs.sums(node, a, b) + xnnpack.carrier(y)).numpy().astype(np.int8)
    operands = [builder.aligned(node, name, builder.values[name]) for name in node.inputs]
    first, second = (builder.index(node, x, number) for number, x in enumerate(operands))
    high = builder.tensor(f"{node.name}:high", builder.shape(first), Type.INT32)
    builder.add(Operator.MUL, [first, builder.integers([256])], high, schema.MulOptionsT())
    pair = builder.tensor(f"{node.name}:pair", shape, Type.INT32)
    builder.add(Operator.ADD, [high, second], pair, schema.AddOptionsT())
    table = builder.constant(codes.reshape(-1), builder.grid(y))
    builder.codes(node, Operator.GATHER, [table, pair], schema.GatherOptionsT())


@LOWERINGS(Multiply)
def _product(builder: Builder, node: Multiply) -> None:
    """Rounded in bytes, with the zero point: it decides which way a half goes."""
    y, (multiplier,) = node.codes_of(), node.multipliers(builder.graph.input_types(node))
    zero = np.array([y.zero_point + y.carrier_offset], np.float32)
    m = builder.constant(multiplier.single.numpy().reshape(1))
    a, b = (_aligned_steps(builder, node, name) for name in node.inputs)
    n = builder.binary(Operator.MUL, a, b, f"{node.name}:product")
    total = builder.binary(Operator.MUL, n, m, f"{node.name}:scaled")
    total = builder.binary(Operator.ADD, total, builder.constant(zero), f"{node.name}:total")
    rounded = builder.add(Operator.ROUND, [total], builder.tensor(f"{node.name}:rounded", builder.shape(total)))
    builder.quantize(node, builder.binary(Operator.ADD, rounded, builder.constant(-zero), f"{node.name}:moved"))
