"""The roundings of the reference as C: expressions in place of tensors, and the constants of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lowbit.errors import LowbitError
from lowbit.formats.c.source import Builder
from lowbit.integer.arithmetic import (
    Multiplier,
    common_exponent,
    common_shift,
    exponents,
    mantissa_and_shift,
    significand_and_exponent,
)
from lowbit.integer.graph import Node, TensorType
from lowbit.integer.roundings import SUM_SHIFT, Fixed16Rounding, tflite_sum

_SHIFT_MAX = 62


class Number:
    """A C expression of type int32_t in the operators of Python, as `Elementwise.in_integers` uses them on steps."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _with(self, operator: str, other: Number | int, *, turned: bool = False) -> Number:
        mine, theirs = self.text, str(other)
        a, b = (theirs, mine) if turned else (mine, theirs)
        return Number(f"({a} {operator} {b})")

    def __str__(self) -> str:
        return self.text

    def __add__(self, other: Number | int) -> Number:
        return self._with("+", other)

    def __radd__(self, other: Number | int) -> Number:
        return self._with("+", other, turned=True)

    def __sub__(self, other: Number | int) -> Number:
        return self._with("-", other)

    def __rsub__(self, other: Number | int) -> Number:
        return self._with("-", other, turned=True)

    def __mul__(self, other: Number | int) -> Number:
        return self._with("*", other)

    __rmul__ = __mul__

    def __neg__(self) -> Number:
        return Number(f"(-{self.text})")


class Arithmetic:
    """A rounding of the reference (`integer.roundings`) as C expressions in place of tensors.

    Args:
        builder: learns which kernels are used, and takes constants.
    """

    name = ""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder

    def requantize(self, n: Any, m: Multiplier, y: TensorType) -> Any:
        """The code of the accumulator n, for a multiplier of one value."""
        raise NotImplementedError

    def weighted_sum(self, steps: Sequence[Any], factors: Sequence[Multiplier], y: TensorType) -> Any:
        """The code of Σ M_i · n_i."""
        raise NotImplementedError

    def layer(self, m: Multiplier, y: TensorType, number: int, count: int, bound: int) -> dict[str, str]:
        """The members of a layer's constant that say how its accumulators become codes, after their tables are written.

        Args:
            number: of the layer, for the names.
            count: output channels.
            bound: of the accumulator.
        """
        raise NotImplementedError

    def check_wide(self, node: Node) -> None:
        """Raise LowbitError, naming a node that computes in 64 bits, where the rounding is for cores that can't."""

    def _table(self, kind: str, name: str, values: Sequence[int], count: int) -> str:
        """A table with a value per channel; returns its name."""
        self._builder.constant(f"{kind} {name}", list(values) * (count // len(values)))
        return name


class Fixed(Arithmetic):
    """The rounding "fixed": 64-bit products, half away from zero; with `shifts` multipliers that are powers of two shift, half to even."""

    name, shifts = "fixed", False

    def requantize(self, n: Any, m: Multiplier, y: TensorType) -> Any:
        powers = exponents(m.exact) if self.shifts else None
        if powers is not None:
            return self._shifted(f"-{n}" if float(m.exact) < 0 else str(n), -int(powers), y)
        mantissas, shifts = fixed_multipliers(m)
        return self._scaled(f"(int64_t){n} * {mantissas[0]}", shifts[0], y)

    def weighted_sum(self, steps: Sequence[Any], factors: Sequence[Multiplier], y: TensorType) -> Any:
        found = common_exponent([m.exact for m in factors]) if self.shifts else None
        if found is not None:
            return self._shifted(" + ".join(f"{n} * {factor}" for n, factor in zip(steps, found[0])), found[1], y)
        mantissas, common = common_shift([m.exact for m in factors])
        shift = int(common)
        if shift > _SHIFT_MAX:
            mantissas, shift = [0] * len(mantissas), 1
        return self._scaled(" + ".join(f"(int64_t){n} * {m}" for n, m in zip(steps, mantissas)), shift, y)

    def _shifted(self, total: str, shift: int, y: TensorType) -> Number:
        self._builder.uses.add("shifted")
        return Number(f"clipped(shifted({total}, {shift}) + {y.zero_point}, {y.qn}, {y.qp})")

    def _scaled(self, total: str, shift: int, y: TensorType) -> Number:
        self._builder.uses.add("scaled")
        return Number(f"scaled({total}, {shift}, {y.zero_point}, {y.qn}, {y.qp})")

    def layer(self, m: Multiplier, y: TensorType, number: int, count: int, bound: int) -> dict[str, str]:
        powers = exponents(m.exact.reshape(-1)) if self.shifts else None
        if powers is not None:  # 32 is added to each shift, so that its sign is free for the multiplier's
            signs = m.exact.reshape(-1).sign().to(torch.int64)
            self._builder.uses.add("shifted")
            shifts = (signs * (32 - powers).clamp(max=127)).tolist()
            return {"shifts": self._table("int8_t", f"shifts{number}", shifts, count)}
        self._builder.uses.add("multiplied")
        mantissas, shifts = fixed_multipliers(m)
        fields = {
            "multipliers": self._table("int32_t", f"multipliers{number}", mantissas, count),
            "shifts": self._table("int8_t", f"shifts{number}", [shift - 33 for shift in shifts], count),
        }
        if bound << max(0, 33 - min(shifts)) >= 1 << 31:
            self._builder.uses.add("wide")  # the sums have no room for what their multipliers lack
            fields["wide"] = "1"
        return fields


class Shift(Fixed):
    """The rounding "shift"."""

    name, shifts = "shift", True


class _Requantized(Arithmetic):
    """Roundings with a C function requantized(n, m, shift), with m of either sign."""

    part = ""
    """Of the kernel."""

    def multipliers(self, m: Multiplier, y: TensorType) -> tuple[list[int], list[int]]:
        """m and shift of every channel."""
        raise NotImplementedError

    def requantize(self, n: Any, m: Multiplier, y: TensorType) -> Any:
        (factor,), (shift,) = self.multipliers(m, y)
        return self._clipped(f"requantized({n}, {factor}, {shift})", y)

    def layer(self, m: Multiplier, y: TensorType, number: int, count: int, bound: int) -> dict[str, str]:
        self._use()
        self._builder.uses.add("requantized_layer")
        factors, shifts = self.multipliers(m, y)
        return {
            "multipliers": self._table("int32_t", f"multipliers{number}", factors, count),
            "shifts": self._table("int8_t", f"shifts{number}", shifts, count),
        }

    def _clipped(self, steps: str, y: TensorType) -> Number:
        self._use()
        return Number(f"clipped({steps} + {y.zero_point}, {y.qn}, {y.qp})")

    def _use(self) -> None:
        self._builder.uses |= {"requantized", "clipped", self.part}


class Fixed16(_Requantized):
    """The rounding "fixed16": no product of 64 bits, and none of more than 32 in a sum of codes."""

    name, part = "fixed16", "sixteen"

    def multipliers(self, m: Multiplier, y: TensorType) -> tuple[list[int], list[int]]:
        mantissa, shift = Fixed16Rounding.mantissa_and_shift(m.exact.reshape(-1))
        return (m.exact.reshape(-1).sign().to(torch.int64) * mantissa).tolist(), shift.tolist()

    def weighted_sum(self, steps: Sequence[Any], factors: Sequence[Multiplier], y: TensorType) -> Any:
        mantissas, shift = Fixed16Rounding.common_shift([m.exact for m in factors])
        if shift > 31:  # every sum is less than half of 2^shift
            mantissas, shift = [0] * len(mantissas), 1
        total = " + ".join(f"{n} * {m}" for n, m in zip(steps, mantissas))
        return self._clipped(f"(((({total}) >> {shift - 1}) + 1) >> 1)", y)

    def check_wide(self, node: Node) -> None:
        raise LowbitError(
            f'node {node.name!r}: {type(node).__name__} computes in 64 bits, which "fixed16" is for cores without: export in another '
            "rounding"
        )


class _Tflite(_Requantized):
    def multipliers(self, m: Multiplier, y: TensorType) -> tuple[list[int], list[int]]:
        unit = m.unit.reshape(-1)
        significand, exponent = significand_and_exponent(unit / y.scale, m.count)
        return (unit.sign().to(torch.int64) * significand).tolist(), exponent.tolist()

    def weighted_sum(self, steps: Sequence[Any], factors: Sequence[Multiplier], y: TensorType) -> Any:
        *parts, (last, exponent) = tflite_sum(factors, y)
        total = ""
        for n, (m, e), factor in zip(steps, parts, factors):
            sign = "-" if float(factor.exact) < 0 else "+"
            total += f" {sign} requantized(({n}) * {1 << SUM_SHIFT}, {int(m)}, {int(e)})"
        return self._clipped(f"requantized({total.removeprefix(' + ')}, {int(last)}, {int(exponent)})", y)


class DoubleRounding(_Tflite):
    """The rounding "double-rounding"."""

    name, part = "double-rounding", "double"


class SingleRounding(_Tflite):
    """The rounding "single-rounding"."""

    name, part = "single-rounding", "single"


ROUNDINGS: dict[str, type[Arithmetic]] = {
    each.name: each for each in (Shift, Fixed, Fixed16, DoubleRounding, SingleRounding)
}
"""Every rounding that C has, by name; the first is what a file is written in unless another is asked for."""


def arithmetic(builder: Builder) -> Arithmetic:
    """The rounding that a file is written in."""
    return ROUNDINGS[builder.rounding](builder)


def fixed_multipliers(m: Multiplier) -> tuple[list[int], list[int]]:
    """(signed mantissas, shifts) of every channel in "fixed"; what is shifted out whole has mantissa 0 and shift 1."""
    mantissa, shift = mantissa_and_shift(m.exact.reshape(-1))
    signed = (m.exact.reshape(-1).sign().to(mantissa.dtype) * mantissa).tolist()
    pairs = [(a, k) if k <= _SHIFT_MAX else (0, 1) for a, k in zip(signed, shift.tolist())]
    return [a for a, _ in pairs], [k for _, k in pairs]
