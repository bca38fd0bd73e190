"""Embedding: rows of a table of codes, by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import code_dtype
from lowbit.integer.costs import Work
from lowbit.integer.graph import FLOAT32_UNIT, ROUNDINGS, Node, OutputCodes, Shape, TensorType, reach
from lowbit.integer.ops.constant import check_stored
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Embedding(Node):
    """y[…, :] = codes[x[…], :] for an input of the graph that holds whole numbers from 0 to the number of rows less 1.

    Attributes:
        codes: int16, on the grid of its type, (rows, features).
    """

    codes: OutputCodes

    takes_indices: ClassVar[bool] = True

    def index_limit(self) -> int:
        return len(self.codes)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (*shapes[0], self.codes.shape[1])

    def check(self, inputs: Sequence[TensorType]) -> None:
        check_stored(self.codes, self.codes_of())
        if self.codes.ndim != 2:
            raise LowbitError(f"codes must have rows and features, not the shape {tuple(self.codes.shape)}")

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        return 0

    def tolerance(self, inputs: Sequence[TensorType]) -> float:
        """8 · 2^-24 of the largest step: the table was divided by its scale, and rounded, in float32."""
        return ROUNDINGS * FLOAT32_UNIT * reach(self.codes_of())

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        return self.codes.to(code_dtype(self.codes_of()))[inputs[0]]

    def work(self, inputs: Sequence[TensorType]) -> Work:
        return Work.of_stored(self.codes, self.codes_of().bits)
