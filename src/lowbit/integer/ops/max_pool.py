"""MaxPool: the largest code in each window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Node, Pads, Shape, TensorType
from lowbit.integer.roundings import Rounding
from lowbit.integer.windows import padded, shifts, window_shape


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Node):
    """Largest code in each window (the scale is positive, so of the largest value); padding never wins.

    Attributes:
        kernel, stride, dilation: one number per spatial dimension.
        padding: (before, after) per spatial dimension.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pads
    dilation: tuple[int, ...]

    independent: ClassVar[Literal["samples", "channels", "elements"]] = "channels"
    moves_codes: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,) = shapes
        out = window_shape(x, self.kernel, self.stride, self.padding, self.dilation)
        if any(max(pair) >= (k - 1) * d + 1 for pair, k, d in zip(self.padding, self.kernel, self.dilation)):
            raise LowbitError(f"padding {self.padding} reaches windows with no element in them")
        return (x[0], *out)

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        around = padded(inputs[0], self.padding, types[0].qn)
        first, *others = shifts(around, self.shape_of()[1:], self.kernel, self.stride, self.dilation)
        best = first.clone()
        for window in others:
            best = torch.maximum(best, window)
        return best
