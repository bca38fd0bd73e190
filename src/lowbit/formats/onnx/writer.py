"""An integer graph as ONNX operators between QuantizeLinear and DequantizeLinear.

Codes travel as unsigned bytes, u = code + offset (offset 2^(bits−1) for signed codes): QuantizeLinear(uint8), then
Clip(uint8, lowest, highest) where fewer than 8 bits are in use, then DequantizeLinear. Runtimes fuse the float operator
between the two into an integer kernel; what is written is exact in those kernels, with the arithmetic that each
operation states. Where an operation only moves or looks up codes it works on the bytes themselves, so that no float is
involved at all.

The byte tensor that holds a node's codes carries the node's name; every other name has a colon in it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from lowbit.errors import LowbitError
from lowbit.formats.onnx import sequences  # noqa: F401  # registers its operations
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
from lowbit.formats.onnx.codes import (
    LOWERINGS,
    accumulated,
    carrier,
    dequantize,
    grid,
    quantize,
    quantize_steps,
    reals,
    steps,
    zero_byte,
)
from lowbit.formats.onnx.tables import computed, write_table
from lowbit.integer.graph import FloatType, Graph, Node, TensorType, Weight, known_shape
from lowbit.integer.ops import (
    Add,
    AveragePool,
    Constant,
    Convolution,
    Embedding,
    GlobalAveragePool,
    Linear,
    Lookup,
    Multiply,
    Quantize,
    Requantize,
    SumOfProducts,
)
from lowbit.integer.ops.elementwise import Elementwise
from lowbit.integer.ops.layer import Layer
from lowbit.integer.ops.pad import ZeroPadding
from lowbit.integer.ops.resample import Resample
from lowbit.integer.roundings import ROUNDINGS

OPSET = 21  # the first with 4-bit tensors
OPSET_INT2 = 25  # the first with 2-bit tensors
register_moves(LOWERINGS)


def build(graph: Graph, *, packed: bool = False) -> ModelProto:
    """The ONNX model of a validated graph, with a free batch dimension, opset 21 (25 where INT2 tensors are in it)."""
    smallest = min((node.weight.bits for node in graph.nodes if isinstance(node, Layer)), default=8)
    opset = OPSET_INT2 if packed and smallest <= 2 else OPSET
    builder = Builder(graph, packed, opset)
    for node in graph.nodes:
        _check_width(graph, node)
        LOWERINGS.of(node)(builder, node)
    outputs = []
    for name in graph.outputs:
        node = graph.by_name[name]
        real = dequantize(builder, name) if isinstance(node.type, TensorType) else name
        outputs.append((real, node.shape_of()))
    return builder.done(outputs, {"": opset})


_WIDE = (SumOfProducts, Lookup, Requantize, Quantize, Constant)
"""Operations that codes of 16 bits go in or come out of, beside those that move them."""


def _check_width(graph: Graph, node: Node) -> None:
    """Raise LowbitError for an operation whose kernel knows bytes alone, on wider codes."""
    kinds = [*graph.input_types(node), node.type]
    if any(isinstance(kind, TensorType) and kind.bits > 8 for kind in kinds):
        if not (node.moves_codes or isinstance(node, _WIDE)):
            raise LowbitError(
                f"node {node.name!r}: ONNX has a form of {type(node).__name__} for codes of 8 bits: give its tensors "
                "8 bits by rules"
            )


def write(graph: Graph, path: Path, *, packed: bool = False) -> None:
    """Write a validated graph to `path`."""
    write_model(build(graph, packed=packed), path)


def _weight_bytes(weight: Weight, x: TensorType) -> tuple[np.ndarray, int]:
    """Weight codes as int8 with zero point 0, or as uint8 with 128, where int8 would not be exact everywhere.

    x86-64 processors without VNNI multiply unsigned by signed bytes with an instruction (vpmaddubsw) that adds two
    products in 16 bits and saturates: ONNX Runtime 1.31 gave 64,289 of 65,536 codes of an 8-by-8-bit layer wrong, by up
    to 67, on one with AVX2 alone. Two products pass 16 bits only from 8 by 8 bits on; with uint8 weights other
    instructions are used, which do not saturate (0 of 65,536 wrong).
    """
    codes = weight.codes.numpy()
    largest = int(np.abs(codes.astype(np.int16)).max())
    highest = max(x.qp, x.zero_point) + x.carrier_offset  # padding holds the zero point, which may be no code
    if 2 * largest * highest <= 2**15 - 1:
        return codes, 0
    return (codes.astype(np.int16) + 128).astype(np.uint8), 128


def _write_weight(builder: Builder, node: Layer, x: TensorType) -> tuple[str, np.generic]:
    """Name of a layer's weight codes as a byte tensor, and their zero point.

    The tensor is a constant, or the Cast of a packed one.
    """
    name, weight = f"{node.name}:weight", node.weight
    if builder.packed and weight.bits <= 4:
        small = builder.packed_constant(f"{name}.packed", weight.codes.numpy(), 2 if weight.bits <= 2 else 4)
        codes, zero = builder.add("Cast", [small], name, to=TensorProto.INT8), np.int8(0)
    else:
        values, offset = _weight_bytes(weight, x)
        codes, zero = builder.constant(name, values), values.dtype.type(offset)
    return codes, zero


@LOWERINGS(Convolution)
def _convolution(builder: Builder, node: Convolution) -> None:
    (x,) = builder.graph.input_types(node)
    if isinstance(node.type, FloatType):
        _write_float_convolution(builder, node, x)
    else:
        _write_layer(builder, node, x, "Conv", conv_attributes(node))


@LOWERINGS(Linear)
def _linear(builder: Builder, node: Linear) -> None:
    """A Gemm, which takes flat features.

    Leading dimensions are moved into the batch and back, on bytes where there are bytes.
    """
    (x,), (source,), shape = builder.graph.input_types(node), node.inputs, node.shape_of()
    if len(shape) == 1:
        _write_layer(builder, node, x, "Gemm", {"transB": 1})
        return
    flat = f"{source}:flat"
    if flat not in builder.reshaped:
        builder.reshape(source, known_shape(x)[-1:], flat)
        builder.reshaped.add(flat)
    made = replace(node, name=f"{node.name}:rows")
    _write_layer(builder, made, x, "Gemm", {"transB": 1}, flat)
    builder.reshape(made.name, shape, node.name)


def _write_layer(
    builder: Builder, node: Layer, x: TensorType, operator: str, attributes: dict, source: str | None = None
) -> None:
    """The operator between DequantizeLinear and QuantizeLinear; `source` holds the input's codes in another shape."""
    codes, zero = _write_weight(builder, node, x)
    name, scale = f"{node.name}:weight", node.weight.scale.numpy()
    axis = {"axis": 0} if scale.ndim else {}
    scales = [
        builder.constant(f"{name}.scale", scale),
        builder.constant(f"{name}.zero_point", np.full(scale.shape, zero, zero.dtype)),
    ]
    inputs = [
        dequantize(builder, node.inputs[0], source),
        builder.add("DequantizeLinear", [codes, *scales], f"{name}.real", **axis),
    ]
    if node.bias is not None:
        bias = [
            builder.constant(f"{node.name}:bias", node.bias.numpy()),
            builder.constant(f"{node.name}:bias.scale", node.output_scale(x).numpy()),
        ]
        inputs.append(builder.add("DequantizeLinear", bias, f"{node.name}:bias.real", **axis))
    real = node.name if isinstance(node.type, FloatType) else f"{node.name}:float"
    builder.add(operator, inputs, real, **attributes)
    if isinstance(node.type, TensorType):
        quantize(builder, real, node)


def _write_float_convolution(builder: Builder, node: Convolution, x: TensorType) -> None:
    """ConvInteger, bias and scale as nodes: runtimes have no integer convolution with a float output to fuse to."""
    name, ones = node.name, (1,) * (node.weight.codes.ndim - 2)
    codes, zero = _write_weight(builder, node, x)
    zeros = [grid(builder, node.inputs[0], x)[1], builder.constant(f"{name}:weight.zero_point", np.asarray(zero))]
    total = builder.add("ConvInteger", [node.inputs[0], codes, *zeros], f"{name}:sum", **conv_attributes(node))
    if node.bias is not None:
        bias = builder.constant(f"{name}:bias", node.bias.numpy().reshape(1, -1, *ones))
        total = builder.add("Add", [total, bias], f"{name}:accumulator")
    scale = node.output_scale(x).numpy().reshape(1, -1, *ones)
    real = builder.add("Cast", [total], f"{name}:float", to=TensorProto.FLOAT)
    builder.add("Mul", [real, builder.constant(f"{name}:accumulator.scale", scale)], name)


@LOWERINGS(AveragePool)
def _average_pool(builder: Builder, node: AveragePool) -> None:
    _write_ones(builder, node, list(node.kernel), {"strides": list(node.stride), "pads": pads(node.padding)})


def _write_ones(builder: Builder, node: Node, kernel: list[int], attributes: dict) -> None:
    """A depthwise convolution with weights of 1 and scale 1 / window size.

    An average pool, or (window 1) a change of grid.

    Runtimes' integer average pools go by way of floats, and a QuantizeLinear after a DequantizeLinear does too; a
    convolution's arithmetic is the one that is stated for both.
    """
    channels, name = node.shape_of()[0], f"{node.name}:ones"
    inputs = [
        builder.constant(name, np.ones((channels, 1, *kernel), np.int8)),
        builder.constant(f"{name}.scale", np.float32(1) / np.float32(np.prod(kernel))),
        builder.constant(f"{name}.zero_point", np.int8(0)),
    ]
    ones = builder.add("DequantizeLinear", inputs, f"{name}.real")
    operands = [dequantize(builder, node.inputs[0]), ones]
    real = builder.add("Conv", operands, f"{node.name}:float", kernel_shape=kernel, group=channels, **attributes)
    quantize(builder, real, node)


@LOWERINGS(Requantize)
def _requantize(builder: Builder, node: Requantize) -> None:
    (x,) = builder.graph.input_types(node)
    if x.bits > 8 or node.codes_of().bits > 8:
        accumulated(builder, steps(builder, node.inputs[0]), node.multipliers([x])[0].single, node)
        return
    table = node.table(x, ROUNDINGS["float"])
    if computed(builder, node, x, table):
        return
    if len(node.shape_of()) > 1:
        _write_ones(builder, node, [1] * (len(node.shape_of()) - 1), {})
    else:  # flat features have no convolution
        write_table(builder, node, x, table)


@LOWERINGS(Quantize)
def _write_input(builder: Builder, node: Quantize) -> None:
    quantize(builder, node.inputs[0], node)


@LOWERINGS(Add)
def _add(builder: Builder, node: Add) -> None:
    quantize(builder, builder.add("Add", reals(builder, node), f"{node.name}:float"), node)


@LOWERINGS(Multiply)
def _multiply(builder: Builder, node: Multiply) -> None:
    quantize(builder, builder.add("Mul", reals(builder, node), f"{node.name}:float"), node)


@LOWERINGS(GlobalAveragePool)
def _global_average_pool(builder: Builder, node: GlobalAveragePool) -> None:
    real = builder.add("GlobalAveragePool", [dequantize(builder, node.inputs[0])], f"{node.name}:float")
    quantize(builder, real, node)


@LOWERINGS(ZeroPadding)
def _pad(builder: Builder, node: ZeroPadding) -> None:
    (source,), (x,) = node.inputs, builder.graph.input_types(node)
    zero = builder.constant(f"{source}:zero_point", zero_byte(x))
    sizes = builder.integers(f"{node.name}:pads", pads(((0, 0), *node.sizes(known_shape(x)))))
    builder.add("Pad", [source, sizes, zero], node.name)


@LOWERINGS(Constant)
def _constant(builder: Builder, node: Constant) -> None:
    """The bytes of one sample, repeated for the batch."""
    y = node.codes_of()
    codes = (node.codes.int() + y.carrier_offset).numpy().astype(carrier(y))[None]
    builder.for_every_sample(builder.constant(f"{node.name}:codes", codes), codes.ndim, node.name)


@LOWERINGS(Resample)
def _resample(builder: Builder, node: Resample) -> None:
    (x,), (multiplier,) = builder.graph.input_types(node), node.multipliers(builder.graph.input_types(node))
    total = resampled(builder, node, steps(builder, node.inputs[0]), x)
    accumulated(builder, total, multiplier.single, node)


@LOWERINGS(Embedding)
def _embedding(builder: Builder, node: Embedding) -> None:
    """A Gather of whole rows."""
    rows = (node.codes + node.codes_of().carrier_offset).numpy().astype(np.uint8)
    builder.add("Gather", [builder.constant(f"{node.name}:rows", rows), *node.inputs], node.name, axis=0)


@LOWERINGS(Elementwise)
def _elementwise(builder: Builder, node: Elementwise) -> None:
    """Float operators on steps q − z, which DequantizeLinear and QuantizeLinear with scale 1 give and take."""
    types = builder.graph.input_types(node)
    values = [steps(builder, *pair) for pair in zip(node.inputs, operands(builder, node))]
    quantize_steps(builder, node.in_floats(FloatOperators(builder, node), values, types), node)
