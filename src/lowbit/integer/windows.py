"""Windows that slide over the positions of a tensor: their shapes, and the elements that each position of a kernel meets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Pads, Shape


def window_shape(space: Shape, kernel: Shape, stride: Shape, padding: Pads, dilation: Shape) -> Shape:
    """How many windows there are per spatial dimension. Raises LowbitError for windows that mean nothing."""
    if not len(space) == len(kernel) == len(stride) == len(padding) == len(dilation) or not 1 <= len(space) <= 3:
        raise LowbitError(f"kernel, stride, padding and dilation must have {len(space)} entries each, 1 to 3")
    if min(*kernel, *stride, *dilation, 1) < 1 or any(len(pair) != 2 or min(pair) < 0 for pair in padding):
        raise LowbitError("kernel, stride and dilation must be at least 1, padding at least 0")
    return tuple(
        (size + before + after - d * (k - 1) - 1) // s + 1
        for size, k, s, (before, after), d in zip(space, kernel, stride, padding, dilation)
    )


def padded(x: Tensor, padding: Pads, value: int) -> Tensor:
    """x (batch, channels, *space) with `value` around its positions."""
    flat = [size for pair in reversed(padding) for size in pair]
    return torch.nn.functional.pad(x, flat, value=value) if any(flat) else x


def shifts(x: Tensor, out: Shape, kernel: Shape, stride: Shape, dilation: Shape) -> Iterator[Tensor]:
    """For every position in the kernel, row-major, the view of the padded x that meets it: (batch, channels, *out)."""
    for position in product(*(range(k) for k in kernel)):
        index = [slice(p * d, p * d + (o - 1) * s + 1, s) for p, d, o, s in zip(position, dilation, out, stride)]
        yield x[(slice(None), slice(None), *index)]
