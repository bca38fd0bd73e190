"""Operations on two tensors, element by element."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from lowbit.integer.ops import Add, Multiply, Subtract
from lowbit.lowering import kinds as k
from lowbit.lowering.values import Codes, Computation

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter


def add(converter: Converter, node: fx.Node) -> Computation:
    """The sum of two tensors."""
    a, b = _larger_first(converter, node)
    return Computation(node.name, lambda n, y: Add(name=n, inputs=(a.name, b.name), type=y))


def multiply(converter: Converter, node: fx.Node) -> Computation:
    """The product of two tensors."""
    a, b = _larger_first(converter, node)
    return Computation(node.name, lambda n, y: Multiply(name=n, inputs=(a.name, b.name), type=y))


def subtract(converter: Converter, node: fx.Node) -> Computation:
    """The difference of two tensors."""
    a, b = (converter.codes_at(tensor, node) for tensor in _operands(converter, node))
    return Computation(node.name, lambda n, y: Subtract(name=n, inputs=(a.name, b.name), type=y))


def _operands(converter: Converter, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    given = converter.arguments(node)
    return given["input"], given["other"]


def _larger_first(converter: Converter, node: fx.Node) -> tuple[Codes, Codes]:
    """The operands of an operation whose order does not matter; the integer ones broadcast their second."""
    a, b = _operands(converter, node)
    of_a, of_b = (converter.shapes.get(tensor, ()) for tensor in (a, b))
    if len(of_a) == len(of_b) and of_a[2:] != of_b[2:] and all(size == 1 for size in of_a[2:]):
        a, b = b, a
    return converter.codes_at(a, node), converter.codes_at(b, node)


HANDLERS = {k.ADD: add, k.MULTIPLY: multiply, k.SUBTRACT: subtract}
