"""Additions and products as plain float32 operators, tried out on every pair of input codes.

`Add` and `Multiply` round in a way of their own. A writer whose runtime has float operators looks for factors, a few
units in the last place from the real ones, with which those give the same code for every pair; where there are none, it
writes a table of `sums` or `products`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from lowbit.integer.arithmetic import all_codes
from lowbit.integer.graph import TensorType
from lowbit.integer.ops import Add, Multiply

_NUDGES = 12
"""How many units in the last place a factor may move."""


def steps(x: TensorType) -> Tensor:
    """code − zero point of every code, float32."""
    return all_codes(x).to(torch.float32) - x.zero_point


def sums(node: Add, a: TensorType, b: TensorType) -> Tensor:
    """Output code of every pair of codes, as float32 (codes of a, codes of b)."""
    first, second = (all_codes(x).to(torch.float32) + x.carrier_offset for x in (a, b))
    return node.sum_of_bytes(first[:, None], second[None, :], [a, b]).to(torch.float32)


def products(node: Multiply, a: TensorType, b: TensorType) -> Tensor:
    """As `sums`, for products."""
    return node.rounded_product(steps(a)[:, None] * steps(b)[None, :], [a, b]).to(torch.float32)


def near_factors(plain: Callable[..., Tensor], factors: list[Tensor], expected: Tensor) -> list[Tensor] | None:
    """The factors nearest to the given ones with which plain(*factors) is `expected` throughout, if there are any."""
    reach = range(-_NUDGES, _NUDGES + 1)
    for move in sorted(product(reach, repeat=len(factors)), key=lambda move: sum(map(abs, move))):
        moved = [(factor.view(torch.int32) + count).view(torch.float32) for factor, count in zip(factors, move)]
        if torch.equal(plain(*moved), expected):
            return moved
    return None
