"""ChannelShuffle: ShuffleNet's permutation of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Node, Shape, TensorType
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class ChannelShuffle(Node):
    """Channel c = g · (C/groups) + i goes to i · groups + g: reshape (groups, C/groups), transpose, reshape."""

    groups: int

    moves_codes: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,) = shapes
        if self.groups < 1 or x[0] % self.groups:
            raise LowbitError(f"{x[0]} channels do not divide into {self.groups} groups")
        return x

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        return inputs[0].unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
