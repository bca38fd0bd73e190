"""SumOfProducts: a·b + c·d of four tensors of codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import Multiplier, product_multiplier
from lowbit.integer.graph import FLOAT32_UNIT, ROUNDINGS, Shape, TensorType, reach
from lowbit.integer.ops.broadcast import broadcast_shape
from lowbit.integer.ops.elementwise import Elementwise, Floats, Value
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class SumOfProducts(Elementwise):
    """a·b + c·d of four tensors whose shapes broadcast, rounded once: the state of a recurrent layer behind two gates.

    n_1 = (a − z_a)·(b − z_b),  n_2 = (c − z_c)·(d − z_d),  each below 2^24
    float   M_1 = f(f(s_a·s_b) / s_y), M_2 = f(f(s_c·s_d) / s_y);  y = clip(rint(f(f(n_1·M_1) + f(n_2·M_2))) + z_y)
    other roundings: the weighted sum of n_1 and n_2 with s_a·s_b / s_y and s_c·s_d / s_y in float64.
    """

    arity: ClassVar[int | None] = 4

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return broadcast_shape(shapes)

    def check(self, inputs: Sequence[TensorType]) -> None:
        if self.accumulator_bound(inputs) >= 1 << 24:
            raise LowbitError(
                f"its products reach {self.accumulator_bound(inputs)}, where float32 holds them below 2^24: give a "
                "state 16 bits at most, and a gate 8"
            )

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        return max(self._bounds(inputs))

    @staticmethod
    def _bounds(inputs: Sequence[TensorType]) -> tuple[int, int]:
        a, b, c, d = map(reach, inputs)
        return a * b, c * d

    def multipliers(self, inputs: Sequence[TensorType]) -> list[Multiplier]:
        a, b, c, d = inputs
        return [product_multiplier(a, b, self.codes_of()), product_multiplier(c, d, self.codes_of())]

    def tolerance(self, inputs: Sequence[TensorType]) -> float:
        """8 · 2^-24 of the largest sum: the scales, a multiplier, a product and the sum are rounded."""
        pairs = zip(self._bounds(inputs), self.multipliers(inputs))
        return ROUNDINGS * FLOAT32_UNIT * sum(bound * float(m.exact) for bound, m in pairs)

    def in_floats(self, floats: Floats[Value], steps: Sequence[Value], types: Sequence[TensorType]) -> Value:
        a, b, c, d = steps
        one, two = (floats.constant(float(m.single)) for m in self.multipliers(types))
        return floats.add(floats.multiply(floats.multiply(a, b), one), floats.multiply(floats.multiply(c, d), two))

    def in_integers(self, steps: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        a, b, c, d = steps
        return rounding.weighted_sum([a * b, c * d], self.multipliers(types), self.codes_of())
