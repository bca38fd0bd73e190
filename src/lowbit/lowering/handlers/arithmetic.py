"""Operations on one or two tensors, element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, fx

from lowbit.integer.graph import FloatType, Node, TensorType
from lowbit.integer.ops import Add, Lookup, Multiply, Subtract
from lowbit.integer.ops.lookup import lookup_table
from lowbit.lowering import kinds as k
from lowbit.lowering.values import Codes, Computation, Concatenation

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


def clamp(converter: Converter, node: fx.Node) -> Computation | Concatenation:
    """A clamp (ReLU, ReLU6, …): part of the computation before it, or a table behind codes."""
    value = converter.value(converter.input_of(node), node)
    low, high = k.clamp_range(node, converter.modules)
    return (
        _looked_up(node, value, lambda x: x.clamp(low, high)) if isinstance(value, Codes) else value.clamped(low, high)
    )


def lookup(converter: Converter, node: fx.Node) -> Computation:
    """Any function of one value, as a table."""
    x = converter.codes_at(converter.input_of(node), node)
    return _looked_up(node, x, k.lookup_function(node, converter.modules))


def _looked_up(node: fx.Node, x: Codes, function: Callable[[Tensor], Tensor]) -> Computation:
    def make(name: str, y: TensorType | FloatType) -> Node:
        assert isinstance(y, TensorType)
        return Lookup(name=name, inputs=(x.name,), type=y, table=lookup_table(function, x.type, y))

    return Computation(node.name, make)


HANDLERS = {k.ADD: add, k.MULTIPLY: multiply, k.SUBTRACT: subtract, k.CLAMP: clamp, k.LOOKUP: lookup}
