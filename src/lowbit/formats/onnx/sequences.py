"""What transformers compute, in ONNX: matrix products of codes, sums over any dimensions.

ONNX Runtime fuses none of it: the operators run as they are written, each rounding as ONNX states, with graph
optimizations and without.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from lowbit.formats.onnx.builder import Builder, looked_up, operands
from lowbit.formats.onnx.codes import LOWERINGS, accumulated, clip, grid, quantize_steps, steps, zero_byte
from lowbit.integer.graph import FloatType, Shape, reach
from lowbit.integer.ops import MaskedSoftmax, MatMul, Normalize, Reduce, Softmax
from lowbit.integer.ops.softmax import Exponentials

_EXACT = 1 << 24
"""Whole numbers of smaller magnitude are float32 values, in whatever order they are summed."""
_FEW_PARTS = 16
"""Parts of a block whose sums take less time than another pass over its elements."""


@LOWERINGS(MatMul)
def _matrix_product(builder: Builder, node: MatMul) -> None:
    """QLinearMatMul, which rounds as `MatMul` does; on unsigned bytes, whose products are exact on all processors."""
    types = builder.graph.input_types(node)
    sources, grids = operands(builder, node), [grid(builder, *pair) for pair in zip(node.inputs, types)]
    if isinstance(node.type, FloatType):
        total = builder.add("MatMulInteger", [*sources, *(zero for _, zero in grids)], f"{node.name}:sum")
        real = builder.add("Cast", [total], f"{node.name}:float", to=TensorProto.FLOAT)
        factor = builder.constant(f"{node.name}:multiplier", node.multipliers(types)[0].single.numpy())
        builder.add("Mul", [real, factor], node.name)
        return
    (a, b), (of_a, of_b) = sources, grids
    clip(builder, node, "QLinearMatMul", [a, *of_a, b, *of_b, *grid(builder, node.name, node.codes_of())])


@LOWERINGS(Reduce)
def _reduce(builder: Builder, node: Reduce) -> None:
    """A float32 sum of whole numbers where it is exact, else one of int32."""
    (source,), types = node.inputs, builder.graph.input_types(node)
    axes = builder.integers(f"{node.name}:axes", list(node.axes))
    x, bound = steps(builder, source), node.accumulator_bound(types)
    if bound >= _EXACT:
        x = builder.add("Cast", [x], f"{node.name}:integers", to=TensorProto.INT32)
    total = builder.add("ReduceSum", [x, axes], f"{node.name}:sum", keepdims=int(node.keepdim))
    if bound >= _EXACT:
        total = builder.add("Cast", [total], f"{node.name}:total", to=TensorProto.FLOAT)
    accumulated(builder, total, node.multipliers(types)[0].single, node)


@LOWERINGS(Softmax)
def _softmax(builder: Builder, node: Softmax) -> None:
    """Differences to the maximum are taken on bytes."""
    (source,) = node.inputs
    axes = builder.integers(f"{node.name}:axes", [node.axis])
    largest = builder.add("ReduceMax", [source, axes], f"{node.name}:largest", keepdims=1)
    difference = builder.add("Sub", [largest, source], f"{node.name}:difference")
    quantize_steps(builder, softmax(builder, node, difference), node)


@LOWERINGS(MaskedSoftmax)
def _masked_softmax(builder: Builder, node: MaskedSoftmax) -> None:
    """As `Softmax`, with the lowest byte in place of what is hidden, and 0 in place of its exponentials."""
    x = builder.graph.input_types(node)[0]
    lowest = np.uint8(x.qn + x.carrier_offset)
    low = builder.factor(f"{node.name}:lowest", lowest, len(node.shape_of()) + 1)
    quantize_steps(builder, masked_softmax(builder, node, low), node)


def masked_softmax(builder: Builder, node: MaskedSoftmax, low: str) -> str:
    """`softmax` of codes where a mask shows them; `low` is a constant of the lowest one."""
    name, (x, mask) = node.name, operands(builder, node)
    shown = builder.add("Cast", [mask], f"{name}:shown", to=TensorProto.BOOL)
    factor = builder.add("Cast", [mask], f"{name}:shown_factor", to=TensorProto.FLOAT)
    x = builder.add("Where", [shown, x, low], f"{name}:scores")
    largest = reduced(builder, "ReduceMax", x, node, f"{name}:largest")
    return softmax(builder, node, builder.add("Sub", [largest, x], f"{name}:difference"), factor)


def reduced(builder: Builder, operator: str, x: str, node: Exponentials, output: str) -> str:
    """A reduction along the dimension of a softmax; before opset 18 it is an attribute of all but ReduceSum."""
    if builder.opset < 18 and operator != "ReduceSum":
        return builder.add(operator, [x], output, axes=[node.axis], keepdims=1)
    axes = builder.integers(f"{node.name}:axes", [node.axis])
    return builder.add(operator, [x, axes], output, keepdims=1)


def softmax(builder: Builder, node: Exponentials, difference: str, shown: str | None = None) -> str:
    """The float tensor of a softmax in steps of its output, from the differences of codes to their maximum.

    Exponentials are whole numbers in float32, and so are their sums, up to 2^24; sums that may be larger are made in
    float64. `shown` is 1 for those that count and 0 for those that don't, float32.
    """
    name, axes, rank = node.name, builder.integers(f"{node.name}:axes", [node.axis]), len(node.shape_of()) + 1
    e = looked_up(builder, node, difference, node.entries().numpy().astype(np.float32), f"{name}:exponentials")
    if shown is not None:  # a Where takes four times as long
        e = builder.add("Mul", [e, shown], f"{name}:shown_exponentials")
    if node.accumulator_bound(builder.graph.input_types(node)) <= _EXACT:
        total = builder.add("ReduceSum", [e, axes], f"{name}:sum", keepdims=1)
    else:
        wide = builder.add("Cast", [e], f"{name}:wide", to=TensorProto.DOUBLE)
        wide = builder.add("ReduceSum", [wide, axes], f"{name}:wide_sum", keepdims=1)
        total = builder.add("Cast", [wide], f"{name}:sum", to=TensorProto.FLOAT)
    if shown is not None:
        least = builder.factor(f"{name}:least", np.float32(1), rank)
        total = builder.add("Max", [total, least], f"{name}:sum_of_shown")
    one = builder.factor(f"{name}:factor", node.factor().numpy(), rank)
    return builder.add("Mul", [e, builder.add("Div", [one, total], f"{name}:share")], f"{name}:scaled")


@LOWERINGS(Normalize)
def _normalize(builder: Builder, node: Normalize) -> None:
    """On bytes in blocks, as floats: as they are where a norm is centered, since V and d don't depend on z, else q − z.

    No DequantizeLinear makes them: ONNX Runtime would give every operator that takes its output one of its own.
    """
    (x,) = builder.graph.input_types(node)
    blocks, zero, largest = in_blocks(builder, node), zero_byte(x), x.qp + x.carrier_offset
    n = _once(builder, "Cast", [blocks], f"{blocks}:numbers", to=TensorProto.FLOAT)
    as_they_are = node.centered and node.count * largest < _EXACT and _parts(node.count, largest**2) <= _FEW_PARTS
    if zero != 0 and not as_they_are:
        origin = builder.factor(f"{blocks}:zero", np.float32(zero), len(_blocks(node)) + 1)
        n = _once(builder, "Sub", [n, origin], f"{blocks}:signed_numbers")
        largest = reach(x)
    quantize_steps(builder, normalized(builder, node, n, largest), node)


def _once(builder: Builder, operator: str, inputs: list[str], output: str, **attributes) -> str:
    """`Builder.add`, for an output that several nodes take."""
    if output not in builder.dequantized:
        builder.dequantized[output] = builder.add(operator, inputs, output, **attributes)
    return output


def in_blocks(builder: Builder, node: Normalize) -> str:
    """The input's tensor with a block as its last dimension."""
    (source,), shape = node.inputs, _blocks(node)
    if shape == node.shape_of():
        return source
    blocks = f"{source}:blocks{node.count}"
    if blocks not in builder.reshaped:
        builder.reshape(source, shape, blocks)
        builder.reshaped.add(blocks)
    return blocks


def normalized(builder: Builder, node: Normalize, n: str, largest: int) -> str:
    """The float tensor of a normalization in steps of its output.

    Args:
        n: the steps q − z, float32, the last dimension a block; of a centered one less any whole number.
        largest: their magnitude at most.
    """
    name, rank, (x,) = node.name, len(_blocks(node)) + 1, builder.graph.input_types(node)

    def add(operator: str, what: str, *inputs: str, **attributes) -> str:
        return builder.add(operator, list(inputs), f"{name}:{what}", **attributes)

    def number(what: str, value: float) -> str:
        return builder.factor(f"{name}:{what}64", np.float64(value), rank)

    squares, _ = _sums(builder, node, add("Mul", "squares", n, n), largest**2, "second")
    variance, d = add("Mul", "variance", squares, number("count", node.count)), n
    if node.centered:
        first, single = _sums(builder, node, n, largest, "first")
        variance = add("Sub", "centered", variance, add("Mul", "first_squared", first, first))
        single = single or add("Cast", "first_float", first, to=TensorProto.FLOAT)
        multiples = add("Mul", "multiples", n, builder.factor(f"{name}:block", np.float32(node.count), rank))
        d = add("Sub", "differences", multiples, single)
    root = add("Sqrt", "root", add("Add", "with_eps", variance, number("extra", node.extra(x))))
    root = add("Mul", "root_in_steps", root, number("scale", node.codes_of().scale))
    factor = add(
        "Div", "factor64", number("one" if node.centered else "count", 1 if node.centered else node.count), root
    )
    p = add("Mul", "normalized", d, add("Cast", "factor", factor, to=TensorProto.FLOAT))
    if _blocks(node) != node.shape_of():
        p = builder.reshape(p, node.shape_of(), f"{name}:whole")
    rank = len(node.shape_of()) + 1
    if node.gain is not None:
        p = add("Mul", "with_gain", p, builder.factor(f"{name}:gain", node.gain.numpy(), rank))
    shift = node.steps_of_shift()
    if shift is not None:
        p = add("Add", "with_shift", p, builder.factor(f"{name}:shift", shift.numpy(), rank))
    return p


def _sums(builder: Builder, node: Normalize, values: str, largest: int, what: str) -> tuple[str, str | None]:
    """Sums over blocks of whole numbers, in float64, and in float32 where they are made in it.

    In float32 over parts of a block that are short enough, then of the parts.
    """
    name, last, count = f"{node.name}:{what}", builder.integers(":last", [-1]), node.count
    parts = _parts(count, largest)
    if parts == 1:
        total = builder.add("ReduceSum", [values, last], f"{name}_single", keepdims=1)
        return builder.add("Cast", [total], name, to=TensorProto.DOUBLE), total
    *leading, _ = _blocks(node)
    values = builder.reshape(values, (*leading, parts, count // parts), f"{name}_parts")
    total = builder.add("ReduceSum", [values, last], f"{name}_single", keepdims=0)
    total = builder.add("Cast", [total], f"{name}_double", to=TensorProto.DOUBLE)
    return builder.add("ReduceSum", [total, last], name, keepdims=1), None


def _parts(count: int, largest: int) -> int:
    """The fewest equal parts of a block whose sums of whole numbers up to `largest` float32 holds."""
    return next(parts for parts in range(1, count + 1) if count % parts == 0 and count // parts * largest <= _EXACT)


def _blocks(node: Normalize) -> Shape:
    """The shape of a sample whose last dimension is a block: its own, where it is so already."""
    shape = node.shape_of()
    return shape if shape[-1] == node.count else (math.prod(shape) // node.count, node.count)
