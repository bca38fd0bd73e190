"""UnevenAveragePool: the mean over windows of unequal sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowbit.errors import LowbitError
from lowbit.integer.graph import Shape
from lowbit.integer.ops.resample import Resample, Taps, by_dimension, taps_within


@dataclass(frozen=True, eq=False, kw_only=True)
class UnevenAveragePool(Resample):
    """The sum over each window divided by a number of its own.

    Of pools that are adaptive, or whose padding does not count.

    Along one dimension, with c the least common multiple of all its divisors, a window with divisor d has the weight c
    / d at each of its positions; the rest as `Resample`.

    Attributes:
        windows: (dimension, start, stop, divisor) of every window, counted with the batch as 0, in order: the window of
            output i has the positions start to stop − 1. Dimensions that have none stay as they are.
    """

    windows: tuple[tuple[int, ...], ...]

    def taps(self, x: Shape) -> Mapping[int, Taps]:
        by_axis = by_dimension(self.windows, x, "start, stop, divisor", range(3, 4))
        return {axis: _taps(x[axis - 1], windows) for axis, windows in by_axis.items()}


def _taps(size: int, windows: Sequence[tuple[int, ...]]) -> Taps:
    for start, stop, divisor in windows:
        if not 0 <= start < stop <= size or divisor < 1:
            raise LowbitError(f"a window from {start} to {stop} of {size} positions, divided by {divisor}")
    common = math.lcm(*(divisor for _, _, divisor in windows))
    if common >= 2**31:
        raise LowbitError(f"the divisors' least common multiple is {common}, more than 32 bits hold")
    weights = [(common // divisor,) * (stop - start) for start, stop, divisor in windows]
    return taps_within(size, [start for start, _, _ in windows], weights, common)
