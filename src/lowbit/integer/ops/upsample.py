"""Upsample: nearest-neighbour upsampling by whole factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowbit.errors import LowbitError
from lowbit.integer.graph import Shape
from lowbit.integer.limits import INDICES_MAX
from lowbit.integer.ops.take import Take


@dataclass(frozen=True, eq=False, kw_only=True)
class Upsample(Take):
    """y[c, i, …] = x[c, ⌊i / factor⌋, …]: every position becomes a block of factor positions per spatial dimension.

    Attributes:
        factors: one number, 1 or more, per spatial dimension.
    """

    factors: tuple[int, ...]

    def indices(self, x: Shape) -> Mapping[int, Sequence[int]]:
        if len(self.factors) != len(x) - 1 or min(self.factors, default=0) < 1:
            raise LowbitError(
                f"factors {self.factors} of an input of shape {x}: one per position's dimension, 1 or more"
            )
        if any(size * factor > INDICES_MAX for size, factor in zip(x[1:], self.factors)):
            raise LowbitError(
                f"factors {self.factors} of an input of shape {x} make more than {INDICES_MAX:,} positions"
            )
        return {
            axis: [place // factor for place in range(x[axis - 1] * factor)]
            for axis, factor in enumerate(self.factors, 2)
            if factor > 1
        }
