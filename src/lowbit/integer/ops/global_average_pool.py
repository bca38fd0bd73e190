"""GlobalAveragePool: the mean over all positions of a channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import Multiplier, global_mean_multiplier
from lowbit.integer.graph import Node, Shape, TensorType, known_shape, reach
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class GlobalAveragePool(Node):
    """n = Σ (x − z_x) over all c positions of a channel; y = requant(n, f(s_x / f(s_y · c))), shape (C, 1, …).

    Fixed-point roundings take M from s_x / (c · s_y) in float64.
    """

    independent: ClassVar[Literal["samples", "channels", "elements"]] = "channels"

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,) = shapes
        if len(x) < 2:
            raise LowbitError(f"input of shape {x} has no positions to average over")
        return (x[0],) + (1,) * (len(x) - 1)

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        return _positions(inputs[0]) * reach(inputs[0])

    def multipliers(self, inputs: Sequence[TensorType]) -> list[Multiplier]:
        return [global_mean_multiplier(inputs[0], _positions(inputs[0]), self.codes_of())]

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        (x,), (kind,) = inputs, types
        total = x.sum(tuple(range(2, x.ndim)), keepdim=True, dtype=torch.int32) - _positions(kind) * kind.zero_point
        return rounding.requantize(total, self.multipliers(types)[0], self.codes_of())


def _positions(x: TensorType) -> int:
    return math.prod(known_shape(x)[1:])
