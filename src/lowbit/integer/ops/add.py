"""Add: the sum of two tensors of codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowbit.integer.arithmetic import Multiplier, code_dtype, fma, ratio, steps_of, sum_constants
from lowbit.integer.graph import Node, Shape, TensorType
from lowbit.integer.ops.broadcast import aligned, broadcast_shape
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Node):
    """Sum of two code tensors whose shapes broadcast, each on its own grid.

    float   r_a = f(s_a / s_y), r_b = f(s_b / s_y); on bytes u with their zero points ζ, where fma(a, b, c) is the exact
            a · b + c rounded to float32 once:
            c = f(ζ_y − fma(r_a, ζ_a, f(r_b · ζ_b)));  u_y = clip(rint(fma(u_a, r_a, fma(u_b, r_b, c))))
            Where a and not b is repeated along the innermost dimension of y that is larger than 1, a and b change
            places.
    other roundings: their weighted sum of a − z_a and b − z_b with M_a = s_a / s_y, M_b = s_b / s_y in float64.
    """

    independent: ClassVar[Literal["samples", "channels", "elements"]] = "elements"
    arity: ClassVar[int | None] = 2

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return broadcast_shape(shapes)

    def multipliers(self, inputs: Sequence[TensorType]) -> list[Multiplier]:
        return [ratio(x, self.codes_of()) for x in inputs]

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        operands = aligned(inputs)
        if rounding.name == "float":
            a, b = (x.to(torch.float32) + t.carrier_offset for x, t in zip(operands, types))
            return self.sum_of_bytes(a, b, types)
        return rounding.weighted_sum(
            [steps_of(x, t) for x, t in zip(operands, types)], self.multipliers(types), self.codes_of()
        )

    def sum_of_bytes(self, a: Tensor, b: Tensor, types: Sequence[TensorType]) -> Tensor:
        """The codes that "float" gives for operands as bytes u, float32."""
        y = self.codes_of()
        if changes_places(*types):
            a, b, types = b, a, types[::-1]
        r_a, r_b, constant = sum_constants(types, y)
        total = fma(a, r_a, fma(b, r_b, constant)).round_()
        return (total - y.carrier_offset).clamp_(y.qn, y.qp).to(code_dtype(y))


def changes_places(a: TensorType, b: TensorType) -> bool:
    """Whether a, but not b, has one element along the innermost dimension of their sum that is larger than 1.

    ONNX Runtime's addition takes the repeated operand for the second one. Types without shapes are of equal shape.
    """
    pairs = zip_longest(reversed(a.shape or ()), reversed(b.shape or ()), fillvalue=1)
    innermost = next((pair for pair in pairs if max(pair) > 1), (1, 1))
    return innermost[0] < innermost[1]
