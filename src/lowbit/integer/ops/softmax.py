"""Softmax over one dimension, of all its elements or of those that a mask shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import f32, to_codes
from lowbit.integer.graph import FLOAT32_UNIT, ROUNDINGS, Int32, Node, Shape, TensorType, known_shape
from lowbit.integer.ops.broadcast import aligned, broadcasts_to
from lowbit.integer.roundings import Rounding

_SUM_BITS = 31
_TABLE_BITS = 23  # an entry is a float32 value
_SHIFT_MAX = 29  # so that a sum times 2^(k + 1) has at most 61 bits
_SCALES = (2.0**-20, 2.0**4)
_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True, eq=False, kw_only=True)
class Exponentials(Node):
    """What both kinds of softmax are made of.

    Attributes:
        axis: the dimension, counted with the batch as 0.
        table: int32, T[0] first, one entry per difference of two input codes, falling. `exponentials` computes one.
    """

    axis: int
    table: Int32 | None

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        x = shapes[0]
        if not 1 <= self.axis <= len(x):
            raise LowbitError(f"an input of shape {x} has no dimension {self.axis}")
        return x

    def check(self, inputs: Sequence[TensorType]) -> None:
        x, y, table = inputs[0], self.codes_of(), self.entries()
        if table.dtype != torch.int32 or table.shape != (x.qp - x.qn + 1,):
            raise LowbitError(
                f"the table must be int32 with {x.qp - x.qn + 1} entries, not {table.dtype} {tuple(table.shape)}"
            )
        if int(table.min()) < 0 or not 1 <= int(table[0]) <= 1 << _TABLE_BITS or bool((table.diff() > 0).any()):
            raise LowbitError(f"the table must fall from 1 .. 2^{_TABLE_BITS} to 0 or more")
        if not _SCALES[0] <= y.scale <= _SCALES[1]:
            raise LowbitError(
                f"scale {y.scale:g} of numbers up to 1 is not in 2^-20 .. 16: calibrate the network again"
            )

    def entries(self) -> Tensor:
        """The table. Raises LowbitError where there is none."""
        if self.table is None:
            raise LowbitError("a softmax has a table of exponentials")
        return self.table

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        x = inputs[0]
        shape = known_shape(x)
        return int(self.entries()[0]) * (shape[self.axis - 1] if 1 <= self.axis <= len(shape) else 1)

    def tolerance(self, inputs: Sequence[TensorType]) -> float:
        """L / (2 · T[0] · s_y) + 8 · 2^-24 / s_y.

        An entry is off by 1/2 at most, and T[0] is exact; with S >= T[0] and e <= S the quotient e / S is off by at
        most (1/2 + (L − 1) / 2) / T[0]. The four roundings to float32 add 2^-24 each, of a quotient of at most 1.
        """
        x, scale = inputs[0], self.codes_of().scale
        length = known_shape(x)[self.axis - 1]
        return length / (2 * int(self.entries()[0]) * scale) + ROUNDINGS * FLOAT32_UNIT / scale

    def shares(self, e: Tensor, rounding: Rounding) -> Tensor:
        """The codes of e / Σ e, from the entries e."""
        y = self.codes_of()
        total = e.sum(self.axis, keepdim=True, dtype=torch.int32).clamp_(min=1)  # 0 where nothing is shown
        if rounding.name == "float":
            return to_codes((e.to(torch.float32) * (self.factor() / total.to(torch.float32))).round_(), y)
        m, k = self.fixed_factor()
        wide = total.to(torch.int64) << k
        return to_codes((2 * e.to(torch.int64) * m + wide) // (2 * wide), y)

    def blocks(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Parts of tensors of one shape that are computed one after the other, along `split_axis`."""
        x = tensors[0]
        axis = self.split_axis(x)
        length = max(1, x.shape[axis] * _BLOCK_ELEMENTS // x.numel())
        return zip(*(each.split(length, axis) for each in tensors))

    def split_axis(self, x: Tensor) -> int:
        """The longest dimension but the softmax's own."""
        return max((axis for axis in range(x.ndim) if axis != self.axis), key=lambda axis: x.shape[axis])

    def factor(self) -> Tensor:
        """f(1 / s_y)."""
        return 1 / f32(self.codes_of().scale)

    def fixed_factor(self) -> tuple[int, int]:
        """(m, k)."""
        _, exponent = math.frexp(1 / self.codes_of().scale)
        k = min(_SHIFT_MAX, 31 - exponent)
        m = round(math.ldexp(1 / self.codes_of().scale, k))
        return (m, k) if m < 1 << 31 else (round(math.ldexp(1 / self.codes_of().scale, k - 1)), k - 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Softmax(Exponentials):
    """exp(x) / Σ exp(x) along one dimension, of L elements, from a table T[d] = rint(T[0] · exp(−s_x · d)).

    d = max(x) − x,  e = T[d],  S = Σ e,  32-bit integers
    float   y = clip(rint(f(f(e) · f(f(1 / s_y) / f(S)))) + z_y)
    other roundings: y = clip((2 · e · m + S · 2^k) div (S · 2^(k + 1)) + z_y), 64 bits, div cutting off: a half goes
    up.
            m = rint(2^k / s_y), k the largest number up to 29 with m < 2^31
    """

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        return torch.cat([self._of(part, rounding) for (part,) in self.blocks(inputs[0])], self.split_axis(inputs[0]))

    def _of(self, x: Tensor, rounding: Rounding) -> Tensor:
        steps = x.to(torch.int32)
        return self.shares(self.entries()[steps.amax(self.axis, keepdim=True) - steps], rounding)


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskedSoftmax(Exponentials):
    """`Softmax` of the elements that a mask shows: codes of one bit, 1 for those, of a shape that is repeated to x's.

    max(x) is of the elements that are shown; for all others e = 0, exactly. So they add nothing to S, and their code is
    that of 0. Where nothing of a row is shown S is 1, and all its codes are that of 0.
    """

    arity: ClassVar[int | None] = 2

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        x, mask = shapes
        if not broadcasts_to(mask, x):
            raise LowbitError(f"a mask of shape {mask} does not broadcast to scores of shape {x}")
        return super().output_shape(shapes)

    def check(self, inputs: Sequence[TensorType]) -> None:
        super().check(inputs)
        if inputs[1].bits != 1 or inputs[1].zero_point != 0:
            raise LowbitError("a mask has codes of one bit with the zero point 0")

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        x, mask = aligned(inputs)
        parts = [self._of(a, m, types[0].qn, rounding) for a, m in self.blocks(x, mask.expand_as(x))]
        return torch.cat(parts, self.split_axis(x))

    def _of(self, x: Tensor, mask: Tensor, low: int, rounding: Rounding) -> Tensor:
        shown = mask != 0
        steps = torch.where(shown, x.to(torch.int32), low)
        e = self.entries()[steps.amax(self.axis, keepdim=True) - steps]
        return self.shares(torch.where(shown, e, 0), rounding)


def exponentials(x: TensorType, length: int) -> Tensor:
    """Table of `Softmax` over `length` elements of codes of x.

    T[0] = 2^j. j is the largest number up to 23 whose sums are at most 2^24, which float32 sums exactly; but 16 where
    more than 256 elements make it smaller, as long as sums are at most 2^30.

    Raises LowbitError for more than 2^29 elements.
    """
    doublings = (length - 1).bit_length()
    bits = min(max(min(_TABLE_BITS, 24 - doublings), 16), _SUM_BITS - 1 - doublings)
    if bits < 1:
        raise LowbitError(f"a softmax over {length:,} elements; there are at most {1 << 29:,}")
    entries = [round(math.ldexp(math.exp(-x.scale * d), bits)) for d in range(x.qp - x.qn + 1)]
    return torch.tensor(entries, dtype=torch.int32, device="cpu")
