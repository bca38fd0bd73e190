"""Convolution in one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Pads, Shape, TensorType, known_shape
from lowbit.integer.ops.layer import Index, Layer
from lowbit.integer.windows import padded, shifts, window_shape

_WINDOW_ELEMENTS = 1 << 22  # of the gathered windows at once: about a cache's worth


@dataclass(frozen=True, eq=False, kw_only=True)
class Convolution(Layer):
    """n[o] = bias[o] + Σ w[o,·] · (x − z_x) over the window; the rest as `Layer`.

    Outside the image x = z_x, so that padding adds real 0. One to three spatial dimensions. No Winograd or Fourier form
    is used, whose partial results are no integers.

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

    def sums(self, x: Tensor, kind: TensorType, dtype: torch.dtype) -> Iterator[tuple[Index, Tensor]]:
        """Gathered windows times the weight matrix: of several samples at once, or of some rows of one."""
        out, kernel = self.shape_of()[1:], tuple(self.weight.codes.shape[2:])
        per_row = known_shape(kind)[0] * math.prod(kernel) * math.prod(out[1:])
        samples = max(1, _WINDOW_ELEMENTS // (per_row * out[0]))
        rows = min(out[0], max(1, _WINDOW_ELEMENTS // per_row))
        weight = self.weight.codes.to(dtype).reshape(self.groups, self.weight.codes.shape[0] // self.groups, -1)
        for first in range(0, len(x), samples):
            batch = slice(first, min(first + samples, len(x)))
            for top in range(0, out[0], rows):
                block = range(top, min(top + rows, out[0]))
                total = self._block(x[batch], kind, weight, block)
                yield (batch, slice(None), slice(block.start, block.stop)), total

    def _block(self, x: Tensor, kind: TensorType, weight: Tensor, rows: range) -> Tensor:
        """The sums of some rows, counted along the first spatial dimension of the output."""
        out, kernel = (len(rows), *self.shape_of()[2:]), tuple(self.weight.codes.shape[2:])
        # The input's rows that the block's windows meet, of which some lie in the padding.
        start = rows.start * self.stride[0] - self.padding[0][0]
        stop = rows[-1] * self.stride[0] - self.padding[0][0] + (kernel[0] - 1) * self.dilation[0] + 1
        low = min(max(start, 0), x.shape[2])
        high = min(max(stop, low), x.shape[2])
        before = min(max(-start, 0), stop - start)
        pads = ((before, stop - start - before - (high - low)), *self.padding[1:])
        around = padded(x[:, :, low:high].to(weight.dtype) - kind.zero_point, pads, 0)
        columns = around.new_empty(len(x), x.shape[1], math.prod(kernel), *out)
        for position, window in enumerate(shifts(around, out, kernel, self.stride, self.dilation)):
            columns[:, :, position] = window
        columns = columns.reshape(len(x), self.groups, -1, math.prod(out))
        return (weight @ columns).to(torch.int32).reshape(len(x), -1, *out)
