"""Reshape: the codes of a sample in a new shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Node, Shape, TensorType
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(Node):
    """The codes of a sample in a new shape (without the batch), row-major. Flatten is shape (-1,)."""

    shape: tuple[int, ...]

    moves_codes: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,) = shapes
        count, known = math.prod(x), math.prod(size for size in self.shape if size != -1)
        fits = known >= 1 and count % known == 0 and (-1 in self.shape or count == known)
        if self.shape.count(-1) > 1 or not fits:
            raise LowbitError(f"shape {x} does not reshape to {self.shape}")
        return tuple(count // known if size == -1 else size for size in self.shape)

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        return inputs[0].reshape(len(inputs[0]), *self.shape_of())
