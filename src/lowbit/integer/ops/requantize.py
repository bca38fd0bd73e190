"""Requantize: from one grid to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from lowbit.integer.arithmetic import Multiplier, all_codes, look_up, ratio
from lowbit.integer.graph import Node, Shape, TensorType
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Requantize(Node):
    """From one grid to another: y = requant(x − z_x, M), M = f(s_x / s_y). Also a ReLU, by its clip range."""

    independent: ClassVar[Literal["samples", "channels", "elements"]] = "elements"

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]

    def multipliers(self, inputs: Sequence[TensorType]) -> list[Multiplier]:
        return [ratio(inputs[0], self.codes_of())]

    def table(self, x: TensorType, rounding: Rounding) -> Tensor:
        """The output's code for every code of x."""
        return rounding.requantize(all_codes(x) - x.zero_point, self.multipliers([x])[0], self.codes_of())

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        return look_up(self.table(types[0], rounding), inputs[0], types[0])
