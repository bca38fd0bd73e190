"""AveragePool: the mean over each window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from lowbit.integer.arithmetic import Multiplier, steps_of, window_mean_multiplier
from lowbit.integer.graph import Node, Pads, Shape, TensorType, reach
from lowbit.integer.roundings import Rounding
from lowbit.integer.windows import padded, shifts, window_shape


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool(Node):
    """n = Σ (x − z_x) over the window of c elements (padding counts, as 0); y = requant(n, f(f(s_x · f(1 / c)) / s_y)).

    Fixed-point roundings take M from s_x / (c · s_y) in float64.

    Attributes:
        kernel, stride: one number per spatial dimension.
        padding: (before, after) per spatial dimension.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pads

    independent: ClassVar[Literal["samples", "channels", "elements"]] = "channels"

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,) = shapes
        return (x[0], *window_shape(x, self.kernel, self.stride, self.padding, (1,) * len(self.kernel)))

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        return math.prod(self.kernel) * reach(inputs[0])

    def multipliers(self, inputs: Sequence[TensorType]) -> list[Multiplier]:
        return [window_mean_multiplier(inputs[0], math.prod(self.kernel), self.codes_of())]

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        around = padded(steps_of(inputs[0], types[0]), self.padding, 0)
        first, *others = shifts(around, self.shape_of()[1:], self.kernel, self.stride, (1,) * len(self.kernel))
        total = first.clone()
        for window in others:
            total.add_(window)
        return rounding.requantize(total, self.multipliers(types)[0], self.codes_of())
