"""Windows that slide over the positions of a tensor.

Their shapes, and the elements that each position of a kernel meets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Pads, Shape
from lowbit.integer.limits import KERNEL_MAX, TENSOR_MAX, WINDOWS_MAX


def window_shape(x: Shape, kernel: Shape, stride: Shape, padding: Pads, dilation: Shape) -> Shape:
    """How many windows there are per spatial dimension of x (channels, *space).

    Raises LowbitError for windows that mean nothing, or that are too large or too many (`integer.limits`).
    """
    space = x[1:]
    if not len(space) == len(kernel) == len(stride) == len(padding) == len(dilation) or not 1 <= len(space) <= 3:
        raise LowbitError(f"kernel, stride, padding and dilation must have {len(space)} entries each, 1 to 3")
    if min(*kernel, *stride, *dilation, 1) < 1 or any(len(pair) != 2 or min(pair) < 0 for pair in padding):
        raise LowbitError("kernel, stride and dilation must be at least 1, padding at least 0")
    around = [size + before + after for size, (before, after) in zip(space, padding)]
    out = tuple((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(around, kernel, stride, dilation))
    if min(out) < 1:
        raise LowbitError(f"a kernel of {kernel} with dilation {dilation} does not fit {tuple(around)} positions")
    if x[0] * math.prod(around) > TENSOR_MAX:
        raise LowbitError(
            f"padded to {(x[0], *around)} its input is too large; a sample has at most {TENSOR_MAX:,} elements"
        )
    positions = math.prod(kernel)
    if positions > KERNEL_MAX:
        raise LowbitError(f"a kernel of {kernel} is too large; it has at most {KERNEL_MAX:,} positions")
    if x[0] * positions * math.prod(out) > WINDOWS_MAX:
        raise LowbitError(
            f"kernel {kernel} at {out} windows of {x[0]} channels meets more than {WINDOWS_MAX:,} elements"
        )
    return out


def padded(x: Tensor, padding: Pads, value: int) -> Tensor:
    """x (batch, channels, *space) with `value` around its positions."""
    flat = [size for pair in reversed(padding) for size in pair]
    return torch.nn.functional.pad(x, flat, value=value) if any(flat) else x


def shifts(x: Tensor, out: Shape, kernel: Shape, stride: Shape, dilation: Shape) -> Iterator[Tensor]:
    """For every position in the kernel, row-major, the view of the padded x that meets it: (batch, channels, *out)."""
    for position in product(*(range(k) for k in kernel)):
        index = [slice(p * d, p * d + (o - 1) * s + 1, s) for p, d, o, s in zip(position, dilation, out, stride)]
        yield x[(slice(None), slice(None), *index)]
