"""Operands of different shapes.

The smaller ones are repeated, as torch does it, the batch being a dimension of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Shape


def broadcast_shape(shapes: Sequence[Shape]) -> Shape:
    """The shape that all of these are repeated to: counted from the last dimension, sizes are equal or 1.

    Raises:
        LowbitError: shapes that do not fit.
    """
    rank = max(map(len, shapes))
    whole = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    sizes = [{size for size in column if size != 1} or {1} for column in zip(*whole)]
    if any(len(found) > 1 for found in sizes):
        raise LowbitError(
            f"inputs of shapes {' and '.join(map(str, shapes))}; counted from the last dimension, sizes must be equal "
            "or 1"
        )
    return tuple(min(found) for found in sizes)


def broadcasts_to(shape: Shape, whole: Shape) -> bool:
    """Whether a tensor of this shape is repeated to the whole one."""
    padded = (1,) * (len(whole) - len(shape)) + tuple(shape)
    return len(padded) == len(whole) and all(size in (1, full) for size, full in zip(padded, whole))


def aligned(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors (batch, …), each with as many dimensions as the largest: of size 1 behind the batch."""
    rank = max(x.ndim for x in tensors)
    return [x if x.ndim == rank else x.reshape(len(x), *[1] * (rank - x.ndim), *x.shape[1:]) for x in tensors]
