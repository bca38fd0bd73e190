"""Matrix products of two tensors, and what works along dimensions: softmax, normalization, sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from lowbit.integer.graph import Node, TensorType
from lowbit.integer.ops import Extremum, MatMul, Reduce
from lowbit.lowering import kinds as k
from lowbit.lowering.handlers.alignment import aligned
from lowbit.lowering.handlers.moves import reshape_to
from lowbit.lowering.values import Computation, Move

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter


def matmul(converter: Converter, node: fx.Node) -> Computation:
    """The matrix product of two tensors, over all leading dimensions."""
    given = converter.arguments(node)
    names = ("input", "other" if "other" in given else "mat2")
    if min(len(converter.shapes[given[name]]) for name in names) < 2:
        raise converter.refusal(node, " of a vector has no integer form; give it a dimension of size 1")
    a, b = aligned(converter, node, names, own=2)
    return Computation(node.name, lambda n, y: MatMul(name=n, inputs=(a.name, b.name), type=y), may_be_float=True)


def axes_of(converter: Converter, node: fx.Node) -> tuple[tuple[int, ...], bool]:
    """(dimensions, keepdim) of a reduction, in the integer graph, where the batch is 0."""
    source = converter.input_of(node)
    axes, keepdim = converter.options(node, "dim", "keepdim") if "dim" in converter.arguments(node) else (None, False)
    if axes is None or axes in ((), []):
        raise converter.refusal(node, " without dimensions reduces the batch too, which has no integer form")
    axes = axes if isinstance(axes, (tuple, list)) else (axes,)
    return tuple(sorted(converter.place(axis, source, node) for axis in axes)), keepdim


def reduce(converter: Converter, node: fx.Node) -> Computation:
    """A sum over dimensions."""
    return reduction(converter, node, "sum")


def reduction(converter: Converter, node: fx.Node, function: str) -> Computation:
    """A sum or mean over dimensions."""
    x, (axes, keepdim) = converter.codes_at(converter.input_of(node), node), axes_of(converter, node)

    def make(name: str, y: Any) -> Node:
        assert isinstance(y, TensorType)
        return Reduce(name=name, inputs=(x.name,), type=y, axes=axes, keepdim=keepdim, function=function)

    return _in_shape(converter, node, Computation(node.name, make))


def extremum(converter: Converter, node: fx.Node) -> Any:
    """The largest or smallest element along dimensions."""
    name = str(getattr(node.target, "__name__", node.target))
    value, (axes, keepdim) = converter.value(converter.input_of(node), node), axes_of(converter, node)
    function = "maximum" if name == "amax" else "minimum"
    move = Move(node.name, lambda n, x: Extremum(name=n, inputs=(x,), axes=axes, keepdim=keepdim, function=function))
    return converter.moved(value, [move, reshape_to(node.name, converter.sample(node) or (1,))])


def _in_shape(converter: Converter, node: fx.Node, value: Computation) -> Any:
    """A reduction of every dimension of a sample leaves one number, which the integer graph has as a tensor of one element."""
    return value


HANDLERS = {k.MATMUL: matmul, k.REDUCE: reduce, k.EXTREMUM: extremum}
