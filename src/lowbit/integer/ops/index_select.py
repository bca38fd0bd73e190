"""IndexSelect: what stands at some places of one dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowbit.errors import LowbitError
from lowbit.integer.graph import Places, Shape
from lowbit.integer.limits import INDICES_MAX
from lowbit.integer.ops.take import Take


@dataclass(frozen=True, eq=False, kw_only=True)
class IndexSelect(Take):
    """y[…, i, …] = x[…, places[i], …] along `axis`: torch's index_select, roll and flip.

    Attributes:
        axis: counted with the batch as 0.
        places: from 0 to the dimension's size less 1, in any order and any number.
    """

    axis: int
    places: Places

    def indices(self, x: Shape) -> Mapping[int, Sequence[int]]:
        if not 1 <= self.axis <= len(x):
            raise LowbitError(f"an input of shape {x} has no dimension {self.axis}")
        size = x[self.axis - 1]
        if not 1 <= len(self.places) <= INDICES_MAX or min(self.places) < 0 or max(self.places) >= size:
            raise LowbitError(f"the places along dimension {self.axis} must be one or more from 0 to {size - 1}")
        return {self.axis: self.places}
