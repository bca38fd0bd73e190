"""The arithmetic that operations share: multipliers in float32 and float64, fused multiply-add, fixed-point shifts.

Every multiplier of every operation is computed here and nowhere else; formats take their constants from the operations
(`Node.multipliers`), and so from here. f(·) and the other notation: `integer.graph`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.integer.graph import FloatType, TensorType, Weight

FLOAT32_TINY = 2.0**-126
"""The smallest normal float32: below it, runtimes may flush to zero."""
SCALE_MIN = 2 * FLOAT32_TINY
"""The smallest scale of codes: an input that may be flushed to zero then lies less than half a step from it."""
FLOAT32_MAX = float(torch.finfo(torch.float32).max)


@dataclass(frozen=True, eq=False)
class Multiplier:
    """A real factor M, output steps per unit of an accumulator; one value, or one per channel.

    Attributes:
        single: float32, rounded as the operation states it.
        exact: float64, before any rounding to float32.
        unit: float64, the real value of one unit of the accumulator as TFLite's kernels compute it, from the float32
            numbers of a file; their multiplier is unit / s_y.
        count: by which TFLite's kernels divide the integer multiplier of a mean.
        through: float64, the magnitude of a product of scales that `single` is rounded through, where there is one.
    """

    single: Tensor
    exact: Tensor
    unit: Tensor
    count: int = 1
    through: Tensor | None = None

    def along(self, axis: int, rank: int) -> Multiplier:
        """The same, reshaped from one value per channel to broadcast along `axis` of a tensor of `rank` dimensions."""
        if self.single.ndim == 0:
            return self
        shape = [1] * rank
        shape[axis] = -1
        return replace(
            self, single=self.single.reshape(shape), exact=self.exact.reshape(shape), unit=self.unit.reshape(shape)
        )

    def negated(self) -> Multiplier:
        """−M."""
        return replace(self, single=-self.single, exact=-self.exact)


def f32(value: float) -> Tensor:
    """f(value), a 0-dim tensor."""
    return torch.tensor(value, dtype=torch.float32, device="cpu")


def code_dtype(y: TensorType) -> torch.dtype:
    """uint8 and int8 for codes of at most 8 bits; int16 and, for 16 unsigned bits, int32 for wider ones."""
    if y.bits <= 8:
        return torch.int8 if y.signed else torch.uint8
    return torch.int32 if y.bits == 16 and not y.signed else torch.int16


def steps_of(codes: Tensor, x: TensorType) -> Tensor:
    """q − z, int32."""
    return codes.to(torch.int32) - x.zero_point


def all_codes(x: TensorType) -> Tensor:
    """Every code of a grid from the lowest to the highest, int32."""
    return torch.arange(x.qn, x.qp + 1, dtype=torch.int32, device="cpu")


def look_up(table: Tensor, codes: Tensor, x: TensorType) -> Tensor:
    """table[q − qn]."""
    return table[codes.to(torch.int32) - x.qn]


def to_codes(steps: Tensor, y: TensorType) -> Tensor:
    """clip(steps + z) of steps that are whole numbers, in `code_dtype`; `steps` is overwritten."""
    return steps.clamp_(y.qn - y.zero_point, y.qp - y.zero_point).add_(y.zero_point).to(code_dtype(y))


# ---------------------------------------------------------------- multipliers


def _exact(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def accumulator_scale(x: TensorType, weight: Weight) -> Multiplier:
    """f(s_x · s_w): the real value of one unit of a layer's accumulator."""
    exact = x.scale * weight.scale.to(torch.float64)
    return Multiplier(f32(x.scale) * weight.scale, exact, exact)


def layer_multiplier(x: TensorType, weight: Weight, y: TensorType | FloatType) -> Multiplier:
    """M = f(f(s_x · s_w) / s_y); for a float output the accumulator's scale itself."""
    scale = accumulator_scale(x, weight)
    if isinstance(y, FloatType):
        return scale
    return replace(scale, single=scale.single / f32(y.scale), exact=scale.exact / y.scale, through=scale.exact.abs())


def ratio(x: TensorType, y: TensorType) -> Multiplier:
    """M = f(s_x / s_y)."""
    return Multiplier(f32(x.scale) / f32(y.scale), _exact(x.scale / y.scale), _exact(x.scale))


def product_multiplier(a: TensorType, b: TensorType, y: TensorType | FloatType) -> Multiplier:
    """M = f(f(s_a · s_b) / s_y); for a float output f(s_a · s_b)."""
    single, exact = f32(a.scale) * f32(b.scale), _exact(a.scale * b.scale)
    if isinstance(y, FloatType):
        return Multiplier(single, exact, exact)
    return Multiplier(single / f32(y.scale), exact / y.scale, exact, through=exact)


def window_mean_multiplier(x: TensorType, count: int, y: TensorType) -> Multiplier:
    """M = f(f(s_x · f(1 / c)) / s_y), for the sum over a window of c elements."""
    share = 1 / f32(count)
    single = f32(x.scale) * share / f32(y.scale)
    unit = x.scale * share.to(torch.float64)
    return Multiplier(single, _exact(x.scale / (count * y.scale)), unit, through=_exact(x.scale / count))


def global_mean_multiplier(x: TensorType, count: int, y: TensorType) -> Multiplier:
    """M = f(s_x / f(s_y · c)), for the sum over all c positions of a channel."""
    single, through = f32(x.scale) / (f32(y.scale) * count), _exact(count * y.scale)
    return Multiplier(single, _exact(x.scale / (count * y.scale)), _exact(x.scale), count, through)


# ---------------------------------------------------------------- float32


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a · b + c rounded to float32 once.

    By way of float64. a or b is a byte, so that the product has at most 32 bits and is exact there; so is the sum,
    unless c is more than 2^21 times the product or 2^28 times below it: then the second rounding could show in the last
    place alone.
    """
    return torch.addcmul(c.to(torch.float64), a.to(torch.float64), b.to(torch.float64)).to(torch.float32)


def sum_constants(types: Sequence[TensorType], y: TensorType) -> tuple[Tensor, Tensor, Tensor]:
    """(r_a, r_b, c) of Add on bytes: r = f(s / s_y), c = f(ζ_y − fma(r_a, ζ_a, f(r_b · ζ_b)))."""
    r_a, r_b = (ratio(each, y).single for each in types)
    zero_a, zero_b, zero_y = (f32(t.zero_point + t.carrier_offset) for t in (*types, y))
    return r_a, r_b, zero_y - fma(r_a, zero_a, r_b * zero_b)


# ---------------------------------------------------------------- fixed point


def mantissa_and_shift(m: Tensor, bits: int = 31) -> tuple[Tensor, Tensor]:
    """(mantissa, shift) of |m|: int64 mantissa = rint(|m| · 2^shift) with 2^(bits−1) <= mantissa < 2^bits, elementwise.

    m: float64, finite, not 0; |m| < 2^(bits−1) where shift is to be 1 or more.
    """
    fraction, exponent = torch.frexp(m.abs())  # |m| = fraction · 2^exponent, fraction in [1/2, 1)
    shift = bits - exponent.to(torch.int64)
    mantissa = torch.round(fraction * 2.0**bits).to(torch.int64)
    carried = mantissa == 1 << bits  # a fraction just below 1 rounds up to 1
    return torch.where(carried, mantissa >> 1, mantissa), torch.where(carried, shift - 1, shift)


def shift_half_away(n: Tensor, shift: Tensor) -> Tensor:
    """sign(n) · ((|n| + 2^(shift−1)) >> shift) of int64 n; 0 where shift > 62, n where it is 0."""
    k = shift.clamp(max=62)
    rounded = (n.abs() + (torch.ones_like(k) << k >> 1)) >> k
    return torch.where(shift > 62, 0, n.sign() * rounded)


def significand_and_exponent(m: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """(significand, exponent) of |m| / count as TFLite's kernels have it.

    Int64, |m| ≈ significand · 2^(exponent − 31), elementwise.

    significand = |m| · 2^(31 − exponent), halves away from zero, 2^30 <= significand < 2^31; (0, 0) where exponent <
    −31. For a mean over `count` elements the significand times 2^h is divided, cutting off, and the exponent is h less:
    h = min(⌊log2 count⌋, 31 + exponent).

    m: float64, finite, not 0.
    """
    fraction, exponent = torch.frexp(m.abs())
    significand, exponent = torch.floor(fraction * 2.0**31 + 0.5).to(torch.int64), exponent.to(torch.int64)
    carried = significand == 1 << 31
    significand, exponent = torch.where(carried, significand >> 1, significand), exponent + carried
    lost = exponent < -31
    significand, exponent = significand.masked_fill(lost, 0), exponent.masked_fill(lost, 0)
    if count > 1:
        h = (31 + exponent).clamp(max=count.bit_length() - 1)
        significand, exponent = (significand << h) // count, exponent - h
    return significand, exponent


def shift_half_up(n: Tensor, shift: Tensor | int) -> Tensor:
    """(n + 2^(shift−1)) >> shift of int64 n, for shifts from 1 to 62."""
    one = torch.ones((), dtype=torch.int64, device="cpu")
    return (n + (one << (shift - 1))) >> shift


def product_half_up(n: Tensor, m: Tensor, shift: Tensor) -> Tensor:
    """(n · m + 2^(shift−1)) >> shift of int64 n of up to 47 bits and m of up to 31, for shifts from 17 to 62.

    Half by half of n.
    """
    low = (n & 0xFFFF) * m + (torch.ones_like(shift) << (shift - 1))
    return ((n >> 16) * m + (low >> 16)) >> (shift - 16)


def exponents(m: Tensor) -> Tensor | None:
    """e of |m| = 2^e, elementwise and int64; None where not all of m are powers of two. m: float64, finite, not 0."""
    fraction, exponent = torch.frexp(m.abs())
    return exponent.to(torch.int64) - 1 if bool((fraction == 0.5).all()) else None


def shift_half_even(n: Tensor, shift: Tensor) -> Tensor:
    """n / 2^shift of int64 n below 2^32, rounded half to even.

    n · 2^−shift where the shift is negative, −30 at least.
    """
    k = shift.clamp(1, 62)
    floor = n >> k
    rest, half = n - (floor << k), torch.ones_like(k) << (k - 1)
    rounded = floor + ((rest > half) | ((rest == half) & (floor & 1 == 1)))
    return torch.where(shift > 62, 0, torch.where(shift > 0, rounded, n << (-shift).clamp(min=0, max=30)))


def common_exponent(factors: Sequence[Tensor]) -> tuple[list[int], int] | None:
    """(±2^k as integers, shift) of 0-dim float64 factors ±2^(k − shift), the least k being 0.

    None where one is no power of two, or where they lie more than `SPREAD_MAX` powers apart.
    """
    powers = exponents(torch.stack(list(factors)))
    if powers is None:
        return None
    least = int(powers.min())
    if int(powers.max()) - least > SPREAD_MAX:
        return None
    return [int(factor.sign()) << (int(power) - least) for factor, power in zip(factors, powers)], -least


SPREAD_MAX = 15
"""Powers of two that the factors of a sum may lie apart for it to be shifted: 32 bits hold it then."""


def common_shift(factors: Sequence[Tensor], bits: int = 31) -> tuple[list[int], Tensor]:
    """(mantissas, shift) of 0-dim float64 factors with one shift: the largest magnitude's mantissa has `bits` bits."""
    _, shift = mantissa_and_shift(torch.stack([factor.abs() for factor in factors]).max(), bits)
    return [round(math.ldexp(float(factor), int(shift))) for factor in factors], shift
