"""Reduce and Extremum: sums, means, maxima and minima over any dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import Multiplier, global_mean_multiplier, ratio
from lowbit.integer.graph import Node, Shape, TensorType, known_shape, reach
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Reduction(Node):
    """One number for all elements along some dimensions.

    Attributes:
        axes: the dimensions, in ascending order, counted with the batch as 0.
        keepdim: leave them in the shape, with size 1.
        function: which one.
    """

    axes: tuple[int, ...]
    keepdim: bool
    function: str

    functions: ClassVar[tuple[str, ...]] = ()

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,) = shapes
        if (
            not self.axes
            or list(self.axes) != sorted(set(self.axes))
            or not 1 <= min(self.axes) <= max(self.axes) <= len(x)
        ):
            raise LowbitError(f"axes {self.axes} of an input of shape {x}: some of 1 .. {len(x)}, each once, in order")
        kept = [1 if axis in self.axes else size for axis, size in enumerate(x, 1)]
        return tuple(size for axis, size in enumerate(kept, 1) if self.keepdim or axis not in self.axes)

    def check(self, inputs: Sequence[TensorType]) -> None:
        if self.function not in self.functions:
            raise LowbitError(f"{type(self).__name__} is one of {', '.join(self.functions)}, not {self.function!r:.40}")

    def count(self, x: TensorType) -> int:
        """How many elements become one."""
        return math.prod(size for axis, size in enumerate(known_shape(x), 1) if axis in self.axes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reduce(Reduction):
    """n = Σ (x − z_x) over c elements;  y = requant(n, M).

    mean    M = f(s_x / f(s_y · c)),   in float64 s_x / (c · s_y) for fixed-point roundings
    sum     M = f(s_x / s_y)
    """

    functions: ClassVar[tuple[str, ...]] = ("mean", "sum")

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        return self.count(inputs[0]) * reach(inputs[0])

    def multipliers(self, inputs: Sequence[TensorType]) -> list[Multiplier]:
        (x,), y = inputs, self.codes_of()
        return [global_mean_multiplier(x, self.count(x), y) if self.function == "mean" else ratio(x, y)]

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        (x,), (kind,) = inputs, types
        total = x.sum(self.axes, keepdim=self.keepdim, dtype=torch.int32) - self.count(kind) * kind.zero_point
        return rounding.requantize(total, self.multipliers(types)[0], self.codes_of())


@dataclass(frozen=True, eq=False, kw_only=True)
class Extremum(Reduction):
    """The largest or smallest code, which is that of the largest or smallest value: a scale is positive."""

    functions: ClassVar[tuple[str, ...]] = ("maximum", "minimum")
    moves_codes: ClassVar[bool] = True

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        of = torch.amax if self.function == "maximum" else torch.amin
        return of(inputs[0], self.axes, keepdim=self.keepdim)
