"""Normalize: layer-norm, RMS-norm, group-norm, instance-norm and L2 normalization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import f32, mantissa_and_shift, shift_half_away, steps_of, to_codes
from lowbit.integer.graph import FLOAT32_UNIT, ROUNDINGS, Float32, Node, Shape, TensorType, reach
from lowbit.integer.ops.broadcast import broadcasts_to
from lowbit.integer.roundings import Rounding

COUNT_MAX = 1 << 20
"""Elements of a block: instance-norm of a picture of 1024×1024."""
_ROOT_BITS = 62
FRACTION = 20  # bits of the normalized value behind the point, in fixed point
_LARGEST = 2.0**29  # of γ / s_y and β / s_y
_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True, eq=False, kw_only=True)
class Normalize(Node):
    """Every block of C consecutive elements of a sample (row-major) less its mean, divided by its standard deviation.

    n = x − z_x;  S1 = Σ n,  S2 = Σ n²,  exact;  e = C² · eps / s_x² in float64
    centered     d = C·n − S1,  V = C·S2 − S1²;      y = γ · d / √(V + e) + β  in real numbers
    otherwise    d = C·n,       V = C·S2             (RMS-norm: no mean is taken away)

    float   g(·) rounds to float64: t = g(√g(V + e)).
            centered     d = f(f(C·n) − f(S1)),  A = f(g(1 / g(t · s_y)))
            otherwise    d = n,                  A = f(g(C / g(t · s_y)))
            p = f(d · A);  with γ: p = f(p · γ);  with β: p = f(p + f(β / s_y));  y = clip(rint(p) + z_y)
    other roundings: 64-bit integers.
            W = V · 2^h + rint(e · 2^h),  h even, the largest with (max V + e) · 2^h < 2^62;  I = max(1, ⌊√W⌋)
            q = sign(d) · ((2 · |d| · 2^(h/2 + 20) + I) div (2 · I)), div cutting off
            m = rint(γ / s_y · 2^(k − 20)), b = rint(β / s_y · 2^k), k <= 62 the largest with |m| < 2^31 and |b| < 2^61;
            y = clip(sign(v) · ((|v| + 2^(k−1)) >> k) + z_y), v = q · m + b

    Without γ it is 1, without β 0. Layer-norm's block is one position's features; group-norm's a group of channels with
    their positions, γ and β (C, 1, 1); L2 normalization is centered=False with γ = 1 / √C and a small eps.

    Attributes:
        count: C, of which a sample has a multiple.
        centered: whether the mean is taken away.
        eps: added to the variance, in the unit of real numbers squared; greater than 0.
        gain: γ, float32, of a shape that broadcasts to a sample's; or None.
        shift: β, likewise.
    """

    count: int
    centered: bool
    eps: float
    gain: Float32 | None = None
    shift: Float32 | None = None

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,) = shapes
        if math.prod(x) % self.count:
            raise LowbitError(f"a sample of shape {x} does not divide into blocks of {self.count}")
        for what, value in (("gain", self.gain), ("shift", self.shift)):
            if value is not None and not broadcasts_to(tuple(value.shape), x):
                raise LowbitError(f"{what} of shape {tuple(value.shape)} does not broadcast to a sample of shape {x}")
        return x

    def check(self, inputs: Sequence[TensorType]) -> None:
        (x,), y = inputs, self.codes_of()
        if not 1 <= self.count <= COUNT_MAX:
            raise LowbitError(f"blocks of {self.count} elements; there are 1 to {COUNT_MAX:,}")
        if not isinstance(self.eps, float) or not 0 < self.eps < math.inf:
            raise LowbitError(f"eps {self.eps!r:.40} must be a number greater than 0")
        for what, value in (("gain", self.gain), ("shift", self.shift)):
            if value is None:
                continue
            if value.dtype != torch.float32 or not bool(torch.isfinite(value).all()):
                raise LowbitError(f"{what} must be float32 and finite, not {value.dtype}")
            if float(value.abs().max()) / y.scale > _LARGEST:
                raise LowbitError(f"{what} reaches more than 2^29 steps of its output; calibrate the network again")
        bound, extra = self.variance_bound(x), self.extra(x)
        if bound >= 1 << 53 or not 2.0**-1000 < extra < 2.0**52:
            raise LowbitError(
                f"its sums reach {bound:g}, and eps is {extra:g} beside them, where float64 holds them up to 2^53, "
                "and more than 0: give the input fewer bits, or calibrate the network again"
            )
        if not 2.0**-100 < self.factor_max(x) < 2.0**100:
            raise LowbitError(f"its factor can be {self.factor_max(x):g}; calibrate the network again")

    def variance_bound(self, x: TensorType) -> int:
        """What V cannot pass: (C · max |n|)²."""
        return (self.count * reach(x)) ** 2

    def extra(self, x: TensorType) -> float:
        """e = C² · eps / s_x², float64."""
        return self.count * self.count * self.eps / (x.scale * x.scale)

    def factor_max(self, x: TensorType) -> float:
        """What A cannot pass by more than a rounding, where V is not 0: C elements then have V >= C − 1, or C."""
        least = math.sqrt(max(self.count - 1, 1) + self.extra(x)) * self.codes_of().scale
        return (1 if self.centered else self.count) / least

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        """The largest S1: the wider numbers are not of 32 bits."""
        return self.count * reach(inputs[0])

    def differences_are_exact(self, x: TensorType) -> bool:
        """Whether float32 holds C·n, S1 and their difference."""
        return not self.centered or 2 * self.count * reach(x) < 1 << 24

    def tolerance(self, inputs: Sequence[TensorType]) -> float:
        """8 · 2^-24 · (max |y − z_y| + max |β| / s_y), and where d is rounded a second term.

        That is 4 · 2^-24 · C · max |n| · max A · max |γ|.

        A, the products with it and with γ, and the sum are rounded once each, β once: 4 · 2^-24 of a product that is at
        most y less β, and as much of β. C·n, S1 and their difference, where they pass 2^24, are off by 4 · 2^-24 of C ·
        max |n|.
        """
        (x,), y = inputs, self.codes_of()
        shift = 0.0 if self.shift is None else float(self.shift.abs().max()) / y.scale
        rounded = ROUNDINGS * FLOAT32_UNIT * (reach(y) + 1 + shift)
        if self.differences_are_exact(x):
            return rounded
        gain = 1.0 if self.gain is None else float(self.gain.abs().max())
        return rounded + 4 * FLOAT32_UNIT * self.count * reach(x) * self.factor_max(x) * gain

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        """Block by block: several samples, or whole blocks of one along its first dimension."""
        (x,), (kind,), shape = inputs, types, self.shape_of()
        floats, first = rounding.name == "float", math.prod(shape[1:])
        factor, term, k = (self.gain, self.steps_of_shift(), 0) if floats else self.fixed_factors()
        samples, least = max(1, _BLOCK_ELEMENTS // math.prod(shape)), self.count // math.gcd(self.count, first)
        length = least * max(1, _BLOCK_ELEMENTS // (first * least))
        parts = []
        for start in range(0, shape[0], length):
            stop = min(start + length, shape[0])
            by, plus = (_narrowed(each, len(shape), start, stop) for each in (factor, term))
            codes = x[:, start:stop].split(samples)
            found = [
                self._in_floats(c, kind, by, plus) if floats else self._in_integers(c, kind, by, plus, k) for c in codes
            ]
            parts.append(torch.cat(found))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _sums(self, codes: Tensor, x: TensorType) -> tuple[Tensor, Tensor, Tensor]:
        """(n, S1, V) in int64, (…, blocks, C) and (…, blocks, 1)."""
        n = steps_of(codes, x).to(torch.int64).reshape(len(codes), -1, self.count)
        first = n.sum(-1, keepdim=True) if self.centered else torch.zeros_like(n[..., :1])
        return n, first, self.count * (n * n).sum(-1, keepdim=True) - first * first

    def _in_floats(self, codes: Tensor, x: TensorType, gain: Tensor | None, shift: Tensor | None) -> Tensor:
        n, first, variance = self._sums(codes, x)
        y, single = self.codes_of(), torch.float32
        root = (variance.to(torch.float64) + self.extra(x)).sqrt() * y.scale
        if self.centered:
            d, factor = (self.count * n).to(single) - first.to(single), (1 / root).to(single)
        else:
            d, factor = n.to(single), (self.count / root).to(single)
        p = (d * factor).reshape(codes.shape)
        p = p if gain is None else p * gain
        p = p if shift is None else p + shift
        return to_codes(p.round(), y)

    def steps_of_shift(self) -> Tensor | None:
        """f(β / s_y)."""
        return None if self.shift is None else self.shift / f32(self.codes_of().scale)

    def _in_integers(self, codes: Tensor, x: TensorType, m: Tensor | None, b: Tensor | None, k: int) -> Tensor:
        assert m is not None and b is not None
        n, first, variance = self._sums(codes, x)
        half, extra = self.root_shift(x)
        root = integer_root((variance << (2 * half)) + extra).clamp_(min=1)
        d = self.count * n - first
        q = d.sign() * ((2 * (d.abs() << (half + FRACTION)) + root) // (2 * root))
        v = q.reshape(codes.shape) * m + b
        return to_codes(shift_half_away(v, torch.tensor(k, device="cpu")), self.codes_of())

    def root_shift(self, x: TensorType) -> tuple[int, int]:
        """(h / 2, rint(e · 2^h))."""
        extra = self.extra(x)
        _, exponent = math.frexp(self.variance_bound(x) + extra)
        half = (_ROOT_BITS - exponent) // 2
        return half, round(math.ldexp(extra, 2 * half))

    def fixed_factors(self) -> tuple[Tensor, Tensor, int]:
        """(m, b, k); int64."""
        scale, wide = self.codes_of().scale, torch.float64
        one, none = torch.ones((), dtype=wide, device="cpu"), torch.zeros((), dtype=wide, device="cpu")
        gain = (one if self.gain is None else self.gain.to(wide)) / scale * 2.0**-FRACTION
        shift = (none if self.shift is None else self.shift.to(wide)) / scale
        k = 62
        for value, spare in ((gain.abs().max(), 0), (shift.abs().max(), 30)):
            if float(value) > 0:
                k = min(k, int(mantissa_and_shift(value)[1]) + spare)
        m, b = (torch.round(value * 2.0**k).to(torch.int64) for value in (gain, shift))
        return m, b, k


def _narrowed(value: Tensor | None, rank: int, start: int, stop: int) -> Tensor | None:
    """The part of γ or β that belongs to a part of a sample's first dimension."""
    whole = value is None or value.ndim < rank or value.shape[0] == 1
    return value if whole or value is None else value[start:stop]


def integer_root(w: Tensor) -> Tensor:
    """⌊√w⌋ of int64 from 0 to 2^62."""
    root = w.to(torch.float64).sqrt().to(torch.int64)
    root -= (root * root > w).to(torch.int64)
    return root + ((root + 1) * (root + 1) <= w).to(torch.int64)
