"""LinearResize: linear and cubic interpolation along any number of dimensions, antialiased or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowbit.errors import LowbitError
from lowbit.integer.graph import Shape
from lowbit.integer.limits import KERNEL_MAX
from lowbit.integer.ops.resample import Resample, Taps, by_dimension, taps_within


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearResize(Resample):
    """Each position as a weighted sum of neighbours.

    Σ_k weight_k · x[first + k] / Σ_k weight_k: two of them, the nearer the heavier, for linear interpolation; four,
    some of them with negative weights, for cubic; as many as it reaches for an antialiased one.

    All points of one dimension have one sum of weights; the rest as `Resample`.

    Attributes:
        points: (dimension, first, weights …) of every position of the output, counted with the batch as 0, in order.
            Dimensions that have none stay as they are.
    """

    points: tuple[tuple[int, ...], ...]

    def taps(self, x: Shape) -> Mapping[int, Taps]:
        by_axis = by_dimension(self.points, x, "first, weights …", range(2, KERNEL_MAX + 2))
        return {axis: _taps(x[axis - 1], points) for axis, points in by_axis.items()}


def _taps(size: int, points: Sequence[tuple[int, ...]]) -> Taps:
    sums = {sum(weights) for _, *weights in points}
    if len(sums) > 1:
        raise LowbitError(f"points whose weights have the sums {sorted(sums)[:8]}; they have one")
    runs = []
    for _, *weights in points:
        while len(weights) > 1 and weights[-1] == 0:  # of what may lie outside
            weights.pop()
        runs.append(weights)
    return taps_within(size, [first for first, *_ in points], runs, sums.pop())
