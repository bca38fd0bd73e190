"""An integer graph as LiteRT's operators on 8-bit tensors alone: for microcontrollers (TensorFlow Lite Micro) and NPUs.

Inputs and outputs are codes, as signed bytes with the channels last; every tensor has its real scale and zero point.
The arithmetic is that of the rounding "double-rounding" in kernels that compute as TensorFlow Lite's reference kernels
do. LiteRT's default delegate XNNPACK computes otherwise.

    convolution, linear         CONV_2D, DEPTHWISE_CONV_2D
    average pool                DEPTHWISE_CONV_2D of ones
    global average, mean, sum   MEAN, SUM
    addition, subtraction       ADD, SUB
    product                     MUL
    matrix product              BATCH_MATMUL
    change of grid              QUANTIZE
    what moves codes, tables    as in files of floats
    range of fewer than 8 bits  MINIMUM and MAXIMUM
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Operator
from ai_edge_litert.schema_py_generated import TensorType as Type
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.formats import xnnpack
from lowbit.formats.litert.builder import INTEGERS, Builder, layout, quantization
from lowbit.formats.litert.windows import weight_codes, window
from lowbit.formats.xnnpack import FoldedLayer, zero_byte
from lowbit.integer.arithmetic import Multiplier, f32, significand_and_exponent
from lowbit.integer.graph import FloatType, Graph, Node, Shape, TensorType, known_shape
from lowbit.integer.ops import (
    Add,
    AveragePool,
    Convolution,
    GlobalAveragePool,
    Linear,
    MatMul,
    Multiply,
    Quantize,
    Reduce,
    Requantize,
    Subtract,
)
from lowbit.integer.ops.layer import Layer
from lowbit.integer.roundings import DOUBLE, SUM_SHIFT, tflite_sum

_INT4_VERSIONS = {Operator.CONV_2D: 7, Operator.DEPTHWISE_CONV_2D: 6}


class IntegerBuilder(Builder):
    """Collects a file of codes.

    Args:
        graph: what is written; no output of it is a float.
        int4: store weights of at most 4 bits two to a byte.

    Attributes:
        pictures: the tensors of flat features as one position of that many channels, by the name of their node.
    """

    def __init__(self, graph: Graph, *, int4: bool) -> None:
        super().__init__(graph)
        self._int4 = int4
        self.pictures: dict[str, int] = {}

    def grid(self, y: TensorType) -> schema.QuantizationParametersT:
        return quantization([y.scale], [zero_byte(y)])

    def weight(self, operator: int, codes: np.ndarray, bits: int, scale: list[float], axis: int) -> int:
        """A constant of weights, for an operator: in bytes also where a negative scale has turned −8 to 8."""
        kind = quantization(scale, [0] * len(scale), axis)
        if not self._int4 or bits > 4 or codes.max() > 7:
            return self.constant(codes, kind)
        self.versions[operator] = _INT4_VERSIONS.get(operator, self.versions[operator])
        flat = np.append(codes.reshape(-1), np.zeros(codes.size % 2, np.int8)).astype(np.uint8)
        return self.stored((flat[::2] & 15) | (flat[1::2] << 4), codes.shape, Type.INT4, kind)


def build(graph: Graph, *, int4: bool = False) -> bytes:
    """The file's content for a validated graph.

    Args:
        graph: what is written; no output of it is a float.
        int4: store weights of at most 4 bits two to a byte.

    Raises:
        LowbitError: something in it has no exact form; the message names the node.
    """
    builder = IntegerBuilder(graph, int4=int4)
    for node in graph.nodes:
        if isinstance(node.type, FloatType):
            raise LowbitError(f"node {node.name!r}: a file of codes has no float output: give it a grid")
        if len(node.shape_of()) > 3:
            raise LowbitError(f"node {node.name!r}: LiteRT's file holds one and two spatial dimensions, not three")
        INTEGERS.of(node)(builder, node)
    inputs = [builder.values[node.name] for node in graph.nodes if isinstance(node, Quantize)]
    return builder.done(inputs, [builder.values[name] for name in graph.outputs])


@INTEGERS(Quantize)
def _input(builder: IntegerBuilder, node: Quantize) -> None:
    y = node.codes_of()
    builder.values[node.name] = builder.tensor(node.name, layout(node.shape_of()), Type.INT8, builder.grid(y))


# ---------------------------------------------------------------- layers


@INTEGERS(Convolution)
def _convolution(builder: IntegerBuilder, node: Convolution) -> None:
    (x,) = builder.inputs(node)
    _layer(builder, node, node.weight.codes, xnnpack.geometry(node), x, layout(node.shape_of()))


@INTEGERS(Linear)
def _linear(builder: IntegerBuilder, node: Linear) -> None:
    """A convolution over one position: LiteRT's FULLY_CONNECTED rounds in floats, TensorFlow Lite Micro's does not."""
    if len(node.shape_of()) > 1:
        raise LowbitError(
            f"node {node.name!r}: LiteRT's fully connected layer is written for flat features, not {node.shape_of()}"
        )
    once, (name,) = (1, 1), node.inputs
    if name not in builder.pictures:
        flat = builder.values[name]
        picture = builder.like(flat, f"{name}:picture", (*once, *builder.shape(flat)))
        builder.pictures[name] = builder.reshape(flat, picture)
    codes = node.weight.codes.reshape(*node.weight.codes.shape, 1, 1)
    where = {"stride": once, "padding": ((0, 0),) * 2, "dilation": once}
    picture = _layer(builder, node, codes, where, builder.pictures[name], (*once, len(codes)))
    builder.pictures[node.name] = picture
    others = [user for user in builder.graph.nodes if node.name in user.inputs and not isinstance(user, Linear)]
    if others or node.name in builder.graph.outputs:
        flat = builder.like(picture, f"{node.name}:flat", (len(codes),))
        builder.values[node.name] = builder.reshape(picture, flat)


def _layer(builder: IntegerBuilder, node: Layer, codes: Tensor, where: Mapping[str, Any], x: int, shape: Shape) -> int:
    scale = node.weight.scale.expand(len(codes)).clone()
    codes, scale, bias = xnnpack.with_positive_scales(node, codes, scale, node.bias)
    return _written(builder, node, FoldedLayer(codes, scale, bias, **where), x, shape, node.weight.bits)


def _written(builder: IntegerBuilder, node: Node, layer: FoldedLayer, x: int, shape: Shape, bits: int = 8) -> int:
    """The codes of a layer whose scales are those of its weights, of x, in a tensor of this shape."""
    (kind,), (m,) = builder.graph.input_types(node), node.multipliers(builder.graph.input_types(node))
    _check_shift(node, m, node.accumulator_bound([kind]))
    operator, x, axis, options = window(builder, node, layer, x)
    weight = builder.weight(operator, weight_codes(layer), bits, layer.scale.tolist(), axis)
    bias = torch.zeros(len(layer.codes), dtype=torch.int32) if layer.bias is None else layer.bias
    unit = (layer.scale * f32(kind.scale)).tolist()
    inputs = [x, weight, builder.constant(bias.numpy(), quantization(unit, [0] * len(unit)))]
    builder.codes(node, operator, inputs, options, clip=True, shape=shape)
    return builder.values[node.name]


@INTEGERS(AveragePool)
def _average_pool(builder: IntegerBuilder, node: AveragePool) -> None:
    (x,) = builder.graph.input_types(node)
    channels = known_shape(x)[0]
    ones = torch.ones(channels, 1, *node.kernel, dtype=torch.int8)
    share = (1 / torch.tensor(float(np.prod(node.kernel)))).expand(channels)
    once = (1,) * len(node.kernel)
    where = {"stride": node.stride, "padding": node.padding, "dilation": once, "groups": channels}
    (value,) = builder.inputs(node)
    _written(builder, node, FoldedLayer(ones, share, None, **where), value, layout(node.shape_of()))


# ---------------------------------------------------------------- sums, products, changes of grid


@INTEGERS(GlobalAveragePool)
def _global_average_pool(builder: IntegerBuilder, node: GlobalAveragePool) -> None:
    _check(builder, node)
    axes = builder.integers(range(1, len(layout(node.shape_of()))))
    builder.codes(node, Operator.MEAN, [*builder.inputs(node), axes], schema.ReducerOptionsT(True), clip=True)


@INTEGERS(Reduce)
def _reduce(builder: IntegerBuilder, node: Reduce) -> None:
    _check(builder, node)
    if node.function != "mean":
        raise LowbitError(
            f"node {node.name!r}: LiteRT's reference kernel of SUM does not change the grid, as TensorFlow Lite "
            "Micro's does; means are exact in both"
        )
    inputs = [builder.plain(node.inputs[0]), builder.integers(node.axes)]
    builder.codes(node, Operator.MEAN, inputs, schema.ReducerOptionsT(node.keepdim), clip=True, shape=node.shape_of())
    builder.in_layout(node, builder.values[node.name])


@INTEGERS(Add, Subtract)
def _sum(builder: IntegerBuilder, node: Add | Subtract) -> None:
    factors, y = node.multipliers(builder.graph.input_types(node)), node.codes_of()
    *_, (_, exponent) = tflite_sum(factors, y)
    if int(exponent) > 0:
        raise LowbitError(
            f"node {node.name!r}: one step of its inputs is {max(abs(float(m.exact)) for m in factors):g} steps of "
            f"its output; LiteRT takes less than 2^{SUM_SHIFT - 1}: calibrate the network again"
        )
    operator, options = (
        (Operator.ADD, schema.AddOptionsT()) if isinstance(node, Add) else (Operator.SUB, schema.SubOptionsT())
    )
    builder.codes(node, operator, _operands(builder, node), options, clip=True)


@INTEGERS(Multiply)
def _product(builder: IntegerBuilder, node: Multiply) -> None:
    _check(builder, node)
    (m,) = node.multipliers(builder.graph.input_types(node))
    _check_single(builder, node, m, m.single.to(torch.float64) * node.codes_of().scale)
    builder.codes(node, Operator.MUL, _operands(builder, node), schema.MulOptionsT(), clip=True)


def _operands(builder: IntegerBuilder, node: Node) -> list[int]:
    return [builder.aligned(node, name, builder.values[name]) for name in node.inputs]


@INTEGERS(MatMul)
def _matrix_product(builder: IntegerBuilder, node: MatMul) -> None:
    _check(builder, node)
    (m,), (a, b) = node.multipliers(builder.graph.input_types(node)), builder.graph.input_types(node)
    _check_single(builder, node, m, (f32(a.scale) * f32(b.scale)).to(torch.float64))
    rank = len(node.shape_of())
    operands = [builder.with_rank(builder.plain(name), rank, f"{node.name}:{name}") for name in node.inputs]
    builder.codes(node, Operator.BATCH_MATMUL, operands, schema.BatchMatMulOptionsT(), clip=True, shape=node.shape_of())
    builder.in_layout(node, builder.values[node.name])


@INTEGERS(Requantize)
def _requantize(builder: IntegerBuilder, node: Requantize) -> None:
    _check(builder, node)
    builder.codes(node, Operator.QUANTIZE, builder.inputs(node), schema.QuantizeOptionsT(), clip=True)


def _check(builder: IntegerBuilder, node: Node) -> None:
    """Raise LowbitError where LiteRT's numbers would pass 32 bits."""
    for m in node.multipliers(builder.graph.input_types(node)):
        _check_shift(node, m, _bound(builder, node))


def _check_single(builder: IntegerBuilder, node: Node, m: Multiplier, unit: Tensor) -> None:
    """Raise LowbitError where LiteRT's `unit`, a product in float32, gives other codes than one in float64.

    TensorFlow Lite Micro's is in float64.
    """
    y, bound = node.codes_of(), _bound(builder, node)
    if not torch.equal(*(_thresholds(replace(m, unit=each), y, bound) for each in (m.unit, unit))):
        raise LowbitError(
            f"node {node.name!r}: LiteRT multiplies the scales of a product in float32 and TensorFlow Lite Micro in "
            "float64, and with "
            "these scales their codes differ where a product lies half-way between two: calibrate the network again"
        )


def _thresholds(m: Multiplier, y: TensorType, bound: int) -> Tensor:
    """For every code but the lowest the least accumulator that gives it or a higher one, by bisection."""
    codes = torch.arange(y.qn + 1, y.qp + 1)
    low, high = torch.full_like(codes, -bound - 1), torch.full_like(codes, bound + 1)
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        reached = DOUBLE.requantize(middle, m, y).to(torch.int64) >= codes
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return high


def _bound(builder: IntegerBuilder, node: Node) -> int:
    return node.accumulator_bound(builder.graph.input_types(node))


def _check_shift(node: Node, m: Multiplier, bound: int) -> None:
    _, exponent = significand_and_exponent(m.unit / node.codes_of().scale, m.count)
    if bound << max(0, int(exponent.max())) >= 1 << 31:
        raise LowbitError(
            f"node {node.name!r}: its accumulator can reach {bound}, and one step of it is "
            f"{float(m.exact.abs().max()):g} steps of "
            "its output: LiteRT's numbers would pass 32 bits; calibrate the network again"
        )
