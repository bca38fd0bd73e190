"""What transformers compute, in ONNX: matrix products of codes, sums over any dimensions.

ONNX Runtime fuses none of it: the operators run as they are written, each rounding as ONNX states, with graph optimizations and
without.
"""

from __future__ import annotations

from onnx import TensorProto

from lowbit.formats.onnx.builder import Builder, operands
from lowbit.formats.onnx.codes import LOWERINGS, accumulated, clip, grid, steps
from lowbit.integer.graph import FloatType
from lowbit.integer.ops import MatMul, Reduce

_EXACT = 1 << 24
"""Whole numbers of smaller magnitude are float32 values, in whatever order they are summed."""


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
