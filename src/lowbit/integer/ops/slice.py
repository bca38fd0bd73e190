"""Slice: a part of one dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Node, Shape, TensorType
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Slice(Node):
    """x[..., start:stop:step, ...] along `axis`, counted with the batch as 0 (channels are 1). step >= 1."""

    axis: int
    start: int
    stop: int
    step: int = 1

    moves_codes: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,) = shapes
        if not 1 <= self.axis <= len(x) or not 0 <= self.start < self.stop <= x[self.axis - 1] or self.step < 1:
            raise LowbitError(f"slice {self.start}:{self.stop}:{self.step} of axis {self.axis} leaves shape {x}")
        size = -(-(self.stop - self.start) // self.step)
        return (*x[: self.axis - 1], size, *x[self.axis :])

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        index = [slice(None)] * inputs[0].ndim
        index[self.axis] = slice(self.start, self.stop, self.step)
        return inputs[0][tuple(index)]
