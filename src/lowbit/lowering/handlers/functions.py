"""Functions of one value, as tables of its codes: one after the other they are one table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lowbit.errors import LowbitError
from lowbit.integer.graph import FloatType, Node, TensorType
from lowbit.integer.ops import Lookup, LookupPerChannel
from lowbit.integer.ops.lookup import lookup_table
from lowbit.lowering import kinds as k
from lowbit.lowering.functions import bounds_of, function_of
from lowbit.lowering.values import Codes, Computation, Concatenation, Table

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter

Function = Callable[[Tensor], Tensor]


def clamp(converter: Converter, node: fx.Node) -> Computation | Concatenation:
    """A clamp (ReLU, ReLU6, …): part of the computation before it, or a table behind codes."""
    value = converter.value(converter.input_of(node), node)
    low, high = _bounds(converter, node)
    if isinstance(value, Codes) or (isinstance(value, Computation) and value.table is not None):
        return _table(converter, node, value, lambda x: x.clamp(low, high))
    return value.clamped(low, high)


def _bounds(converter: Converter, node: fx.Node) -> tuple[float, float]:
    """(lowest, highest) value that a clamp lets through; a bound may be a number that the network holds."""
    found = []
    for bound, without in zip(bounds_of(node, converter.modules), (-math.inf, math.inf)):
        if isinstance(bound, fx.Node):
            bound = converter.parameter(bound, node).item()
        found.append(without if bound is None else float(bound))
    return found[0], found[1]


def lookup(converter: Converter, node: fx.Node) -> Computation:
    """Any function of one value."""
    (source,) = node.all_input_nodes
    value = converter.value(source, node)
    if not isinstance(value, Computation) or value.table is None:
        value = converter.codes_at(source, node)
    return _table(converter, node, value, function_of(node, converter.modules))


def _table(converter: Converter, node: fx.Node, value: Any, function: Function) -> Computation:
    """The function of a tensor that is codes, or of one that is itself a table."""
    x, where = value, converter.describe(node)
    if isinstance(value, Computation):
        assert value.table is not None
        x, first = value.table.x, value.table.function
        function = _behind(first, function)

    def make(name: str, y: TensorType | FloatType) -> Node:
        return Lookup(name=name, inputs=(x.name,), type=y, table=_entries(where, function, x.type, y))

    return Computation(node.name, make, table=Table(x, function))


def _behind(first: Function, second: Function) -> Function:
    return lambda x: second(first(x))


def _entries(where: str, function: Function, x: TensorType, y: TensorType | FloatType) -> Tensor:
    assert isinstance(y, TensorType)

    def finite(values: Tensor) -> Tensor:
        found = function(values)
        if not bool(torch.isfinite(found).all()):
            bad = values[~torch.isfinite(found)]
            raise LowbitError(
                f"{where} has no finite value at {float(bad[0]):g}, which is one of the {len(values)} values of its "
                "input's codes "
                f"({len(bad)} have none): keep its input away from there, by a clamp or a sum with a number right "
                "before it"
            )
        return found

    return lookup_table(finite, x, y)


def prelu(converter: Converter, node: fx.Node) -> Computation:
    """PReLU, as a layer or a function: one table, or one per channel."""
    source, where = converter.input_of(node), converter.describe(node)
    x = converter.codes_at(source, node)
    if node.op == "call_module":
        layer = converter.modules[str(node.target)]
        assert isinstance(layer, nn.PReLU)
        slopes = layer.weight.detach().cpu()
    else:
        slopes = converter.parameter(converter.arguments(node)["weight"], node).flatten()

    def make(name: str, y: TensorType | FloatType) -> Node:
        tables = [_entries(where, lambda v, a=a: F.prelu(v, a), x.type, y) for a in slopes.split(1)]
        if len(tables) == 1:
            return Lookup(name=name, inputs=(x.name,), type=y, table=tables[0])
        return LookupPerChannel(name=name, inputs=(x.name,), type=y, tables=torch.stack(tables))

    return Computation(node.name, make)


HANDLERS = {k.CLAMP: clamp, k.LOOKUP: lookup, k.PRELU: prelu}
