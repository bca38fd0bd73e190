"""Quantize: a float input of the graph becomes codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowbit.integer.arithmetic import f32, to_codes
from lowbit.integer.graph import FLOAT32_UNIT, ROUNDINGS, Node, Shape, TensorType, reach
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Quantize(Node):
    """y = clip(rint(f(x / s_y)) + z_y), whatever the rounding.

    A division, not a product with 1/s_y. NaN has no code: the executor refuses it.
    """

    independent: ClassVar[Literal["samples", "channels", "elements"]] = "elements"
    takes_floats: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        return 0

    def tolerance(self, inputs: Sequence[TensorType]) -> float:
        """8 · 2^-24 of the largest step that it gives: it divides, as the trained network does."""
        return ROUNDINGS * FLOAT32_UNIT * reach(self.codes_of())

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        y = self.codes_of()
        return to_codes(torch.round(inputs[0] / f32(y.scale)), y)
