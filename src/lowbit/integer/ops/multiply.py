"""Multiply: the product of two tensors of codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowbit.integer.arithmetic import Multiplier, code_dtype, product_multiplier, steps_of
from lowbit.integer.graph import Node, Shape, TensorType, reach
from lowbit.integer.ops.broadcast import aligned, broadcast_shape
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Multiply(Node):
    """Product of two code tensors whose shapes broadcast: a squeeze-and-excite gate is (C, 1, 1).

    n = (a − z_a) · (b − z_b),  M = f(f(s_a · s_b) / s_y)
    float   u_y = clip(rint(f(f(f(n) · M) + ζ_y)))    on bytes: ζ_y is added before rounding
    other roundings: requant(n, s_a · s_b / s_y in float64)
    """

    independent: ClassVar[Literal["samples", "channels", "elements"]] = "elements"
    arity: ClassVar[int | None] = 2

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return broadcast_shape(shapes)

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        return reach(inputs[0]) * reach(inputs[1])

    def multipliers(self, inputs: Sequence[TensorType]) -> list[Multiplier]:
        return [product_multiplier(inputs[0], inputs[1], self.codes_of())]

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        a, b = (steps_of(x, t) for x, t in zip(aligned(inputs), types))
        if rounding.name == "float":
            return self.rounded_product(a * b, types)
        return rounding.requantize(a * b, self.multipliers(types)[0], self.codes_of())

    def rounded_product(self, n: Tensor, types: Sequence[TensorType]) -> Tensor:
        """The codes that "float" gives for the products n. In bytes, the zero point decides which way a half goes."""
        y, (m,) = self.codes_of(), self.multipliers(types)
        total = (n.to(torch.float32) * m.single + float(y.zero_point + y.carrier_offset)).round_()
        return (total - y.carrier_offset).clamp_(y.qn, y.qp).to(code_dtype(y))
