"""The named ways in which integer accumulators become codes. A rounding is an entry of `ROUNDINGS`, and every operation runs in each.

    float   clip(rint(f(f(n) · M)) + z_y)                       M a float32, rounded as the operation says
    fixed   clip(sign(n) · ((|n| · m + 2^(k−1)) >> k) + z_y)    m = rint(|M| · 2^k), 2^30 <= m < 2^31, M from float64;
                                                                64-bit product, half away from zero; 0 where k > 62;
                                                                a negative M negates n first

"float" is what ONNX Runtime 1.31 computes, to the bit, with its graph optimizations on x86-64 processors that have AVX2;
"fixed" is what processors without a float unit do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import Multiplier, common_shift, mantissa_and_shift, shift_half_away, to_codes
from lowbit.integer.graph import TensorType


class Rounding(Protocol):
    """One way of rounding. What an operation needs beside these two it states in its own file, for the rounding's name."""

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


ROUNDINGS: dict[str, Rounding] = {rounding.name: rounding for rounding in (FloatRounding(), FixedRounding())}
"""Every rounding there is, by name."""


def get_rounding(name: str) -> Rounding:
    """The rounding of that name. Raises LowbitError for a name that there is not."""
    if name not in ROUNDINGS:
        raise LowbitError(f"requantize={name!r}: there are {' and '.join(map(repr, ROUNDINGS))}")
    return ROUNDINGS[name]
