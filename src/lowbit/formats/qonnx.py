"""QONNX, for FINN, hls4ml and what else reads it: Quant nodes of any width around float operators.

Domain qonnx.custom_op.general, version 1; its Quant computes rint(clip(x / scale + zero_point)), half to even, and gives
scale · (that − zero_point). The graph is written with every scale beside the operators, as Mul nodes, and every Quant with scale
1, so that the values between nodes are the whole numbers code − zero_point: sums of products are then exact in float32 (as
long as they stay below 2^24), the factor before each Quant is the requantization's float32 multiplier, and a float executor
gives the integer reference's codes. The tensor of a node carries the node's name.

Additions and products of two tensors have a rounding of their own in the reference (`ir.Add`, `ir.Multiply`). Their factors are
moved by a few units in the last place where that makes the plain float operators give the same code for every pair of
input codes, which is tried out here for all of them; where no such factors exist, the operation is written as a table.

Zero points may be fractions (LSQ+ offsets as trained). Then values are no whole numbers and equality with an integer reference
has no meaning.
"""

from __future__ import annotations

import math
import os

import numpy as np
from onnx import ModelProto, TensorProto, helper, save
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.files import atomic_write
from lowbit.formats import pairs
from lowbit.formats.builder import Builder, conv_attributes, integers, pads, write_shuffle
from lowbit.integer.ir import (
    Add,
    AveragePool,
    ChannelShuffle,
    Concatenate,
    Convolution,
    FloatType,
    GlobalAveragePool,
    Graph,
    Linear,
    Lookup,
    MaxPool,
    Multiply,
    Node,
    PadChannels,
    Quantize,
    Requantize,
    Reshape,
    Slice,
    TensorType,
)

DOMAIN = "qonnx.custom_op.general"
OPSET = 13  # what QONNX's own transformations are written for


def build(graph: Graph) -> ModelProto:
    """The checked model of a validated graph (`check.validate`, fractional zero points allowed)."""
    builder = Builder(graph)
    for node in graph.nodes:
        _write_node(builder, node)
    output, result = graph.by_name[graph.output], graph.output
    if isinstance(output.type, TensorType):
        scale = builder.constant(f"{result}:scale", np.float32(output.type.scale))
        result = builder.add("Mul", [result, scale], f"{result}:real")
    return builder.done(
        [helper.make_tensor_value_info(graph.input, TensorProto.FLOAT, ["N", *graph.input_shape])],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["N", *output.type.shape])],
        {"": OPSET, DOMAIN: 1},
    )


def write(graph: Graph, path: str | os.PathLike) -> None:
    """Write a validated graph to `path`."""
    model = build(graph)
    with atomic_write(path) as temporary:
        save(model, temporary)


def _quant(builder: Builder, real: str, output: str, kind: TensorType) -> str:
    """Quant with scale 1 on the grid of `kind`: the values code − zero_point."""
    inputs = [
        real,
        builder.constant(":one", np.float32(1)),
        builder.constant(f":zero_point_{kind.zero_point}", np.float32(kind.zero_point)),
        builder.constant(f":bits_{kind.bits}", np.float32(kind.bits)),
    ]
    attributes = {"signed": int(kind.signed), "narrow": int(kind.narrow), "rounding_mode": "ROUND"}
    return builder.add("Quant", inputs, output, domain=DOMAIN, **attributes)


def _requantize(builder: Builder, total: str, factor: np.ndarray, node: Node) -> None:
    """Quant(factor · total), rounded before the zero point is added, as `ir.requant` does: it decides ties."""
    name = node.name
    real = builder.add("Mul", [total, builder.constant(f"{name}:factor", factor)], f"{name}:scaled")
    if node.type.zero_point and node.type.is_whole:
        real = builder.add("Round", [real], f"{name}:rounded")
    _quant(builder, real, name, node.type)


def _write_layer(builder: Builder, node: Convolution | Linear, x: TensorType) -> None:
    name, weight = node.name, node.weight
    codes = weight.codes.numpy().astype(np.float32)
    raw = builder.constant(f"{name}:weight", codes.T if isinstance(node, Linear) else codes)
    if weight.bits == 1:
        one = builder.constant(":one", np.float32(1))
        quantized = builder.add("BipolarQuant", [raw, one], f"{name}:weight.quantized", domain=DOMAIN)
    else:
        quantized = _quant(builder, raw, f"{name}:weight.quantized", TensorType(1.0, 0, weight.bits, True))
    total = f"{name}:sum"
    bias = None if node.bias is None else builder.constant(f"{name}:bias", node.bias.numpy().astype(np.float32))
    if isinstance(node, Linear):
        builder.add("MatMul", [node.inputs[0], quantized], total)
        if bias is not None:
            total = builder.add("Add", [total, bias], f"{name}:accumulator")
    else:
        operands = [node.inputs[0], quantized] + ([] if bias is None else [bias])
        builder.add("Conv", operands, total, **conv_attributes(node))
    scale = np.float32(x.scale) * weight.scale.numpy()
    if scale.ndim:
        scale = scale.reshape(1, -1, *(1,) * (weight.codes.ndim - 2))
    if isinstance(node.type, FloatType):
        builder.add("Mul", [total, builder.constant(f"{name}:accumulator.scale", scale)], name)
    else:
        _requantize(builder, total, scale / np.float32(node.type.scale), node)


def _average(builder: Builder, node: AveragePool | GlobalAveragePool, x: TensorType) -> None:
    s_x, s_y, name = np.float32(x.scale), np.float32(node.type.scale), node.name
    if isinstance(node, GlobalAveragePool):
        axes = integers(builder, f"{name}:axes", list(range(2, len(x.shape) + 1)))
        total = builder.add("ReduceSum", [node.inputs[0], axes], f"{name}:sum", keepdims=1)
        factor = s_x / (s_y * np.float32(math.prod(x.shape[1:])))
    else:
        ones = builder.constant(f"{name}:ones", np.ones((x.shape[0], 1, *node.kernel), np.float32))
        attributes = {"kernel_shape": list(node.kernel), "strides": list(node.stride), "pads": pads(node.padding)}
        total = builder.add("Conv", [node.inputs[0], ones], f"{name}:sum", group=x.shape[0], **attributes)
        factor = s_x * (np.float32(1) / np.float32(math.prod(node.kernel))) / s_y
    _requantize(builder, total, factor, node)


def _look_up(builder: Builder, node: Lookup, x: TensorType) -> None:
    values = node.table.numpy().astype(np.float32) - np.float32(node.type.zero_point)
    shift = builder.constant(f"{node.name}:shift", np.float32(x.zero_point - x.qn))
    shifted = builder.add("Add", [node.inputs[0], shift], f"{node.name}:shifted")
    if not x.is_whole:  # then the sum is whole but for its rounding, and a Cast would cut it off
        shifted = builder.add("Round", [shifted], f"{node.name}:place")
    index = builder.add("Cast", [shifted], f"{node.name}:index", to=TensorProto.INT64)
    table = builder.constant(f"{node.name}:table", values)
    _quant(builder, builder.add("Gather", [table, index], f"{node.name}:value", axis=0), node.name, node.type)


# ---------------------------------------------------------------- two tensors


def _clip(real: Tensor, y: TensorType) -> Tensor:
    """What Quant makes of a float32 value that holds the zero point already."""
    return real.round().clamp(y.qn, y.qp)


def _write_add(builder: Builder, node: Add, a: TensorType, b: TensorType) -> None:
    name, y = node.name, node.type
    first, second = pairs.steps(a)[:, None], pairs.steps(b)[None, :]

    def plain(r_a: Tensor, r_b: Tensor) -> Tensor:
        return _clip((first * r_a + second * r_b) + y.zero_point, y)

    factors = list(pairs.sum_constants(node, a, b)[:2])
    if a.is_whole and b.is_whole and y.is_whole:
        expected = pairs.sums(node, a, b)
        factors = pairs.near_factors(plain, factors, expected)
        if factors is None:
            _pair_table(builder, node, a, b, expected.numpy())
            return
    scaled = [
        builder.add("Mul", [each, builder.constant(f"{name}:factor_{side}", factor.numpy())], f"{name}:scaled_{side}")
        for side, each, factor in zip("ab", node.inputs, factors)
    ]
    _quant(builder, builder.add("Add", scaled, f"{name}:sum"), name, y)


def _write_multiply(builder: Builder, node: Multiply, a: TensorType, b: TensorType) -> None:
    name, y = node.name, node.type
    numbers = pairs.steps(a)[:, None] * pairs.steps(b)[None, :]

    def plain(m: Tensor) -> Tensor:
        return _clip(numbers * m + y.zero_point, y)

    factors = [pairs.product_factor(node, a, b)]
    if a.is_whole and b.is_whole and y.is_whole:
        expected = pairs.products(node, a, b)
        factors = pairs.near_factors(plain, factors, expected)
        if factors is None:
            _pair_table(builder, node, a, b, expected.numpy())
            return
    total = builder.add("Mul", list(node.inputs), f"{name}:product")
    real = builder.add("Mul", [total, builder.constant(f"{name}:factor", factors[0].numpy())], f"{name}:scaled")
    _quant(builder, real, name, y)


def _pair_table(builder: Builder, node: Node, a: TensorType, b: TensorType, codes: np.ndarray) -> None:
    """The output code of every pair of input codes, by a Gather: exact where no float factors are."""
    name, index = node.name, None
    for side, each, kind, size in zip("ab", node.inputs, (a, b), (codes.shape[1], 1)):
        shift = builder.constant(f"{name}:shift_{side}", np.float32(kind.zero_point - kind.qn))
        place = builder.add("Add", [each, shift], f"{name}:place_{side}")
        stride = builder.constant(f"{name}:stride_{side}", np.float32(size))
        place = builder.add("Mul", [place, stride], f"{name}:row_{side}")
        index = place if index is None else builder.add("Add", [index, place], f"{name}:pair")
    index = builder.add("Cast", [index], f"{name}:index", to=TensorProto.INT64)
    table = builder.constant(f"{name}:table", (codes - node.type.zero_point).astype(np.float32).flatten())
    _quant(builder, builder.add("Gather", [table, index], f"{name}:value", axis=0), name, node.type)


def _write_node(builder: Builder, node: Node) -> None:
    name, inputs = node.name, list(node.inputs)
    types = [builder.graph.by_name[each].type for each in inputs if each in builder.graph.by_name]
    if isinstance(node, Quantize):
        scale = builder.constant(f"{name}:scale", np.float32(node.type.scale))
        real = builder.add("Div", [inputs[0], scale], f"{name}:scaled")
        if node.type.zero_point and node.type.is_whole:
            real = builder.add("Round", [real], f"{name}:rounded")
        _quant(builder, real, name, node.type)
    elif isinstance(node, Convolution | Linear):
        _write_layer(builder, node, *types)
    elif isinstance(node, Add):
        _write_add(builder, node, *types)
    elif isinstance(node, Multiply):
        _write_multiply(builder, node, *types)
    elif isinstance(node, AveragePool | GlobalAveragePool):
        _average(builder, node, *types)
    elif isinstance(node, Requantize):
        _requantize(builder, inputs[0], np.float32(types[0].scale) / np.float32(node.type.scale), node)
    elif isinstance(node, Lookup):
        _look_up(builder, node, *types)
    elif isinstance(node, Concatenate):
        builder.add("Concat", inputs, name, axis=1)
    elif isinstance(node, MaxPool):
        attributes = {"strides": list(node.stride), "pads": pads(node.padding), "dilations": list(node.dilation)}
        builder.add("MaxPool", inputs, name, kernel_shape=list(node.kernel), **attributes)
    elif isinstance(node, Reshape):
        builder.add("Reshape", [*inputs, integers(builder, f"{name}:shape", [-1, *node.type.shape])], name)
    elif isinstance(node, Slice):
        ends = zip(("start", "stop", "axis", "step"), (node.start, node.stop, node.axis, node.step))
        builder.add("Slice", [*inputs, *(integers(builder, f"{name}:{end}", [value]) for end, value in ends)], name)
    elif isinstance(node, PadChannels):
        sizes = [0, node.before, *[0] * (len(types[0].shape) - 1), 0, node.after, *[0] * (len(types[0].shape) - 1)]
        builder.add("Pad", [*inputs, integers(builder, f"{name}:pads", sizes)], name)
    elif isinstance(node, ChannelShuffle):
        write_shuffle(builder, node, types[0].shape)
    else:
        raise LowbitError(f"node {name!r}: QONNX has no form of {type(node).__name__}")
