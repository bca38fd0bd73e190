"""Matrix products of two tensors, and what works along dimensions: softmax, normalization, sums."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from lowbit.integer.graph import Node, TensorType
from lowbit.integer.ops import Extremum, MaskedSoftmax, MatMul, Normalize, Reduce, Softmax
from lowbit.integer.ops.softmax import exponentials
from lowbit.lowering import kinds as k
from lowbit.lowering.handlers.alignment import aligned
from lowbit.lowering.handlers.moves import reshape_to, transposed
from lowbit.lowering.values import Codes, Computation, Masked, Move
from lowbit.lowering.variation import is_rms

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

    return Computation(node.name, make)


def extremum(converter: Converter, node: fx.Node) -> Any:
    """The largest or smallest element along dimensions."""
    name = str(getattr(node.target, "__name__", node.target))
    value, (axes, keepdim) = converter.value(converter.input_of(node), node), axes_of(converter, node)
    function = "maximum" if name == "amax" else "minimum"
    move = Move(node.name, lambda n, x: Extremum(name=n, inputs=(x,), axes=axes, keepdim=keepdim, function=function))
    return converter.moved(value, [move, reshape_to(node.name, converter.sample(node) or (1,))])


def softmax(converter: Converter, node: fx.Node) -> Computation:
    """Softmax over one dimension."""
    source = converter.input_of(node)
    value, (axis,) = converter.value(source, node), converter.options(node, "dim")
    x = value.codes if isinstance(value, Masked) else converter.codes_at(source, node)
    if axis is None:
        raise converter.refusal(node, " leaves its dimension open; give it one")
    place, length = converter.place(axis, source, node), converter.shapes[source][axis]
    table = exponentials(x.type, length)
    if isinstance(value, Masked):
        taken = (x.name, value.shown.name)
        return Computation(node.name, lambda n, y: MaskedSoftmax(name=n, inputs=taken, type=y, axis=place, table=table))
    return Computation(node.name, lambda n, y: Softmax(name=n, inputs=(x.name,), type=y, axis=place, table=table))


def normalize(converter: Converter, node: fx.Node) -> Any:
    """Layer-norm, RMS-norm, group-norm, instance-norm and L2 normalization."""
    source, given = converter.input_of(node), converter.arguments(node)
    x, shape = converter.codes_at(source, node), converter.shapes[source]
    if "normalized_shape" in given:
        return _normalized_last(converter, node, x, len(given["normalized_shape"]))
    if "p" in given:
        return _l2_normalized(converter, node, x)
    converter.check_batch_first(node)
    if given.get("track_running_stats") or given.get("running_mean") is not None:
        raise converter.refusal(node, " keeps running statistics, which has no integer form; leave them out")
    groups = given.get("num_groups", shape[1])
    count = math.prod(shape[1:]) // groups
    per_channel = (shape[1], *(1 for _ in shape[2:]))
    gain, shift = (None if each is None else each.reshape(per_channel) for each in _affine(converter, node))
    return _normalized(node, x, count, True, given["eps"], gain, shift)


def _normalized_last(converter: Converter, node: fx.Node, x: Codes, rank: int) -> Computation:
    """Layer-norm and RMS-norm, over the last dimensions."""
    source, given = converter.input_of(node), converter.arguments(node)
    shape, layout = converter.shapes[source], converter.layout(source)
    if layout.axis is not None and layout.axis >= len(shape) - rank:
        raise converter.refusal(node, " works along the dimension of the batch, which has no integer form")
    eps = torch.finfo(torch.float32).eps if given["eps"] is None else given["eps"]
    gain, shift = _affine(converter, node)
    count = math.prod(shape[len(shape) - rank :])
    return _normalized(node, x, count, not is_rms(node, converter.modules), eps, gain, shift)


def _l2_normalized(converter: Converter, node: fx.Node, x: Codes) -> Any:
    """x / ‖x‖ along one dimension, which stands last while it is done."""
    source, (p, axis, eps) = converter.input_of(node), converter.options(node, "p", "dim", "eps")
    if p != 2 or isinstance(axis, (tuple, list)):
        raise converter.refusal(node, ": only the L2 norm along one dimension has an integer form")
    place, rank = converter.place(axis, source, node), len(converter.sample(source))
    count = converter.shapes[source][axis]
    back: tuple[Move, ...] = ()
    if place != rank:
        order = (*(each for each in range(1, rank + 1) if each != place), place)
        inverse = tuple(order.index(each) + 1 for each in range(1, rank + 1))
        x = converter.moved(x, [transposed(f"{node.name}_last", order)])
        back = (transposed(f"{node.name}_back", inverse),)
    gain = torch.full((1,), count**-0.5, dtype=torch.float32, device="cpu")
    # F.normalize divides by max(‖x‖, eps): but for lengths near eps the same as adding eps² to the square.
    value = _normalized(node, x, count, False, max(eps * eps / count, 2.0**-80), gain, None)
    return replace(value, moves=back)


def _affine(converter: Converter, node: fx.Node) -> tuple[Tensor | None, Tensor | None]:
    """γ and β of a normalization: its module's, or what forward gives the function."""
    if node.op == "call_module":
        module = converter.modules[str(node.target)]
        found = (getattr(module, name, None) for name in ("weight", "bias"))
        gain, shift = (each.detach().cpu() if isinstance(each, Tensor) else None for each in found)
        return gain, shift
    given = converter.arguments(node)
    gain, shift = (
        None if given.get(name) is None else converter.parameter(given[name], node).detach()
        for name in ("weight", "bias")
    )
    return gain, shift


def _normalized(
    node: fx.Node, x: Codes, count: int, centered: bool, eps: float, gain: Tensor | None, shift: Tensor | None
) -> Computation:
    return Computation(
        node.name,
        lambda n, y: Normalize(
            name=n, inputs=(x.name,), type=y, count=count, centered=centered, eps=float(eps), gain=gain, shift=shift
        ),
    )


HANDLERS = {k.SOFTMAX: softmax, k.NORMALIZE: normalize, k.MATMUL: matmul, k.REDUCE: reduce, k.EXTREMUM: extremum}
