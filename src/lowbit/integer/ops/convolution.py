"""Convolution in one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Pads, Shape, TensorType, known_shape
from lowbit.integer.ops.layer import Layer
from lowbit.integer.windows import padded, shifts, window_shape

_WINDOW_ELEMENTS = 1 << 22  # of the gathered windows at once: about a cache's worth


@dataclass(frozen=True, eq=False, kw_only=True)
class Convolution(Layer):
    """n[o] = bias[o] + Σ w[o,·] · (x − z_x) over the window; the rest as `Layer`.

    Outside the image x = z_x, so that padding adds real 0. One to three spatial dimensions. No Winograd or Fourier form is
    used, whose partial results are no integers.

    Attributes:
        stride, dilation: one number per spatial dimension.
        padding: (before, after) per spatial dimension.
        groups: of input and output channels.
    """

    stride: tuple[int, ...]
    padding: Pads
    dilation: tuple[int, ...]
    groups: int = 1

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,), codes, groups = shapes, self.weight.codes, self.groups
        if len(x) != codes.ndim - 1:
            raise LowbitError(f"weight {tuple(codes.shape)} does not fit an input of shape {x}")
        if groups < 1 or codes.shape[0] % groups or x[0] != codes.shape[1] * groups:
            raise LowbitError(f"weight {tuple(codes.shape)} in {groups} groups does not fit {x[0]} input channels")
        kernel = tuple(codes.shape[2:])
        return (codes.shape[0], *window_shape(x, kernel, self.stride, self.padding, self.dilation))

    def samples_at_once(self, kind: TensorType, batch: int) -> int:
        per_sample = known_shape(kind)[0] * math.prod(self.weight.codes.shape[2:]) * math.prod(self.shape_of()[1:])
        return max(1, _WINDOW_ELEMENTS // per_sample)

    def sums(self, x: Tensor, kind: TensorType, dtype: torch.dtype) -> Tensor:
        """Gathered windows times the weight matrix."""
        weight, groups, out = self.weight.codes, self.groups, self.shape_of()[1:]
        kernel = tuple(weight.shape[2:])
        around = padded(x.to(dtype) - kind.zero_point, self.padding, 0)
        columns = around.new_empty(len(x), x.shape[1], math.prod(kernel), *out)
        for position, window in enumerate(shifts(around, out, kernel, self.stride, self.dilation)):
            columns[:, :, position] = window
        columns = columns.reshape(len(x), groups, -1, math.prod(out))
        total = weight.to(dtype).reshape(groups, weight.shape[0] // groups, -1) @ columns
        return total.to(torch.int32).reshape(len(x), weight.shape[0], *out)
