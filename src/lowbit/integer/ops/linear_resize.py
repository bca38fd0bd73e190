"""LinearResize: linear, bilinear and trilinear interpolation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowbit.errors import LowbitError
from lowbit.integer.graph import Shape
from lowbit.integer.ops.resample import Resample, Taps, by_dimension, taps_within


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearResize(Resample):
    """Each position between two neighbours, the nearer the heavier.

    (near · x[first] + far · x[first + 1]) / (near + far).

    All points of one dimension have one sum of weights; the rest as `Resample`.

    Attributes:
        points: (dimension, first, near, far) of every position of the output, counted with the batch as 0, in order.
            Dimensions that have none stay as they are.
    """

    points: tuple[tuple[int, ...], ...]

    def taps(self, x: Shape) -> Mapping[int, Taps]:
        by_axis = by_dimension(self.points, x, "first, near, far")
        return {axis: _taps(x[axis - 1], points) for axis, points in by_axis.items()}


def _taps(size: int, points: Sequence[tuple[int, int, int]]) -> Taps:
    sums = {near + far for _, near, far in points}
    if len(sums) > 1:
        raise LowbitError(f"points whose weights have the sums {sorted(sums)[:8]}; they have one")
    weights = [(near, far) if far else (near,) for _, near, far in points]
    return taps_within(size, [first for first, _, _ in points], weights, sums.pop())
