"""Additions and products as plain float32 operators, tried out on every pair of input codes.

`ir.Add` and `ir.Multiply` round in a way of their own. A writer whose runtime has float operators looks for factors, a few units
in the last place from the real ones, with which those give the same code for every pair; where there are none, it writes a
table of `sums` or `products`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from lowbit.integer.ir import Add, Multiply, TensorType

_NUDGES = 12
"""How many units in the last place a factor may move."""


def f32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def steps(kind: TensorType) -> Tensor:
    """code − zero point of every code, float32."""
    return torch.arange(kind.qn, kind.qp + 1, dtype=torch.float32) - kind.zero_point


def sum_constants(node: Add, a: TensorType, b: TensorType) -> tuple[Tensor, Tensor, Tensor]:
    """(r_a, r_b, c) of `ir.Add`."""
    r_a, r_b = (f32(t.scale) / f32(node.type.scale) for t in (a, b))
    zero_a, zero_b, zero_y = (f32(t.zero_point + t.carrier_offset) for t in (a, b, node.type))
    return r_a, r_b, zero_y - _fma(r_a, zero_a, r_b * zero_b)


def sums(node: Add, a: TensorType, b: TensorType) -> Tensor:
    """Output code of every pair of codes, as float32 (codes of a, codes of b), by `ir.Add`."""
    r_a, r_b, constant = sum_constants(node, a, b)
    first, second = (torch.arange(t.qn, t.qp + 1, dtype=torch.float32) + t.carrier_offset for t in (a, b))
    return _codes(_fma(first[:, None], r_a, _fma(second[None, :], r_b, constant)), node.type)


def product_factor(node: Multiply, a: TensorType, b: TensorType) -> Tensor:
    """M of `ir.Multiply`."""
    return f32(a.scale) * f32(b.scale) / f32(node.type.scale)


def products(node: Multiply, a: TensorType, b: TensorType) -> Tensor:
    """As `sums`, by `ir.Multiply`."""
    zero = f32(node.type.zero_point + node.type.carrier_offset)
    return _codes(steps(a)[:, None] * steps(b)[None, :] * product_factor(node, a, b) + zero, node.type)


def near_factors(plain: Callable[..., Tensor], factors: list[Tensor], expected: Tensor) -> list[Tensor] | None:
    """The factors nearest to the given ones with which plain(*factors) is `expected` throughout, if there are any."""
    reach = range(-_NUDGES, _NUDGES + 1)
    for move in sorted(product(reach, repeat=len(factors)), key=lambda move: sum(map(abs, move))):
        moved = [(factor.view(torch.int32) + count).view(torch.float32) for factor, count in zip(factors, move)]
        if torch.equal(plain(*moved), expected):
            return moved
    return None


def _codes(byte: Tensor, y: TensorType) -> Tensor:
    """Codes of a byte that is not rounded yet."""
    return byte.round().clamp(0, 255).sub(y.carrier_offset).clamp(y.qn, y.qp)


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a · b + c rounded to float32 once; a or b is a byte."""
    return (a.to(torch.float64) * b.to(torch.float64) + c.to(torch.float64)).to(torch.float32)
