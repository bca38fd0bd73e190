"""Operations of transformers in LiteRT.

Moves along any dimension, in the network's own order of axes; products and sums in floats on integers.
"""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Operator

from lowbit.formats import xnnpack
from lowbit.formats.litert.builder import LOWERINGS, Builder, either
from lowbit.integer.graph import FloatType, Node
from lowbit.integer.ops import Constant, Extremum, MatMul, Reduce, Transpose


@either(Constant)
def _constant(builder: Builder, node: Constant) -> None:
    builder.values[node.name] = builder.constant_codes(node)


@either(Transpose)
def _transpose(builder: Builder, node: Transpose) -> None:
    x = builder.plain(node.inputs[0])
    plain = builder.like(x, f"{node.name}:transposed", node.shape_of())
    builder.in_layout(node, builder.transpose(x, [0, *node.order], plain))


@either(Extremum)
def _extremum(builder: Builder, node: Extremum) -> None:
    x = builder.plain(node.inputs[0])
    operator = Operator.REDUCE_MAX if node.function == "maximum" else Operator.REDUCE_MIN
    plain = builder.like(x, f"{node.name}:reduced", node.shape_of())
    inputs = [x, builder.integers(node.axes)]
    builder.in_layout(node, builder.add(operator, inputs, plain, schema.ReducerOptionsT(node.keepdim)))


@LOWERINGS(Reduce)
def _reduce(builder: Builder, node: Reduce) -> None:
    xnnpack.check_exact(node, builder.graph.input_types(node))
    x = builder.plain(node.inputs[0], builder.steps(node.inputs[0]))
    total = builder.tensor(f"{node.name}:sum", node.shape_of())
    inputs = [x, builder.integers(node.axes)]
    _accumulated(builder, node, builder.add(Operator.SUM, inputs, total, schema.ReducerOptionsT(node.keepdim)))


@LOWERINGS(MatMul)
def _matrix_product(builder: Builder, node: MatMul) -> None:
    xnnpack.check_exact(node, builder.graph.input_types(node))
    a, b = (builder.plain(name, builder.steps(name)) for name in node.inputs)
    rank = len(node.shape_of())
    a, b = (builder.with_rank(x, rank, f"{node.name}:{side}") for side, x in zip("ab", (a, b)))
    total = builder.tensor(f"{node.name}:sum", node.shape_of())
    _accumulated(builder, node, builder.add(Operator.BATCH_MATMUL, [a, b], total, schema.BatchMatMulOptionsT()))


def _accumulated(builder: Builder, node: Node, total: int) -> None:
    """The node's codes, or floats, from its accumulator as floats in the order of axes of its shape."""
    (multiplier,) = node.multipliers(builder.graph.input_types(node))
    factor = builder.constant(multiplier.single.numpy().reshape(1))
    total = builder.channels_last(total, f"{node.name}:accumulator", node.shape_of())
    scaled = builder.binary(Operator.MUL, total, factor, f"{node.name}:scaled")
    if isinstance(node.type, FloatType):
        builder.values[node.name] = scaled
    else:
        builder.quantize(node, scaled)
