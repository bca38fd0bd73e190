"""Transpose: the dimensions of a sample in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Node, Shape, TensorType
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Transpose(Node):
    """Dimension i of y is dimension order[i − 1] of x.

    Attributes:
        order: the dimensions of x, each once, counted with the batch as 0, which stays where it is: (2, 1, 3) exchanges
            the first two of three.
    """

    order: tuple[int, ...]

    moves_codes: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,) = shapes
        if sorted(self.order) != list(range(1, len(x) + 1)):
            raise LowbitError(
                f"order {self.order} is not an order of the dimensions 1 .. {len(x)} of an input of shape {x}"
            )
        return tuple(x[axis - 1] for axis in self.order)

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        return inputs[0].permute(0, *self.order)
