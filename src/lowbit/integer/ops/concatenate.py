"""Concatenate: channels one input after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Node, Shape, TensorType
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Concatenate(Node):
    """Channels one input after the other. All inputs on one grid: put Requantize before where they are not."""

    arity: ClassVar[int | None] = None
    moves_codes: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if len({shape[1:] for shape in shapes}) > 1:
            raise LowbitError(f"inputs of shapes {list(shapes)} differ in more than channels")
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        return torch.cat(list(inputs), 1)
