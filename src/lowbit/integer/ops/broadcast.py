"""Which shapes operations on two tensors take."""

from __future__ import annotations

from collections.abc import Sequence

from lowbit.errors import LowbitError
from lowbit.integer.graph import Shape


def second_like_first(shapes: Sequence[Shape]) -> Shape:
    """The first shape, which the second equals or has the channels of: (C, 1, …). Raises LowbitError otherwise."""
    a, b = shapes
    if b not in (a, (a[0],) + (1,) * (len(a) - 1)):
        raise LowbitError(f"inputs of shapes {a} and {b}; the second is equal or (channels, 1, …)")
    return a


def either_like_other(shapes: Sequence[Shape]) -> Shape:
    """The larger of two shapes that `second_like_first` takes in one order or the other."""
    a, b = shapes
    return second_like_first((b, a) if len(a) == len(b) and all(size == 1 for size in a[1:]) else (a, b))
