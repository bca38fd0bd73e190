"""Expand: dimensions of size 1 repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowbit.errors import LowbitError
from lowbit.integer.graph import Shape
from lowbit.integer.limits import INDICES_MAX
from lowbit.integer.ops.take import Take


@dataclass(frozen=True, eq=False, kw_only=True)
class Expand(Take):
    """The one element along a dimension of size 1, as often as `shape` says.

    Attributes:
        shape: of the output, without the batch; as many dimensions as the input has, and its sizes where they are not
            1.
    """

    shape: tuple[int, ...]

    def indices(self, x: Shape) -> Mapping[int, Sequence[int]]:
        fits = len(self.shape) == len(x) and all(size in (1, y) for size, y in zip(x, self.shape))
        if not fits or min(self.shape) < 1:
            raise LowbitError(f"an input of shape {x} does not expand to {self.shape}")
        if max(self.shape) > INDICES_MAX:
            raise LowbitError(f"shape {self.shape} has more than {INDICES_MAX:,} places along one dimension")
        return {axis: [0] * y for axis, (size, y) in enumerate(zip(x, self.shape), 1) if size != y}
