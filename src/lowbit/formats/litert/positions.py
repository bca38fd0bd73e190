"""LiteRT: weighted means of positions, and positions that become channels."""

from __future__ import annotations

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Operator

from lowbit.formats import xnnpack
from lowbit.formats.litert.builder import LOWERINGS, Builder, either, layout, layout_axis, plane
from lowbit.integer.graph import known_shape
from lowbit.integer.ops import PixelShuffle, PixelUnshuffle
from lowbit.integer.ops.resample import Resample


@LOWERINGS(Resample)
def _resample(builder: Builder, node: Resample) -> None:
    """A BATCH_MATMUL per dimension, of floats that are whole numbers."""
    (x,), (multiplier,) = builder.graph.input_types(node), node.multipliers(builder.graph.input_types(node))
    xnnpack.check_exact(node, [x])
    total, whole = builder.steps(node.inputs[0]), known_shape(x)
    for axis, whole_numbers in node.matrices(whole).items():
        place, shape = layout_axis(whole, axis), list(builder.shape(total))
        size, behind = shape[place - 1], math.prod(shape[place:])
        total = builder.reshape(
            total, builder.like(total, f"{node.name}:flat{axis}", (*shape[: place - 1], size, behind))
        )
        matrix = whole_numbers.numpy().astype(np.float32)
        shape[place - 1] = len(matrix)
        product = builder.tensor(f"{node.name}:sum{axis}", (*shape[: place - 1], len(matrix), behind))
        weight = builder.constant(matrix.reshape(*[1] * (place - 1), *matrix.shape))
        builder.add(Operator.BATCH_MATMUL, [weight, total], product, schema.BatchMatMulOptionsT())
        total = builder.reshape(product, builder.tensor(f"{node.name}:whole{axis}", shape))
    factor = builder.constant(multiplier.single.numpy().reshape(1))
    builder.quantize(node, builder.binary(Operator.MUL, total, factor, f"{node.name}:scaled"))


@either(PixelShuffle)
def _shuffle(builder: Builder, node: PixelShuffle) -> None:
    """Reshape, transpose, reshape: (H, W, C·r·s) to (H, W, C, r, s), (H, r, W, s, C), (H·r, W·s, C)."""
    (x,), (r, s) = builder.inputs(node), plane(node.factors, 1)
    height, width, channels = builder.shape(x)
    split = (height, width, channels // (r * s), r, s)
    _rearranged(builder, node, split, (0, 3, 1, 4, 2))


@either(PixelUnshuffle)
def _unshuffle(builder: Builder, node: PixelUnshuffle) -> None:
    """Reshape, transpose, reshape: (H·r, W·s, C) to (H, r, W, s, C), (H, W, C, r, s), (H, W, C·r·s)."""
    (x,), (r, s) = builder.inputs(node), plane(node.factors, 1)
    height, width, channels = builder.shape(x)
    _rearranged(builder, node, (height // r, r, width // s, s, channels), (0, 2, 4, 1, 3))


def _rearranged(
    builder: Builder, node: PixelShuffle | PixelUnshuffle, split: tuple[int, ...], order: tuple[int, ...]
) -> None:
    (x,) = builder.inputs(node)
    grouped = builder.reshape(x, builder.like(x, f"{node.name}:grouped", split))
    swapped = builder.like(x, f"{node.name}:shuffled", tuple(split[axis] for axis in order))
    moved = builder.transpose(grouped, [0, *(axis + 1 for axis in order)], swapped)
    builder.values[node.name] = builder.reshape(moved, builder.like(x, node.name, layout(node.shape_of())))
