"""Transposed convolutions, as convolutions: one for each phase of the stride, whose results are interleaved.

Along one dimension, with stride s, dilation d and weights w[0 … k − 1], the result at u (before padding is cut off) is
Σ w[t] · x[(u − t·d) / s] over the t for which that is whole: those with t·d ≡ u (mod s). So every phase r = u mod s is
a convolution with its own weights g_r[j] = w[t] at t·d = s·j + r: their s output channels are computed at once, and
`PixelShuffle` interleaves them. No product with a zero between the input's positions is made.

A result that leaves the network in full precision cannot be moved afterwards: there the input's positions are spread by
zeros instead, and one convolution with the reversed kernel follows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from torch import Tensor

from lowbit.integer.graph import Pads, Shape
from lowbit.integer.ops import Pad, PixelShuffle, Reshape, Slice
from lowbit.lowering.values import Move


class Axis(NamedTuple):
    """A transposed convolution along one dimension: sizes of input and output, and of its kernel."""

    size: int
    count: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def taps(self) -> int:
        """Weights of a phase."""
        return (self.kernel - 1) * self.dilation // self.stride + 1

    @property
    def first(self) -> int:
        """The first block of `stride` positions that is computed."""
        return min(self.padding // self.stride, self.taps - 1)

    @property
    def last(self) -> int:
        """The last one."""
        return max((self.padding + self.count - 1) // self.stride, self.size - 1)


def phases(codes: Tensor, axes: Sequence[Axis]) -> tuple[Tensor, Pads]:
    """(weights (out · phases, in/groups, taps …), padding) of the convolution that computes all phases.

    Args:
        codes: (out, in/groups, kernel …).
        axes: one per spatial dimension.
    """
    out, channels = codes.shape[:2]
    strides = [axis.stride for axis in axes]
    found = codes.new_zeros(out, math.prod(strides), channels, *(axis.taps for axis in axes))
    for place in product(*(range(axis.kernel) for axis in axes)):
        steps = [divmod(t * axis.dilation, axis.stride) for t, axis in zip(place, axes)]
        phase = 0
        for (_, rest), stride in zip(steps, strides):
            phase = phase * stride + rest
        where = [axis.taps - 1 - j for (j, _), axis in zip(steps, axes)]
        found[(slice(None), phase, slice(None), *where)] = codes[(slice(None), slice(None), *place)]
    pads = tuple((axis.taps - 1 - axis.first, axis.last - (axis.size - 1)) for axis in axes)
    return found.flatten(0, 1), pads


def interleaved(name: str, axes: Sequence[Axis]) -> list[Move]:
    """From the phases' channels to the result: blocks side by side, and what padding cuts off."""
    factors, moves = tuple(axis.stride for axis in axes), []
    if math.prod(factors) > 1:
        moves.append(Move(f"{name}_phases", lambda n, x: PixelShuffle(name=n, inputs=(x,), factors=factors)))
    for number, axis in enumerate(axes, 2):
        start, size = axis.padding - axis.first * axis.stride, (axis.last - axis.first + 1) * axis.stride
        moves += _cut(name, number, start, start + axis.count, size)
    return moves


def spread(name: str, shape: Shape, axes: Sequence[Axis]) -> tuple[list[Move], Pads]:
    """(moves that put stride − 1 zeros behind every position of the input, padding of the convolution behind them)."""
    moves, pads, sizes = [], [], list(shape)
    for number, axis in enumerate(axes, 1):
        before = axis.dilation * (axis.kernel - 1) - axis.padding
        length = axis.size * axis.stride
        after = axis.count - length - before + axis.dilation * (axis.kernel - 1)
        if axis.stride > 1:
            flat = (math.prod(sizes[: number + 1]), 1, math.prod(sizes[number + 1 :]))
            sizes[number] = length
            moves += _zeros_behind(name, flat, axis.stride, tuple(sizes))
        moves += _cut(name, number + 1, max(-before, 0), length - max(-after, 0), length)
        sizes[number] = length - max(-before, 0) - max(-after, 0)
        pads.append((max(before, 0), max(after, 0)))
    return moves, tuple(pads)


def reversed_kernel(codes: Tensor) -> Tensor:
    """The kernel that a convolution over the spread input has."""
    return codes.flip(*range(2, codes.ndim))


def _zeros_behind(name: str, flat: Shape, stride: int, whole: Shape) -> list[Move]:
    pads = ((0, 0), (0, stride - 1), (0, 0))
    return [
        Move(f"{name}_positions", lambda n, x: Reshape(name=n, inputs=(x,), shape=flat)),
        Move(f"{name}_spread", lambda n, x: Pad(name=n, inputs=(x,), padding=pads)),
        Move(f"{name}_whole", lambda n, x: Reshape(name=n, inputs=(x,), shape=whole)),
    ]


def _cut(name: str, axis: int, start: int, stop: int, size: int) -> list[Move]:
    if (start, stop) == (0, size):
        return []
    return [Move(f"{name}_cut", lambda n, x: Slice(name=n, inputs=(x,), axis=axis, start=start, stop=stop))]
