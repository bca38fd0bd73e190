"""What the ONNX formats share: an integer graph as ONNX operators between QuantizeLinear and DequantizeLinear.

Codes travel as unsigned bytes, u = code + offset (offset 2^(bits−1) for signed codes): QuantizeLinear(uint8), then
Clip(uint8, lowest, highest) where fewer than 8 bits are in use, then DequantizeLinear. Runtimes fuse the float operator between
the two into an integer kernel; what is written is exact in those kernels, with the arithmetic that `ir` states.
Where an operation only moves or looks up codes it works on the bytes themselves, so that no float is involved at all.

The byte tensor that holds a node's codes carries the node's name; every other name has a colon in it.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, TensorProto, helper

from lowbit.errors import LowbitError
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
    Weight,
)

OPSET = 21  # the first with 4-bit tensors
OPSET_INT2 = 25  # the first with 2-bit tensors


def build(graph: Graph, *, packed: bool) -> ModelProto:
    """The ONNX model of a validated graph, with a free batch dimension, opset 21 (25 where INT2 tensors are in it)."""
    builder = Builder(graph, packed)
    for node in graph.nodes:
        _write_node(builder, node)
    output = graph.by_name[graph.output]
    result = graph.output
    if isinstance(output.type, TensorType):
        result = _dequantize(builder, graph.output)
    smallest = min((n.weight.bits for n in graph.nodes if isinstance(n, Convolution | Linear)), default=8)
    opset = OPSET_INT2 if packed and smallest <= 2 else OPSET
    return builder.done(
        [helper.make_tensor_value_info(graph.input, TensorProto.FLOAT, ["N", *graph.input_shape])],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["N", *output.type.shape])],
        {"": opset},
    )


def _zero(kind: TensorType) -> np.ndarray:
    return np.uint8(kind.zero_point + kind.carrier_offset)


def _scale(builder: Builder, name: str, kind: TensorType) -> list[str]:
    """Names of scale and zero point of a tensor of codes."""
    scale = builder.constant(f"{name}:scale", np.float32(kind.scale))
    return [scale, builder.constant(f"{name}:zero_point", _zero(kind))]


def _dequantize(builder: Builder, name: str) -> str:
    """The float tensor of a node's codes."""
    if name not in builder.dequantized:
        kind = builder.graph.by_name[name].type
        inputs = [name, *_scale(builder, name, kind)]
        builder.dequantized[name] = builder.add("DequantizeLinear", inputs, f"{name}:real")
    return builder.dequantized[name]


def _quantize(builder: Builder, real: str, node: Node) -> None:
    """QuantizeLinear, and Clip where the codes use only a part of the byte."""
    kind = node.type
    low, high = kind.qn + kind.carrier_offset, kind.qp + kind.carrier_offset
    scale = _scale(builder, node.name, kind)
    if (low, high) == (0, 255):
        builder.add("QuantizeLinear", [real, *scale], node.name)
        return
    byte = builder.add("QuantizeLinear", [real, *scale], f"{node.name}:byte")
    ends = [builder.constant(f":{end}", np.uint8(end)) for end in (low, high)]
    builder.add("Clip", [byte, *ends], node.name)


def _weight_bytes(weight: Weight, x: TensorType) -> tuple[np.ndarray, int]:
    """Weight codes as int8 with zero point 0, or as uint8 with zero point 128, where int8 would not be exact everywhere.

    x86-64 processors without VNNI multiply unsigned by signed bytes with an instruction (vpmaddubsw) that adds two products
    in 16 bits and saturates: ONNX Runtime 1.31 gave 64,289 of 65,536 codes of an 8-by-8-bit layer wrong, by up to 67, on one
    with AVX2 alone. Two products pass 16 bits only from 8 by 8 bits on; with uint8 weights other instructions are used,
    which do not saturate (0 of 65,536 wrong).
    """
    codes = weight.codes.numpy()
    largest = int(np.abs(codes.astype(np.int16)).max())
    highest = max(x.qp, x.zero_point) + x.carrier_offset  # padding holds the zero point, which may be no code
    if 2 * largest * highest <= 2**15 - 1:
        return codes, 0
    return (codes.astype(np.int16) + 128).astype(np.uint8), 128


def _write_weight(builder: Builder, node: Convolution | Linear, x: TensorType) -> tuple[str, np.generic]:
    """Name of a layer's weight codes as a byte tensor (a constant, or the Cast of a packed one), and their zero point."""
    name, weight = f"{node.name}:weight", node.weight
    if builder.packed and weight.bits <= 4:
        small = builder.packed_constant(f"{name}.packed", weight.codes.numpy(), 2 if weight.bits <= 2 else 4)
        codes, zero = builder.add("Cast", [small], name, to=TensorProto.INT8), np.int8(0)
    else:
        values, offset = _weight_bytes(weight, x)
        codes, zero = builder.constant(name, values), values.dtype.type(offset)
    return codes, zero


def _write_layer(builder: Builder, node: Convolution | Linear) -> None:
    x = builder.graph.by_name[node.inputs[0]].type
    if isinstance(node, Convolution) and isinstance(node.type, FloatType):
        _write_float_convolution(builder, node, x)
        return
    codes, zero = _write_weight(builder, node, x)
    name, scale = f"{node.name}:weight", node.weight.scale.numpy()
    axis = {"axis": 0} if scale.ndim else {}
    scales = [
        builder.constant(f"{name}.scale", scale),
        builder.constant(f"{name}.zero_point", np.full(scale.shape, zero, zero.dtype)),
    ]
    inputs = [
        _dequantize(builder, node.inputs[0]),
        builder.add("DequantizeLinear", [codes, *scales], f"{name}.real", **axis),
    ]
    if node.bias is not None:
        bias = [
            builder.constant(f"{node.name}:bias", node.bias.numpy()),
            builder.constant(f"{node.name}:bias.scale", np.float32(x.scale) * scale),
        ]
        inputs.append(builder.add("DequantizeLinear", bias, f"{node.name}:bias.real", **axis))
    real = node.name if isinstance(node.type, FloatType) else f"{node.name}:float"
    if isinstance(node, Linear):
        builder.add("Gemm", inputs, real, transB=1)
    else:
        builder.add("Conv", inputs, real, **conv_attributes(node))
    if isinstance(node.type, TensorType):
        _quantize(builder, real, node)


def _write_float_convolution(builder: Builder, node: Convolution, x: TensorType) -> None:
    """ConvInteger, bias and scale as nodes: runtimes have no integer convolution with a float output to fuse to."""
    name, ones = node.name, (1,) * (node.weight.codes.ndim - 2)
    codes, zero = _write_weight(builder, node, x)
    zeros = [_scale(builder, node.inputs[0], x)[1], builder.constant(f"{name}:weight.zero_point", np.asarray(zero))]
    total = builder.add("ConvInteger", [node.inputs[0], codes, *zeros], f"{name}:sum", **conv_attributes(node))
    if node.bias is not None:
        bias = builder.constant(f"{name}:bias", node.bias.numpy().reshape(1, -1, *ones))
        total = builder.add("Add", [total, bias], f"{name}:accumulator")
    scale = (np.float32(x.scale) * node.weight.scale.numpy()).reshape(1, -1, *ones)
    real = builder.add("Cast", [total], f"{name}:float", to=TensorProto.FLOAT)
    builder.add("Mul", [real, builder.constant(f"{name}:accumulator.scale", scale)], name)


def _write_ones(builder: Builder, node: AveragePool | Requantize) -> None:
    """A depthwise convolution with weights of 1 and scale 1 / window size: an average pool, or (window 1) a change of grid.

    Runtimes' integer average pools go by way of floats, and a QuantizeLinear after a DequantizeLinear does too; a
    convolution's arithmetic is the one that `ir` states for both.
    """
    x, name = builder.graph.by_name[node.inputs[0]].type, f"{node.name}:ones"
    pool = isinstance(node, AveragePool)
    kernel = list(node.kernel) if pool else [1] * (len(x.shape) - 1)
    inputs = [
        builder.constant(name, np.ones((x.shape[0], 1, *kernel), np.int8)),
        builder.constant(f"{name}.scale", np.float32(1) / np.float32(math.prod(kernel))),
        builder.constant(f"{name}.zero_point", np.int8(0)),
    ]
    ones = builder.add("DequantizeLinear", inputs, f"{name}.real")
    attributes = {"strides": list(node.stride), "pads": pads(node.padding)} if pool else {}
    operands = [_dequantize(builder, node.inputs[0]), ones]
    real = builder.add("Conv", operands, f"{node.name}:float", kernel_shape=kernel, group=x.shape[0], **attributes)
    _quantize(builder, real, node)


def _requantize_table(x: TensorType, y: TensorType) -> np.ndarray:
    """`ir.Requantize` over every code of x, as codes of y (for flat features, which have no convolution)."""
    steps = np.arange(x.qn, x.qp + 1, dtype=np.float32) - np.float32(x.zero_point)
    steps = np.rint(steps * (np.float32(x.scale) / np.float32(y.scale))) + np.float32(y.zero_point)
    return np.clip(steps, y.qn, y.qp).astype(np.int16)


def _write_table(builder: Builder, node: Node, x: TensorType, table: np.ndarray) -> None:
    """A Gather from a table of bytes, by the input's byte."""
    y = node.type
    low = x.qn + x.carrier_offset
    values = np.concatenate([np.repeat(table[:1], low), table])  # a narrow grid's bytes start at 1
    values = builder.constant(f"{node.name}:table", (values + y.carrier_offset).astype(np.uint8))
    index = builder.add("Cast", [node.inputs[0]], f"{node.name}:index", to=TensorProto.INT32)
    builder.add("Gather", [values, index], node.name, axis=0)


def _write_node(builder: Builder, node: Node) -> None:
    name, inputs = node.name, list(node.inputs)
    x = builder.graph.by_name[inputs[0]].type if inputs[0] in builder.graph.by_name else None
    if isinstance(node, Quantize):
        _quantize(builder, inputs[0], node)
    elif isinstance(node, Convolution | Linear):
        _write_layer(builder, node)
    elif isinstance(node, Add | Multiply):
        reals = [_dequantize(builder, each) for each in inputs]
        _quantize(builder, builder.add("Add" if isinstance(node, Add) else "Mul", reals, f"{name}:float"), node)
    elif isinstance(node, GlobalAveragePool):
        _quantize(builder, builder.add("GlobalAveragePool", [_dequantize(builder, inputs[0])], f"{name}:float"), node)
    elif isinstance(node, AveragePool) or (isinstance(node, Requantize) and len(x.shape) > 1):
        _write_ones(builder, node)
    elif isinstance(node, Requantize):
        _write_table(builder, node, x, _requantize_table(x, node.type))
    elif isinstance(node, Lookup):
        _write_table(builder, node, x, node.table.numpy())
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
        sizes = [0, node.before, *[0] * (len(x.shape) - 1), 0, node.after, *[0] * (len(x.shape) - 1)]
        zero = builder.constant(f"{inputs[0]}:zero_point", _zero(x))
        builder.add("Pad", [*inputs, integers(builder, f"{name}:pads", sizes), zero], name)
    elif isinstance(node, ChannelShuffle):
        write_shuffle(builder, node, x.shape)
    else:
        raise LowbitError(f"node {name!r}: ONNX has no form of {type(node).__name__}")
