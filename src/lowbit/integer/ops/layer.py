"""What convolutions and linear layers share: weights, biases, multipliers, a float output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import (
    FLOAT32_TINY,
    Multiplier,
    accumulator_scale,
    layer_multiplier,
)
from lowbit.integer.costs import Work
from lowbit.integer.graph import FloatType, Int32, Node, TensorType, Weight, reach
from lowbit.integer.roundings import Rounding
from lowbit.integer.settings import exact_dtype

_BLOCK = 1 << 22
"""How many weights are taken at a time."""

Index = tuple[slice, ...]
"""A part of a tensor, the batch included."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer(Node):
    """n[o] = bias[o] + Σ w[o,·] · (x − z_x);  y = requant(n, M[o]),  M[o] = f(f(s_x · s_w[o]) / s_y).

    The output's clip range doubles as the activation function (ReLU for z_y = qn_y, ReLU6 by the choice of s_y). With a
    FloatType output y = f(f(n) · f(s_x · s_w[o])), whatever the rounding. Fixed-point roundings take M from
    s_x · s_w[o] / s_y in float64.

    The sum of products runs through a floating-point matrix product, because integer ones are ten times slower in
    torch; it is exact all the same: every factor is an integer and every partial sum is at most `accumulator_bound`,
    which `settings.exact_dtype` makes the type for.

    Attributes:
        weight: codes and scale.
        bias: int32 (out,) on the grid s_x · s_w[o], or None.
    """

    weight: Weight
    bias: Int32 | None = None

    may_give_floats: ClassVar[bool] = True
    channel_axis: ClassVar[int] = 1
    """The dimension of the output, counted with the batch, along which the multipliers lie."""

    def sums(self, x: Tensor, kind: TensorType, dtype: torch.dtype) -> Iterator[tuple[Index, Tensor]]:
        """Yield Σ w · (x − z_x), int32, without the bias, block by block with its place in the output.

        `dtype` holds every partial sum exactly.
        """
        raise NotImplementedError

    def check(self, inputs: Sequence[TensorType]) -> None:
        check_weight(self.weight)
        bias = self.bias
        if bias is not None and (bias.dtype != torch.int32 or bias.shape != self.weight.codes.shape[:1]):
            raise LowbitError(f"bias must be int32, one per output channel, not {bias.dtype} {tuple(bias.shape)}")

    @cached_property
    def _magnitudes(self) -> Tensor:
        return magnitudes(self.weight.codes)

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        sums = self._magnitudes * reach(inputs[0])
        if self.bias is not None:
            sums = sums + self.bias.to(torch.int64).abs()
        return int(sums.max())

    def multipliers(self, inputs: Sequence[TensorType]) -> list[Multiplier]:
        assert self.type is not None
        return [layer_multiplier(inputs[0], self.weight, self.type)]

    def output_scale(self, x: TensorType) -> Tensor:
        """f(s_x · s_w[o]): the real value of one unit of the accumulator."""
        return accumulator_scale(x, self.weight).single

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        (x,), (kind,) = inputs, types
        dtype, (multiplier,) = exact_dtype(self.accumulator_bound(types)), self.multipliers(types)
        axis, floats = self.channel_axis, isinstance(self.type, FloatType)
        shape, y = (len(x), *self.shape_of()), None
        for place, total in self.sums(x, kind, dtype):
            if self.bias is not None:
                places = [1] * total.ndim
                places[axis] = -1
                total += self.bias.reshape(places)
            m = multiplier.along(axis, total.ndim)
            block = total.to(torch.float32) * m.single if floats else rounding.requantize(total, m, self.codes_of())
            if block.shape == shape:  # the only one
                return block
            y = block.new_empty(shape) if y is None else y
            y[place] = block
        assert y is not None
        return y

    def work(self, inputs: Sequence[TensorType]) -> Work:
        weight, biases = self.weight, 0 if self.bias is None else self.bias.numel()
        packed = -(-weight.codes.numel() * weight.bits // 8)
        return Work(
            weight_bits=weight.bits,
            parameters=weight.codes.numel() + biases,
            weight_bytes=packed + 4 * (weight.scale.numel() + biases),
            macs=math.prod(self.shape_of()) * math.prod(weight.codes.shape[1:]),
        )


def magnitudes(codes: Tensor) -> Tensor:
    """Σ |w| of each output channel (out, …) of codes of at most 8 bits, int64."""
    rows = codes.flatten(1)
    # In floats, which torch sums ten times as fast; whole numbers are exact in them below 2^24.
    kind = torch.float32 if rows.shape[1] << 7 < 1 << 24 else torch.float64
    blocks = rows.split(max(1, _BLOCK // max(1, rows.shape[1])))
    return torch.cat([block.to(kind).abs_().sum(1).to(torch.int64) for block in blocks])


def check_weight(weight: Weight) -> None:
    """Raise LowbitError for codes or scales that are not those of a weight."""
    codes, scale = weight.codes, weight.scale
    if type(weight.bits) is not int or not 1 <= weight.bits <= 8:
        raise LowbitError(f"weights of {weight.bits} bits; there are 1 to 8")
    if codes.dtype != torch.int8 or codes.ndim < 2 or codes.numel() == 0:
        raise LowbitError(f"weight codes must be int8 of shape (out, in, …), not {codes.dtype} {tuple(codes.shape)}")
    low, high = int(codes.min()), int(codes.max())
    if weight.bits == 1:
        if bool((codes.abs() != 1).any()):
            raise LowbitError("1-bit weight codes are -1 and +1")
    elif low < -(1 << (weight.bits - 1)) or high > (1 << (weight.bits - 1)) - 1:
        raise LowbitError(f"weight codes {low} .. {high} do not fit {weight.bits} bits")
    if scale.dtype != torch.float32 or scale.shape not in ((), codes.shape[:1]):
        raise LowbitError(
            f"weight scale must be float32, one value or one per output channel, not {scale.dtype} {tuple(scale.shape)}"
        )
    if not bool(torch.isfinite(scale).all()) or bool((scale.abs() < FLOAT32_TINY).any()):
        raise LowbitError("a weight scale is 0 or not finite: calibrate the network again")
