"""PixelShuffle and PixelUnshuffle: between channels and positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Node, Shape, TensorType
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelShuffle(Node):
    """Channels become positions.

    Y[c, i·r + a, j·s + b] = x[c·r·s + a·s + b, i, j], and alike in one and three dimensions.

    Attributes:
        factors: (r, s), one number, 1 or more, per spatial dimension.
    """

    factors: tuple[int, ...]

    moves_codes: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,), factors = shapes, self.factors
        block = math.prod(factors)
        if len(factors) != len(x) - 1 or not factors or min(factors) < 1 or x[0] % block:
            raise LowbitError(f"{x[0]} channels of an input of shape {x} do not divide into blocks of {factors}")
        return (x[0] // block, *(size * factor for size, factor in zip(x[1:], factors)))

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        return channels_to_positions(inputs[0], self.factors)


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelUnshuffle(Node):
    """Positions become channels: the inverse of `PixelShuffle` with the same factors.

    Attributes:
        factors: one number, 1 or more, per spatial dimension, which divides it.
    """

    factors: tuple[int, ...]

    moves_codes: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,), factors = shapes, self.factors
        fits = len(factors) == len(x) - 1 and bool(factors) and min(factors) >= 1
        if not fits or any(size % factor for size, factor in zip(x[1:], factors)):
            raise LowbitError(f"positions of an input of shape {x} do not divide into blocks of {factors}")
        return (x[0] * math.prod(factors), *(size // factor for size, factor in zip(x[1:], factors)))

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        return positions_to_channels(inputs[0], self.factors)


def channels_to_positions(x: Tensor, factors: Sequence[int]) -> Tensor:
    """`PixelShuffle` of a batch."""
    split, order, whole = shuffle_steps(tuple(x.shape[1:]), factors)
    return x.reshape(len(x), *split).permute(0, *order).reshape(len(x), *whole)


def positions_to_channels(x: Tensor, factors: Sequence[int]) -> Tensor:
    """`PixelUnshuffle` of a batch."""
    split, order, whole = unshuffle_steps(tuple(x.shape[1:]), factors)
    return x.reshape(len(x), *split).permute(0, *order).reshape(len(x), *whole)


Steps = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""(shape, order, shape): a reshape, a permutation (counted with the batch as 0) and a reshape."""


def shuffle_steps(x: Shape, factors: Sequence[int]) -> Steps:
    """What `PixelShuffle` is of an input of this shape."""
    (channels, *space), count = x, len(factors)
    kept = channels // math.prod(factors)
    order = [axis for each in range(count) for axis in (2 + count + each, 2 + each)]
    whole = (kept, *(size * factor for size, factor in zip(space, factors)))
    return (kept, *factors, *space), (1, *order), whole


def unshuffle_steps(x: Shape, factors: Sequence[int]) -> Steps:
    """What `PixelUnshuffle` is of an input of this shape."""
    channels, *space = x
    outer = [size // factor for size, factor in zip(space, factors)]
    split = (channels, *(size for pair in zip(outer, factors) for size in pair))
    order = (1, *(3 + 2 * each for each in range(len(factors))), *(2 + 2 * each for each in range(len(factors))))
    return split, order, (channels * math.prod(factors), *outer)
