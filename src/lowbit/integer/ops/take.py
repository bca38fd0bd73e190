"""Operations that move codes by index: stated once as indices, they run in every format.

A subclass gives, per dimension, the index of the input that each index of the output has. Every format with a gather
has all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.integer.graph import Node, Shape, TensorType
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Take(Node):
    """y[…, i, …] = x[…, indices(axis)[i], …], one dimension after the other."""

    moves_codes: ClassVar[bool] = True

    def indices(self, x: Shape) -> Mapping[int, Sequence[int]]:
        """For an input of this shape: what is taken, by dimension, counted with the batch as 0.

        The others stay whole.
        """
        raise NotImplementedError

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape = list(shapes[0])
        for axis, taken in self.indices(shapes[0]).items():
            shape[axis - 1] = len(taken)
        return tuple(shape)

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        (x,) = inputs
        for axis, taken in self.indices(tuple(x.shape[1:])).items():
            x = x.index_select(axis, torch.tensor(taken, dtype=torch.int64, device="cpu"))
        return x
