"""The named ways in which integer accumulators become codes.

A rounding is an entry of `ROUNDINGS`, and every operation runs in each.

    float             clip(rint(f(f(n) · M)) + z_y)                       M a float32, rounded as the operation says
    fixed clip(sign(n) · ((|n| · m + 2^(k−1)) >> k) + z_y) m = rint(|M| · 2^k), 2^30 <= m < 2^31, M from float64;
                                                                          64-bit product, half away from zero; 0 where k
                                                                          > 62
    shift clip(rint(n · M) + z_y), exact where all M of an operation are ±2^−k; else as "fixed" fixed16 clip(((n · m +
    2^(k−1)) >> k) + z_y) m = rint(|M| · 2^k), 2^15 <= m < 2^16, M from float64 double-rounding a = (n · m + 2^30) >>
    31, then TFLite's m and e (`significand_and_exponent`) for
                      clip(sign(a) · ((|a| + 2^(−e−1)) >> −e) + z_y)      M = unit / s_y (`Multiplier.unit`)
    single-rounding   clip(((n · m + 2^(30−e)) >> (31 − e)) + z_y)        the same m and e

In all but "float" a negative M negates n first.

"float" is what ONNX Runtime 1.31 computes, to the bit, with its graph optimizations on x86-64 processors that have
AVX2; "fixed" is what processors without a float unit do, "fixed16" those that lack a product of 64 bits, too. "shift"
is what C files do: of a network with power-of-two steps it gives the codes of "float", which the trained network has.
"double-rounding" is what TensorFlow Lite's reference kernels, TensorFlow Lite Micro and, by default, CMSIS-NN compute
on 8-bit tensors; "single-rounding" the same where they are compiled with TFLITE_SINGLE_ROUNDING or
CMSIS_NN_USE_SINGLE_ROUNDING.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import (
    Multiplier,
    common_exponent,
    common_shift,
    exponents,
    mantissa_and_shift,
    product_half_up,
    shift_half_away,
    shift_half_even,
    shift_half_up,
    significand_and_exponent,
    to_codes,
)
from lowbit.integer.graph import TensorType


class Rounding(Protocol):
    """One way of rounding.

    What an operation needs beside these two it states in its own file, for the rounding's name.
    """

    @property
    def name(self) -> str:
        """What it is called in `IntegerNetwork(x, requantize=…)`."""
        ...

    def requantize(self, n: Tensor, m: Multiplier, y: TensorType) -> Tensor:
        """requant(n, M): codes of the int32 accumulator n, against which M broadcasts."""
        ...

    def weighted_sum(self, steps: Sequence[Tensor], factors: Sequence[Multiplier], y: TensorType) -> Tensor:
        """Codes of Σ M_i · n_i, rounded once, for int32 steps n_i and multipliers of one value each, of either sign."""
        ...


class FloatRounding:
    """Float32 multipliers, half to even. weighted_sum: clip(rint(f(f(n_a · M_a) + f(n_b · M_b))) + z_y)."""

    name = "float"

    def requantize(self, n: Tensor, m: Multiplier, y: TensorType) -> Tensor:
        return to_codes(n.to(torch.float32).mul_(m.single).round_(), y)

    def weighted_sum(self, steps: Sequence[Tensor], factors: Sequence[Multiplier], y: TensorType) -> Tensor:
        first, *others = (n.to(torch.float32) * m.single for n, m in zip(steps, factors))
        for other in others:
            first = first + other
        return to_codes(first.round(), y)


class FixedRounding:
    """31-bit integer multipliers with a shift, half away from zero.

    weighted_sum: m_i = rint(M_i · 2^k), the largest magnitude in 2^30 … 2^31 − 1; t = Σ n_i · m_i in 64 bits;
    clip(sign(t) · ((|t| + 2^(k−1)) >> k) + z_y).
    """

    name = "fixed"

    def requantize(self, n: Tensor, m: Multiplier, y: TensorType) -> Tensor:
        mantissa, shift = mantissa_and_shift(m.exact)
        signed = m.exact.sign().to(torch.int64) * mantissa
        return to_codes(shift_half_away(n.to(torch.int64) * signed, shift), y)

    def weighted_sum(self, steps: Sequence[Tensor], factors: Sequence[Multiplier], y: TensorType) -> Tensor:
        mantissas, shift = common_shift([m.exact for m in factors])
        total = sum(n.to(torch.int64) * m for n, m in zip(steps, mantissas))
        assert isinstance(total, Tensor)
        return to_codes(shift_half_away(total, shift), y)


class ShiftRounding(FixedRounding):
    """Shifts with halves to even where all multipliers of an operation are powers of two; "fixed" where they are not.

    weighted_sum: M_i = ±2^(k_i − k), the least k_i being 0: t = Σ ±n_i · 2^k_i, shifted by k; "fixed" where a k_i
        passes 15.
    """

    name = "shift"

    def requantize(self, n: Tensor, m: Multiplier, y: TensorType) -> Tensor:
        powers = exponents(m.exact)
        if powers is None:
            return super().requantize(n, m, y)
        return to_codes(shift_half_even(n.to(torch.int64) * m.exact.sign().to(torch.int64), -powers), y)

    def weighted_sum(self, steps: Sequence[Tensor], factors: Sequence[Multiplier], y: TensorType) -> Tensor:
        found = common_exponent([m.exact for m in factors])
        if found is None:
            return super().weighted_sum(steps, factors, y)
        total = sum(n.to(torch.int64) * factor for n, factor in zip(steps, found[0]))
        assert isinstance(total, Tensor)
        return to_codes(shift_half_even(total, torch.tensor(found[1], device="cpu")), y)


class Fixed16Rounding:
    """16-bit integer multipliers with a shift, half up.

    32 bits hold all products, of the halves of n where n has more than 16.

    k is at least 1, and m at most 2^16 − 1: where M is 2^15 or more, any n but 0 leaves the range of every code.
    weighted_sum: m_i = rint(M_i · 2^k), the largest magnitude in 2^15 … 2^16 − 1; clip(((Σ n_i · m_i + 2^(k−1)) >> k) +
    z_y). Where k would pass 47, m is 0.
    """

    name = "fixed16"

    def requantize(self, n: Tensor, m: Multiplier, y: TensorType) -> Tensor:
        mantissa, shift = self.mantissa_and_shift(m.exact)
        signed = m.exact.sign().to(torch.int64) * mantissa
        return to_codes(shift_half_up(n.to(torch.int64) * signed, shift), y)

    def weighted_sum(self, steps: Sequence[Tensor], factors: Sequence[Multiplier], y: TensorType) -> Tensor:
        mantissas, shift = self.common_shift([m.exact for m in factors])
        total = sum(n.to(torch.int64) * m for n, m in zip(steps, mantissas))
        assert isinstance(total, Tensor)
        return to_codes(shift_half_up(total, shift), y)

    @staticmethod
    def mantissa_and_shift(m: Tensor) -> tuple[Tensor, Tensor]:
        """(m, k) for |m|, elementwise; (0, 1) where k passes 47: the product then rounds to 0."""
        mantissa, shift = mantissa_and_shift(m, 16)
        mantissa, shift = torch.where(shift < 1, (1 << 16) - 1, mantissa), shift.clamp(min=1)
        gone = shift > _SHIFT16_MAX
        return mantissa.masked_fill(gone, 0), shift.masked_fill(gone, 1)

    @classmethod
    def common_shift(cls, factors: Sequence[Tensor]) -> tuple[list[int], int]:
        """(mantissas, k) of 0-dim factors of either sign."""
        mantissas, shift = common_shift(factors, 16)
        if not 1 <= int(shift) <= _SHIFT16_MAX:
            limit = (1 << 16) - 1 if int(shift) < 1 else 0
            return [max(-limit, min(limit, round(2 * float(factor)))) for factor in factors], 1
        return mantissas, int(shift)


class TfliteRounding:
    """TensorFlow Lite's integer kernels; the arithmetic is stated at the top, for single and for double rounding.

    With e > 0, and so m · 2^e >= 2^31, both round once. Numbers that pass 32 bits are exact here; TFLite's wrap around,
    and a file that could meet them is refused.
    weighted_sum: s = 2 · max(unit_i); t = Σ ± r(n_i · 2^20, unit_i / s), clip(r(t, s / (2^20 · s_y)) + z_y), where r(n,
    M) is the rounding above before z_y and clip, and ± the sign of M_i.
    """

    def __init__(self, name: str, *, single: bool) -> None:
        self.name, self._single = name, single

    def requantize(self, n: Tensor, m: Multiplier, y: TensorType) -> Tensor:
        significand, exponent = significand_and_exponent(m.unit / y.scale, m.count)
        signed = m.unit.sign().to(torch.int64) * significand
        return to_codes(self._rest(shift_half_up(n.to(torch.int64) * signed, self._shift(exponent)), exponent), y)

    def weighted_sum(self, steps: Sequence[Tensor], factors: Sequence[Multiplier], y: TensorType) -> Tensor:
        *parts, (last, out) = tflite_sum(factors, y)
        total = torch.zeros((), dtype=torch.int64, device="cpu")
        for n, (significand, exponent), m in zip(steps, parts, factors):
            product = n.to(torch.int64) * significand  # times 2^20, which the shift has less
            term = self._rest(shift_half_up(product, self._shift(exponent) - SUM_SHIFT), exponent)
            total = total - term if float(m.exact) < 0 else total + term
        return to_codes(self._rest(product_half_up(total, last, self._shift(out)), out), y)

    def _shift(self, exponent: Tensor) -> Tensor:
        """Of the product, before it is rounded."""
        return 31 - (exponent if self._single else exponent.clamp(min=0))

    def _rest(self, n: Tensor, exponent: Tensor) -> Tensor:
        """The second rounding of what the first one gave."""
        return n if self._single else shift_half_away(n, -exponent.clamp(max=0))


def tflite_sum(factors: Sequence[Multiplier], y: TensorType) -> list[tuple[Tensor, Tensor]]:
    """(significand, exponent) of every operand of a sum, and of the sum itself, as `TfliteRounding` has them."""
    units = [m.unit for m in factors]
    twice = 2 * torch.stack(units).max()
    return [
        significand_and_exponent(m) for m in (*(unit / twice for unit in units), twice / (2.0**SUM_SHIFT * y.scale))
    ]


SUM_SHIFT = 20
"""Bits that TFLite's kernels put behind the point of a sum's operands."""
_SHIFT16_MAX = 47  # beyond, every product of 32 and 16 bits rounds to 0

DOUBLE, SINGLE = TfliteRounding("double-rounding", single=False), TfliteRounding("single-rounding", single=True)
ROUNDINGS: dict[str, Rounding] = {
    rounding.name: rounding
    for rounding in (FloatRounding(), FixedRounding(), ShiftRounding(), Fixed16Rounding(), DOUBLE, SINGLE)
}
"""Every rounding there is, by name."""


def get_rounding(name: str) -> Rounding:
    """The rounding of that name. Raises LowbitError for a name that there is not."""
    if name not in ROUNDINGS:
        raise LowbitError(f"requantize={name!r}: there are {', '.join(map(repr, ROUNDINGS))}")
    return ROUNDINGS[name]
