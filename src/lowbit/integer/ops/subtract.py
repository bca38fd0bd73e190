"""Subtract: the difference of two tensors of codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowbit.integer.arithmetic import Multiplier, ratio
from lowbit.integer.graph import Shape, TensorType
from lowbit.integer.ops.broadcast import broadcast_shape
from lowbit.integer.ops.elementwise import Elementwise, Floats, Value


@dataclass(frozen=True, eq=False, kw_only=True)
class Subtract(Elementwise):
    """a − b of two code tensors whose shapes broadcast, each on its own grid.

    float   r_a = f(s_a / s_y), r_b = f(s_b / s_y);  y = clip(rint(f(f((a − z_a) · r_a) − f((b − z_b) · r_b))) + z_y)
    other roundings: their weighted sum of a − z_a and b − z_b with M_a = s_a / s_y, M_b = −s_b / s_y in float64.
    """

    arity: ClassVar[int | None] = 2

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return broadcast_shape(shapes)

    def multipliers(self, inputs: Sequence[TensorType]) -> list[Multiplier]:
        a, b = (ratio(x, self.codes_of()) for x in inputs)
        return [a, b.negated()]

    def in_floats(self, floats: Floats[Value], steps: Sequence[Value], types: Sequence[TensorType]) -> Value:
        a, b = (floats.multiply(n, floats.constant(float(m.single))) for n, m in zip(steps, self.multipliers(types)))
        return floats.add(a, b)
