"""Concatenate: one input after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Node, Shape, TensorType, added
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Concatenate(Node):
    """One input after the other along a dimension. All inputs on one grid: put Requantize before where they are not.

    Attributes:
        axis: counted with the batch as 0 (channels are 1).
    """

    axis: int = added(1)

    arity: ClassVar[int | None] = None
    moves_codes: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if not 1 <= self.axis <= len(shapes[0]):
            raise LowbitError(f"inputs of shape {shapes[0]} have no dimension {self.axis}")
        if (
            len({(*shape[: self.axis - 1], *shape[self.axis :]) for shape in shapes}) > 1
            or len(set(map(len, shapes))) > 1
        ):
            raise LowbitError(f"inputs of shapes {list(shapes)} differ in more than dimension {self.axis}")
        return (*shapes[0][: self.axis - 1], sum(shape[self.axis - 1] for shape in shapes), *shapes[0][self.axis :])

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        return torch.cat(list(inputs), self.axis)
