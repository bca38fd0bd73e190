"""Operations that give each position a weighted mean of others: stated once as whole weights, they run in every format.

A subclass gives, per spatial dimension, which positions of the input each position of the output takes and with which
weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import Multiplier, steps_of, window_mean_multiplier
from lowbit.integer.graph import Node, Shape, TensorType, known_shape, reach
from lowbit.integer.limits import INDICES_MAX, KERNEL_MAX
from lowbit.integer.roundings import Rounding

_MATRIX_MAX = 1 << 25


@dataclass(frozen=True)
class Taps:
    """A weighted mean along one dimension: output i is Σ_k weights[i][k] · x[first[i] + k] / divisor.

    Attributes:
        first: of the positions taken, per output.
        weights: whole numbers, as many for every output; the positions lie within the input.
        divisor: 1 or more.
    """

    first: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]
    divisor: int

    @property
    def largest(self) -> int:
        """The largest sum of the magnitudes of an output's weights."""
        return max(sum(map(abs, run)) for run in self.weights)

    def matrix(self, size: int) -> Tensor:
        """int64 (outputs, size): the weight of every input position in every output."""
        dense = torch.zeros(len(self.first), size, dtype=torch.int64, device="cpu")
        weights = torch.tensor(self.weights, dtype=torch.int64, device="cpu")
        places = torch.tensor(self.first, device="cpu")[:, None] + torch.arange(weights.shape[1], device="cpu")
        return dense.scatter_(1, places, weights)


def by_dimension(
    entries: Sequence[tuple[int, ...]], x: Shape, what: str, numbers: range
) -> dict[int, list[tuple[int, ...]]]:
    """Entries by their first number, which must be a spatial dimension of x; so many numbers follow it.

    Raises LowbitError for others.
    """
    found: dict[int, list[tuple[int, ...]]] = {}
    for entry in entries:
        if len(entry) - 1 not in numbers or not 2 <= entry[0] <= len(x):
            raise LowbitError(f"{entry} for an input of shape {x}; it is (dimension, {what})")
        found.setdefault(entry[0], []).append(entry[1:])
    return found


def taps_within(size: int, starts: Sequence[int], weights: Sequence[Sequence[int]], divisor: int) -> Taps:
    """Taps of weights of unequal number, each run of which lies within `size` positions; filled up with zeros.

    Raises LowbitError for runs that are empty or do not lie within, and for too many.
    """
    if len(starts) > INDICES_MAX:
        raise LowbitError(f"{len(starts):,} positions along a dimension; there are at most {INDICES_MAX:,}")
    count = max(map(len, weights))
    if count > KERNEL_MAX:
        raise LowbitError(f"a position takes {count} others; it takes at most {KERNEL_MAX:,}")
    first, filled = [], []
    for start, run in zip(starts, weights):
        if not run or start < 0 or start + len(run) > size or sum(run) < 1:
            raise LowbitError(f"a position takes {list(run)[:8]} of those from {start} on, of {size} positions")
        moved = min(start, size - count)  # where the zeros would lie outside, some of them come first
        first.append(moved)
        filled.append((0,) * (start - moved) + tuple(run) + (0,) * (count - len(run) - (start - moved)))
    return Taps(tuple(first), tuple(filled), divisor)


@dataclass(frozen=True, eq=False, kw_only=True)
class Resample(Node):
    """n = Σ w_1[i] · w_2[j] · … · (x − z_x) over the positions taken;  y = requant(n, f(f(s_x · f(1 / c)) / s_y)).

    w_1, w_2, … are the whole weights of the `taps` of each spatial dimension and c is the product of their divisors.
    Fixed-point roundings take M from s_x / (c · s_y) in float64.
    """

    independent: ClassVar[Literal["samples", "channels", "elements"]] = "channels"

    def taps(self, x: Shape) -> Mapping[int, Taps]:
        """For an input of this shape: what is taken, by spatial dimension, counted with the batch as 0.

        The others stay whole.
        """
        raise NotImplementedError

    def matrices(self, x: Shape) -> dict[int, Tensor]:
        """The taps as matrices (outputs, inputs), int64, by dimension: what formats write.

        Raises LowbitError, naming the node, for a dimension that is too long for one.
        """
        found = {}
        for axis, taps in self.taps(x).items():
            if len(taps.first) * x[axis - 1] > _MATRIX_MAX:
                raise LowbitError(
                    f"node {self.name!r}: from {x[axis - 1]:,} to {len(taps.first):,} positions it would be a matrix "
                    f"of more than {_MATRIX_MAX:,} weights in a file; lowbit's own and JSON files hold it"
                )
            found[axis] = taps.matrix(x[axis - 1])
        return found

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape = list(shapes[0])
        for axis, taps in self.taps(shapes[0]).items():
            shape[axis - 1] = len(taps.first)
        return tuple(shape)

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        (x,) = inputs
        return math.prod(each.largest for each in self.taps(known_shape(x)).values()) * reach(x)

    def multipliers(self, inputs: Sequence[TensorType]) -> list[Multiplier]:
        (x,) = inputs
        divisor = math.prod(each.divisor for each in self.taps(known_shape(x)).values())
        return [window_mean_multiplier(x, divisor, self.codes_of())]

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        total = steps_of(inputs[0], types[0])
        for axis, taps in self.taps(tuple(total.shape[1:])).items():
            total = _weighted(total, axis, taps)
        return rounding.requantize(total, self.multipliers(types)[0], self.codes_of())


def _weighted(x: Tensor, axis: int, taps: Taps) -> Tensor:
    """Σ_k weights[·][k] · x[first + k] along one dimension, int32."""
    first = torch.tensor(taps.first, dtype=torch.int64, device="cpu")
    weights = torch.tensor(taps.weights, dtype=torch.int32, device="cpu")
    along = [1] * x.ndim
    along[axis] = -1
    total = x.new_zeros(*x.shape[:axis], len(first), *x.shape[axis + 1 :])
    for place in range(weights.shape[1]):
        total.add_(x.index_select(axis, first + place).mul_(weights[:, place].reshape(along)))
    return total
