"""Operations on two tensors, element by element."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import fx

from lowbit.integer.ops import Add, Multiply, Subtract
from lowbit.lowering import kinds as k
from lowbit.lowering.handlers.alignment import aligned
from lowbit.lowering.values import Codes, Computation

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter


def add(converter: Converter, node: fx.Node) -> Computation:
    """The sum of two tensors."""
    a, b = larger_first(converter, node)
    return Computation(node.name, lambda n, y: Add(name=n, inputs=(a.name, b.name), type=y))


def multiply(converter: Converter, node: fx.Node) -> Computation:
    """The product of two tensors."""
    a, b = larger_first(converter, node)
    return Computation(node.name, lambda n, y: Multiply(name=n, inputs=(a.name, b.name), type=y))


def subtract(converter: Converter, node: fx.Node) -> Computation:
    """The difference of two tensors."""
    a, b = aligned(converter, node)
    return Computation(node.name, lambda n, y: Subtract(name=n, inputs=(a.name, b.name), type=y))


def larger_first(converter: Converter, node: fx.Node) -> list[Codes]:
    """`aligned` for an operation whose order does not matter.

    The operand that is repeated to the other's shape is the second.
    """
    given = converter.arguments(node)
    a, b = (math.prod(converter.shapes[given[name]]) for name in ("input", "other"))
    codes = aligned(converter, node)
    return codes[::-1] if a < b else codes


HANDLERS = {k.ADD: add, k.MULTIPLY: multiply, k.SUBTRACT: subtract}
