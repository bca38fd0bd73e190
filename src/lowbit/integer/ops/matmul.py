"""MatMul: the matrix product of two tensors of codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import Multiplier, product_multiplier
from lowbit.integer.costs import Work
from lowbit.integer.graph import FloatType, Node, Shape, TensorType, known_shape, reach
from lowbit.integer.ops.broadcast import aligned, broadcast_shape
from lowbit.integer.roundings import Rounding
from lowbit.integer.settings import exact_dtype

_BLOCK_ELEMENTS = 1 << 22  # of the accumulators at once


@dataclass(frozen=True, eq=False, kw_only=True)
class MatMul(Node):
    """n[…, i, j] = Σ_k (a[…, i, k] − z_a) · (b[…, k, j] − z_b);  y = requant(n, M),  M = f(f(s_a · s_b) / s_y).

    A and b are matrices over leading dimensions (heads, windows), which broadcast as in torch.matmul; the batch is one
    of its own, so that the product is taken within a sample. With a FloatType output y = f(f(n) · f(s_a · s_b)),
    whatever the rounding. Fixed-point roundings take M from s_a · s_b / s_y in float64.

    The sums run in floats that hold every partial sum exactly, as `Layer` says.
    """

    arity: ClassVar[int | None] = 2
    may_give_floats: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        a, b = shapes
        if min(len(a), len(b)) < 2 or a[-1] != b[-2]:
            raise LowbitError(f"inputs of shapes {a} and {b} are no matrices (…, i, k) and (…, k, j)")
        return (*broadcast_shape([a[:-2], b[:-2]]), a[-2], b[-1])

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        a, b = inputs
        return known_shape(a)[-1] * reach(a) * reach(b)

    def multipliers(self, inputs: Sequence[TensorType]) -> list[Multiplier]:
        assert self.type is not None
        return [product_multiplier(inputs[0], inputs[1], self.type)]

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        """Block by block: several samples, or some rows of the matrices of one."""
        a, b = aligned(inputs)
        *leading, height, width = self.shape_of()
        row = math.prod(leading) * width
        samples, rows = max(1, _BLOCK_ELEMENTS // (row * height)), max(1, _BLOCK_ELEMENTS // row)
        parts = []
        for x, w in zip(a.split(samples), b.split(samples)):
            found = [self._product(each, w, types, rounding) for each in x.split(rows, -2)]
            parts.append(found[0] if len(found) == 1 else torch.cat(found, -2))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _product(self, a: Tensor, b: Tensor, types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        dtype, (multiplier,) = exact_dtype(self.accumulator_bound(types)), self.multipliers(types)
        n = ((a.to(dtype) - types[0].zero_point) @ (b.to(dtype) - types[1].zero_point)).to(torch.int32)
        if isinstance(self.type, FloatType):
            return n.to(torch.float32) * multiplier.single
        return rounding.requantize(n, multiplier, self.codes_of())

    def work(self, inputs: Sequence[TensorType]) -> Work:
        return Work(macs=math.prod(self.shape_of()) * known_shape(inputs[0])[-1])
