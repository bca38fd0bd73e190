"""An integer graph as QONNX: float operators on whole numbers, with a Quant for every grid.

Domain qonnx.custom_op.general, version 1; its Quant computes rint(clip(x / scale + zero_point)), half to even, and
gives scale · (that − zero_point). The graph is written with every scale beside the operators, as Mul nodes, and every
Quant with scale 1, so that the values between nodes are the whole numbers code − zero_point: sums of products are then
exact in float32 (as long as they stay below 2^24), the factor before each Quant is the requantization's float32
multiplier, and a float executor gives the integer reference's codes. The tensor of a node carries the node's name.

Additions and products of two tensors have a rounding of their own in the reference (`Add`, `Multiply`). Their factors
are moved by a few units in the last place where that makes the plain float operators give the same code for every pair
of input codes, which is tried out here for all of them; where no such factors exist, the operation is written as a
table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto
from torch import Tensor

from lowbit.formats import pairs
from lowbit.formats.onnx.builder import (
    Builder,
    FloatOperators,
    conv_attributes,
    operands,
    pads,
    register_moves,
    resampled,
    write_model,
)
from lowbit.formats.onnx.sequences import in_blocks, masked_softmax, normalized, reduced, softmax
from lowbit.formats.qonnx import DOMAIN
from lowbit.formats.registry import Lowerings
from lowbit.formats.xnnpack import check_exact
from lowbit.integer.graph import FloatType, Graph, Node, TensorType, known_shape, reach
from lowbit.integer.ops import (
    Add,
    AveragePool,
    Constant,
    Convolution,
    Embedding,
    GlobalAveragePool,
    Linear,
    Lookup,
    LookupPerChannel,
    MaskedSoftmax,
    MatMul,
    Multiply,
    Normalize,
    Quantize,
    Reduce,
    Requantize,
    Softmax,
)
from lowbit.integer.ops.elementwise import Elementwise
from lowbit.integer.ops.layer import Layer
from lowbit.integer.ops.pad import ZeroPadding
from lowbit.integer.ops.resample import Resample

OPSET = 13  # what QONNX's own transformations are written for
LOWERINGS = Lowerings("QONNX")
register_moves(LOWERINGS)


def build(graph: Graph) -> ModelProto:
    """The checked model of a validated graph (fractional zero points allowed)."""
    builder = Builder(graph, opset=OPSET)
    for node in graph.nodes:
        LOWERINGS.of(node)(builder, node)
    outputs = []
    for name in graph.outputs:
        node, real = graph.by_name[name], name
        if isinstance(node.type, TensorType):
            scale = builder.constant(f"{name}:scale", np.float32(node.type.scale))
            real = builder.add("Mul", [name, scale], f"{name}:real")
        outputs.append((real, node.shape_of()))
    return builder.done(outputs, {"": OPSET, DOMAIN: 1})


def write(graph: Graph, path: Path) -> None:
    """Write a validated graph to `path`."""
    write_model(build(graph), path)


def _quant(builder: Builder, real: str, output: str, y: TensorType) -> str:
    """Quant with scale 1 on the grid of `y`: the values code − zero_point."""
    inputs = [
        real,
        builder.constant(":one", np.float32(1)),
        builder.constant(f":zero_point_{y.zero_point}", np.float32(y.zero_point)),
        builder.constant(f":bits_{y.bits}", np.float32(y.bits)),
    ]
    attributes = {"signed": int(y.signed), "narrow": int(y.narrow), "rounding_mode": "ROUND"}
    return builder.add("Quant", inputs, output, domain=DOMAIN, **attributes)


def _rounded_quant(builder: Builder, real: str, node: Node) -> None:
    """Quant of a value in steps, rounded before the zero point is added, as `requant` does: it decides ties."""
    y = node.codes_of()
    if y.zero_point and y.has_integer_zero_point:
        real = builder.add("Round", [real], f"{node.name}:rounded")
    _quant(builder, real, node.name, y)


def _requantize(builder: Builder, total: str, factor: Tensor, node: Node) -> None:
    """Quant(factor · total)."""
    multiplier = builder.constant(f"{node.name}:factor", factor.numpy())
    _rounded_quant(builder, builder.add("Mul", [total, multiplier], f"{node.name}:scaled"), node)


@LOWERINGS(Quantize)
def _write_input(builder: Builder, node: Quantize) -> None:
    scale = builder.constant(f"{node.name}:scale", np.float32(node.codes_of().scale))
    _rounded_quant(builder, builder.add("Div", [node.inputs[0], scale], f"{node.name}:scaled"), node)


def _weight(builder: Builder, node: Layer, codes: np.ndarray) -> str:
    """The quantized weight by name."""
    name = f"{node.name}:weight"
    raw = builder.constant(name, codes)
    if node.weight.bits == 1:
        one = builder.constant(":one", np.float32(1))
        return builder.add("BipolarQuant", [raw, one], f"{name}.quantized", domain=DOMAIN)
    return _quant(builder, raw, f"{name}.quantized", TensorType(1.0, 0, node.weight.bits, True))


def _bias(builder: Builder, node: Layer) -> list[str]:
    if node.bias is None:
        return []
    return [builder.constant(f"{node.name}:bias", node.bias.numpy().astype(np.float32))]


@LOWERINGS(Linear)
def _linear(builder: Builder, node: Linear) -> None:
    weight = _weight(builder, node, node.weight.codes.numpy().astype(np.float32).T)
    bias, total = _bias(builder, node), f"{node.name}:sum"
    builder.add("MatMul", [node.inputs[0], weight], total)
    if bias:
        total = builder.add("Add", [total, *bias], f"{node.name}:accumulator")
    _scaled(builder, node, total, ())


@LOWERINGS(Convolution)
def _convolution(builder: Builder, node: Convolution) -> None:
    weight = _weight(builder, node, node.weight.codes.numpy().astype(np.float32))
    operands = [node.inputs[0], weight, *_bias(builder, node)]
    total = builder.add("Conv", operands, f"{node.name}:sum", **conv_attributes(node))
    _scaled(builder, node, total, (1,) * (node.weight.codes.ndim - 2))


def _scaled(builder: Builder, node: Layer, total: str, space: tuple[int, ...]) -> None:
    """The accumulator times its multiplier, as floats or as codes."""
    (multiplier,) = node.multipliers(builder.graph.input_types(node))
    factor = multiplier.single.reshape(1, -1, *space) if multiplier.single.ndim else multiplier.single
    if isinstance(node.type, FloatType):
        builder.add("Mul", [total, builder.constant(f"{node.name}:accumulator.scale", factor.numpy())], node.name)
    else:
        _requantize(builder, total, factor, node)


@LOWERINGS(GlobalAveragePool)
def _global_average(builder: Builder, node: GlobalAveragePool) -> None:
    types = builder.graph.input_types(node)
    axes = builder.integers(f"{node.name}:axes", list(range(2, len(node.shape_of()) + 1)))
    total = builder.add("ReduceSum", [node.inputs[0], axes], f"{node.name}:sum", keepdims=1)
    _requantize(builder, total, node.multipliers(types)[0].single, node)


@LOWERINGS(AveragePool)
def _average(builder: Builder, node: AveragePool) -> None:
    types, channels = builder.graph.input_types(node), node.shape_of()[0]
    ones = builder.constant(f"{node.name}:ones", np.ones((channels, 1, *node.kernel), np.float32))
    attributes = {"kernel_shape": list(node.kernel), "strides": list(node.stride), "pads": pads(node.padding)}
    total = builder.add("Conv", [node.inputs[0], ones], f"{node.name}:sum", group=channels, **attributes)
    _requantize(builder, total, node.multipliers(types)[0].single, node)


@LOWERINGS(Resample)
def _resample(builder: Builder, node: Resample) -> None:
    types = builder.graph.input_types(node)
    total = resampled(builder, node, node.inputs[0], types[0])
    # Not of one dimension: ONNX Runtime would move a scalar into the MatMul before it.
    _requantize(builder, total, node.multipliers(types)[0].single.reshape(1, 1), node)


@LOWERINGS(Requantize)
def _change_grid(builder: Builder, node: Requantize) -> None:
    types = builder.graph.input_types(node)
    _requantize(builder, node.inputs[0], node.multipliers(types)[0].single, node)


@LOWERINGS(ZeroPadding)
def _pad(builder: Builder, node: ZeroPadding) -> None:
    (x,) = builder.graph.input_types(node)
    sizes = builder.integers(f"{node.name}:pads", pads(((0, 0), *node.sizes(known_shape(x)))))
    builder.add("Pad", [node.inputs[0], sizes], node.name)


@LOWERINGS(Softmax)
def _softmax(builder: Builder, node: Softmax) -> None:
    largest = reduced(builder, "ReduceMax", node.inputs[0], node, f"{node.name}:largest")
    difference = builder.add("Sub", [largest, *node.inputs], f"{node.name}:difference")
    _rounded_quant(builder, softmax(builder, node, difference), node)


@LOWERINGS(MaskedSoftmax)
def _masked_softmax(builder: Builder, node: MaskedSoftmax) -> None:
    x = builder.graph.input_types(node)[0]
    low = builder.constant(f"{node.name}:lowest", np.float32(x.qn - x.zero_point))
    _rounded_quant(builder, masked_softmax(builder, node, low), node)


@LOWERINGS(Normalize)
def _normalize(builder: Builder, node: Normalize) -> None:
    (x,), n = builder.graph.input_types(node), in_blocks(builder, node)
    _rounded_quant(builder, normalized(builder, node, n, reach(x)), node)


@LOWERINGS(Constant)
def _constant(builder: Builder, node: Constant) -> None:
    y = node.codes_of()
    steps = builder.constant(
        f"{node.name}:constant", node.codes.numpy().astype(np.float32)[None] - np.float32(y.zero_point)
    )
    _quant(builder, builder.for_every_sample(steps, node.codes.ndim + 1, f"{node.name}:repeated"), node.name, y)


@LOWERINGS(Reduce)
def _reduce(builder: Builder, node: Reduce) -> None:
    types = builder.graph.input_types(node)
    check_exact(node, types)
    axes = builder.integers(f"{node.name}:axes", list(node.axes))
    total = builder.add("ReduceSum", [node.inputs[0], axes], f"{node.name}:sum", keepdims=int(node.keepdim))
    _requantize(builder, total, node.multipliers(types)[0].single, node)


@LOWERINGS(MatMul)
def _matrix_product(builder: Builder, node: MatMul) -> None:
    types = builder.graph.input_types(node)
    check_exact(node, types)
    total, factor = (
        builder.add("MatMul", operands(builder, node), f"{node.name}:sum"),
        node.multipliers(types)[0].single,
    )
    if isinstance(node.type, FloatType):
        builder.add("Mul", [total, builder.constant(f"{node.name}:accumulator.scale", factor.numpy())], node.name)
    else:
        _requantize(builder, total, factor, node)


@LOWERINGS(Embedding)
def _embedding(builder: Builder, node: Embedding) -> None:
    y = node.codes_of()
    rows = builder.constant(f"{node.name}:rows", node.codes.numpy().astype(np.float32) - np.float32(y.zero_point))
    real = builder.add("Gather", [rows, *node.inputs], f"{node.name}:value", axis=0)
    _quant(builder, real, node.name, y)


@LOWERINGS(Elementwise)
def _elementwise(builder: Builder, node: Elementwise) -> None:
    real = node.in_floats(FloatOperators(builder, node), operands(builder, node), builder.graph.input_types(node))
    _rounded_quant(builder, real, node)


@LOWERINGS(Lookup)
def _look_up(builder: Builder, node: Lookup) -> None:
    _from_table(builder, node, node.table.numpy(), np.zeros((), np.float32))


@LOWERINGS(LookupPerChannel)
def _look_up_per_channel(builder: Builder, node: LookupPerChannel) -> None:
    """All tables one after the other; a channel's index begins where its table does."""
    channels, entries = node.tables.shape
    first = np.arange(channels, dtype=np.float32).reshape(-1, *[1] * (len(node.shape_of()) - 1)) * entries
    _from_table(builder, node, node.tables.numpy().flatten(), first.astype(np.float32))


def _from_table(builder: Builder, node: Node, table: np.ndarray, first: np.ndarray) -> None:
    """A Gather from a table of codes, by the input's code less the lowest, from `first` on."""
    (x,), y = builder.graph.input_types(node), node.codes_of()
    values = table.astype(np.float32) - np.float32(y.zero_point)
    shift = builder.constant(f"{node.name}:shift", np.float32(x.zero_point - x.qn) + first)
    shifted = builder.add("Add", [node.inputs[0], shift], f"{node.name}:shifted")
    if not x.has_integer_zero_point:  # then the sum is whole but for its rounding, and a Cast would cut it off
        shifted = builder.add("Round", [shifted], f"{node.name}:place")
    index = builder.add("Cast", [shifted], f"{node.name}:index", to=TensorProto.INT64)
    places = builder.constant(f"{node.name}:table", values)
    _quant(builder, builder.add("Gather", [places, index], f"{node.name}:value", axis=0), node.name, y)


# ---------------------------------------------------------------- two tensors


def _clip(real: Tensor, y: TensorType) -> Tensor:
    """What Quant makes of a float32 value that holds the zero point already."""
    return real.round().clamp(y.qn, y.qp)


@LOWERINGS(Add)
def _write_add(builder: Builder, node: Add) -> None:
    name, y, (a, b) = node.name, node.codes_of(), builder.graph.input_types(node)
    first, second = pairs.steps(a)[:, None], pairs.steps(b)[None, :]

    def plain(r_a: Tensor, r_b: Tensor) -> Tensor:
        return _clip((first * r_a + second * r_b) + y.zero_point, y)

    factors = [m.single for m in node.multipliers([a, b])]
    if all(each.has_integer_zero_point for each in (a, b, y)):
        expected = pairs.sums(node, a, b)
        factors = pairs.near_factors(plain, factors, expected)
        if factors is None:
            _pair_table(builder, node, a, b, expected.numpy())
            return
    scaled = [
        builder.add("Mul", [each, builder.constant(f"{name}:factor_{side}", factor.numpy())], f"{name}:scaled_{side}")
        for side, each, factor in zip("ab", operands(builder, node), factors)
    ]
    _quant(builder, builder.add("Add", scaled, f"{name}:sum"), name, y)


@LOWERINGS(Multiply)
def _write_multiply(builder: Builder, node: Multiply) -> None:
    name, y, (a, b) = node.name, node.codes_of(), builder.graph.input_types(node)
    numbers = pairs.steps(a)[:, None] * pairs.steps(b)[None, :]

    def plain(m: Tensor) -> Tensor:
        return _clip(numbers * m + y.zero_point, y)

    factors = [m.single for m in node.multipliers([a, b])]
    if all(each.has_integer_zero_point for each in (a, b, y)):
        expected = pairs.products(node, a, b)
        factors = pairs.near_factors(plain, factors, expected)
        if factors is None:
            _pair_table(builder, node, a, b, expected.numpy())
            return
    total = builder.add("Mul", operands(builder, node), f"{name}:product")
    real = builder.add("Mul", [total, builder.constant(f"{name}:factor", factors[0].numpy())], f"{name}:scaled")
    _quant(builder, real, name, y)


def _pair_table(builder: Builder, node: Node, a: TensorType, b: TensorType, codes: np.ndarray) -> None:
    """The output code of every pair of input codes, by a Gather: exact where no float factors are."""
    name, y, rows = node.name, node.codes_of(), []
    for side, each, kind, size in zip("ab", operands(builder, node), (a, b), (codes.shape[1], 1)):
        shift = builder.constant(f"{name}:shift_{side}", np.float32(kind.zero_point - kind.qn))
        place = builder.add("Add", [each, shift], f"{name}:place_{side}")
        stride = builder.constant(f"{name}:stride_{side}", np.float32(size))
        rows.append(builder.add("Mul", [place, stride], f"{name}:row_{side}"))
    index = builder.add("Cast", [builder.add("Add", rows, f"{name}:pair")], f"{name}:index", to=TensorProto.INT64)
    table = builder.constant(f"{name}:table", (codes - y.zero_point).astype(np.float32).flatten())
    _quant(builder, builder.add("Gather", [table, index], f"{name}:value", axis=0), name, y)
