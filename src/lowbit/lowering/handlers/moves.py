"""Operations that move codes and compute nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import fx

from lowbit.integer.ops import ChannelShuffle, Expand, IndexSelect, Pad, Reshape, Slice, Transpose
from lowbit.lowering import kinds as k
from lowbit.lowering.values import Codes, Concatenation, Move

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter


def concatenate(converter: Converter, node: fx.Node) -> Any:
    """One tensor after the other along a dimension."""
    (axis,) = converter.options(node, "dim")
    return _concatenated(converter, node, _parts(converter, node), converter.place(axis, node, node))


def stack(converter: Converter, node: fx.Node) -> Any:
    """Tensors along a dimension of their own."""
    (axis,) = converter.options(node, "dim")
    place, shape = converter.place(axis, node, node), converter.sample(node)
    shape = (*shape[: place - 1], 1, *shape[place:])
    parts = [converter.moved(part, [reshape_to(node.name, shape)]) for part in _parts(converter, node)]
    return _concatenated(converter, node, parts, place)


def _parts(converter: Converter, node: fx.Node) -> list[Any]:
    """What is joined: a list, or one node where what chunk, split or unbind gave is passed on as it is."""
    given = converter.input_of(node)
    return converter.value(given, node) if isinstance(given, fx.Node) else [converter.value(x, node) for x in given]


def _concatenated(converter: Converter, node: fx.Node, parts: list[Any], axis: int) -> Any:
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, Codes) for part in parts) and len({part.type.code_type for part in parts}) == 1:
        return converter.concatenated(node.name, parts, axis)
    return Concatenation(node.name, tuple(parts), axis)


def split(converter: Converter, node: fx.Node) -> list[Any]:
    """chunk and split: a slice for each part."""
    source = converter.input_of(node)
    value, dimensions = converter.value(source, node), len(converter.shapes[source])
    (axis,) = converter.options(node, "dim")
    place, axis = converter.place(axis, source, node), axis % dimensions
    parts, start = [], 0
    for shape in converter.shapes[node]:
        stop = start + shape[axis]
        parts.append(converter.moved(value, [_slice(node.name, place, start, stop, 1)]))
        start = stop
    return parts


def unbind(converter: Converter, node: fx.Node) -> list[Any]:
    """A tensor for each index of a dimension."""
    source = converter.input_of(node)
    (axis,) = converter.options(node, "dim")
    place, count = converter.place(axis, source, node), converter.shapes[source][axis]
    shape = _without(converter.sample(source), place)
    value = converter.value(source, node)
    return [
        converter.moved(value, [_slice(node.name, place, each, each + 1, 1), reshape_to(node.name, shape)])
        for each in range(count)
    ]


def index(converter: Converter, node: fx.Node) -> Any:
    """One of several tensors, or a part of a tensor: by slices, numbers, new dimensions and one list of numbers."""
    source = converter.input_of(node)
    value = converter.value(source, node)
    chosen = converter.arguments(node)["other"]
    if isinstance(value, list):
        return value[chosen]
    before = converter.shapes[source]
    chosen = list(chosen) if isinstance(chosen, tuple) else [chosen]
    dimensions = sum(part is not None and part is not Ellipsis for part in chosen)
    if Ellipsis in chosen:
        at = chosen.index(Ellipsis)
        chosen[at : at + 1] = [slice(None)] * (len(before) - dimensions)
    moves, axis = [], 0
    for part in chosen:
        if part is None:
            continue
        if not (isinstance(part, slice) and part == slice(None)):
            moves += _chosen(converter, node, source, axis, part)
        axis += 1
    after = converter.sample(node)
    return converter.moved(value, [*moves, reshape_to(node.name, after)])


def _chosen(converter: Converter, node: fx.Node, source: fx.Node, axis: int, part: Any) -> list[Move]:
    """What an index along one dimension moves; dimensions stay as many as they are."""
    size = converter.shapes[source][axis]
    if isinstance(part, slice):
        bounds = fx.node.map_arg((part.start, part.stop, part.step), lambda n: converter.shapes.get(n, n))
        if any(isinstance(bound, fx.Node) for bound in bounds):
            raise converter.refusal(node, " is called with what forward computes from data")
        start, stop, step = slice(*bounds).indices(size)
        if (start, stop, step) == (0, size, 1):
            return []
        return [_slice(node.name, converter.place(axis, source, node), start, stop, step)]
    place = converter.place(axis, source, node)
    if isinstance(part, int) and not isinstance(part, bool):
        return [_slice(node.name, place, part % size, part % size + 1, 1)]
    places = converter.places_of(part, node)
    if places.ndim != 1:
        raise converter.refusal(
            node, ": only numbers, slices and one-dimensional lists of numbers have an integer form"
        )
    return [taken(node.name, place, (places % size).tolist())]


def select(converter: Converter, node: fx.Node) -> Any:
    """select, narrow, index_select, roll, flip, repeat, repeat_interleave.

    Elements chosen by their place in a dimension.
    """
    source, given = converter.input_of(node), converter.arguments(node)
    name = str(getattr(node.target, "__name__", node.target))
    value, before = converter.value(source, node), converter.shapes[source]
    moves: list[Move] = []

    def take(axis: int, places: list[int]) -> None:
        if places != list(range(before[axis])):
            moves.append(taken(node.name, converter.place(axis, source, node), places))

    if name in ("select", "narrow"):
        axis, *more = converter.options(node, "dim", *(("index",) if name == "select" else ("start", "length")))
        axis, start, length = axis % len(before), more[0] % before[axis], 1 if name == "select" else more[1]
        moves.append(_slice(node.name, converter.place(axis, source, node), start, start + length, 1))
    elif name == "index_select":
        (axis,) = converter.options(node, "dim")
        take(axis % len(before), converter.places_of(given["index"], node).tolist())
    elif name in ("roll", "flip"):
        axes = converter.options(node, "dims")[0]
        axes = axes if isinstance(axes, (tuple, list)) else (axes,)
        if not axes:
            raise converter.refusal(node, " without dimensions rolls the whole tensor, which has no integer form")
        shifts = converter.options(node, "shifts")[0] if name == "roll" else [None] * len(axes)
        for axis, shift in zip(axes, shifts if isinstance(shifts, (tuple, list)) else (shifts,)):
            size = before[axis]
            take(axis % len(before), [(size - 1 - i) if shift is None else (i - shift) % size for i in range(size)])
    elif name == "repeat_interleave":
        repeats, axis = converter.options(node, "repeats", "dim")
        if not isinstance(repeats, int) or axis is None:
            raise converter.refusal(node, ": only a number of repeats along one dimension has an integer form")
        moves += _repeated(converter, node, source, axis % len(before), repeats)
    else:  # repeat, tile
        after = converter.shapes[node]
        before = (*(1,) * (len(after) - len(before)), *before)
        # What is the same for every sample may be repeated for the batch.
        once = converter.layout(source).axis is None
        batch = converter.layout(node).axis if once and converter.layout(node).folded == 1 else None
        moves.append(reshape_to(node.name, converter.layout(node).sample(before)))
        for axis, (small, large) in enumerate(zip(before, after)):
            if small != large and axis != batch:
                moves.append(taken(node.name, converter.place(axis, node, node), [i % small for i in range(large)]))
    return converter.moved(value, [*moves, reshape_to(node.name, converter.sample(node))])


def _repeated(converter: Converter, node: fx.Node, source: fx.Node, axis: int, repeats: int) -> list[Move]:
    """Each element of a dimension several times; of the batch's, what then lies in it with each sample."""
    layout, count = converter.layout(source), converter.shapes[source][axis]
    moves = []
    if axis == layout.axis:
        count = layout.folded
        if count == 1:
            shape = converter.sample(source)
            moves.append(reshape_to(node.name, (*shape[:axis], 1, *shape[axis:])))
    place = axis + 1 if axis == layout.axis else converter.place(axis, source, node)
    return [*moves, taken(node.name, place, [i // repeats for i in range(count * repeats)])]


def expand(converter: Converter, node: fx.Node) -> Any:
    """Dimensions of size 1 repeated."""
    source = converter.input_of(node)
    value, after = converter.value(source, node), converter.shapes[node]
    before = (*(1,) * (len(after) - len(converter.shapes[source])), *converter.shapes[source])
    if before == after:
        return value
    layout, shape = converter.layout(node), converter.sample(node)
    moves = [reshape_to(node.name, layout.sample(before))]
    moves.append(Move(node.name, lambda n, x: Expand(name=n, inputs=(x,), shape=shape)))
    return converter.moved(value, moves)


def pad(converter: Converter, node: fx.Node) -> Any:
    """Zeros before and after, along any dimension."""
    source = converter.input_of(node)
    value, before, given = converter.value(source, node), converter.shapes[source], converter.arguments(node)
    (amounts,) = converter.options(node, "padding" if node.op == "call_module" else "pad")
    pairs = [(0, 0)] * len(before)
    for place in range(len(amounts) // 2):
        pairs[-1 - place] = (amounts[2 * place], amounts[2 * place + 1])
    if given.get("mode", "constant") != "constant" or given.get("value") not in (0, None):
        raise converter.refusal(node, ": only zero padding has an integer form on its own")
    sizes, moves = [(0, 0)] * len(converter.sample(source)), []
    for axis, (first, last) in enumerate(pairs):
        if (first, last) != (0, 0):
            place, size = converter.place(axis, source, node), before[axis]
            if min(first, last) < 0:  # cuts off
                moves.append(_slice(node.name, place, max(-first, 0), size + min(last, 0), 1))
            sizes[place - 1] = (max(first, 0), max(last, 0))
    if any(pair != (0, 0) for pair in sizes):
        moves.append(Move(node.name, lambda n, x: Pad(name=n, inputs=(x,), padding=tuple(sizes))))
    return converter.moved(value, moves)


def channel_shuffle(converter: Converter, node: fx.Node) -> Any:
    """nn.ChannelShuffle."""
    converter.check_batch_first(node)
    value = converter.value(converter.input_of(node), node)
    return converter.moved(value, [_shuffle(node.name, *converter.options(node, "groups"))])


def transpose(converter: Converter, node: fx.Node) -> Any:
    """Dimensions in another order."""
    source = converter.input_of(node)
    value, before = converter.value(source, node), converter.shapes[source]
    order = _order(converter, node, len(before))
    layout, moved = converter.layout(source), converter.layout(node)
    places = [layout.place(axis) for axis in order]
    if layout.axis is not None and order.index(layout.axis) != moved.axis:
        raise converter.refusal(node, " mixes the samples of a batch, which has no integer form")
    dimensions = [place for place in places if place is not None]
    if dimensions == sorted(dimensions):
        return value
    if dimensions[:2] == [2, 1] and dimensions[2:] == list(range(3, len(dimensions) + 1)) and len(dimensions) > 3:
        shape = converter.sample(source)  # as channels are shuffled, between two reshapes
        moves = [
            reshape_to(node.name, (shape[0] * shape[1], *shape[2:])),
            _shuffle(node.name, shape[0]),
            reshape_to(node.name, converter.sample(node)),
        ]
        return converter.moved(value, moves)
    return converter.moved(value, [transposed(node.name, dimensions)])


def _order(converter: Converter, node: fx.Node, rank: int) -> list[int]:
    """The dimension of the input that each dimension of the output is."""
    given, order = converter.arguments(node), list(range(rank))
    if "dims" in given:
        (axes,) = converter.options(node, "dims")
        return [axis % rank for axis in axes]
    if "source" in given:
        sources, targets = (
            [axis % rank for axis in (each if isinstance(each, (tuple, list)) else (each,))]
            for each in converter.options(node, "source", "destination")
        )
        order = [axis for axis in order if axis not in sources]
        for target, source in sorted(zip(targets, sources)):
            order.insert(target, source)
        return order
    names = ("dim0", "dim1") if "dim0" in given else ("axis0", "axis1")
    a, b = (axis % rank for axis in converter.options(node, *names)) if names[0] in given else (0, rank - 1)
    order[a], order[b] = order[b], order[a]
    return order


def reshape(converter: Converter, node: fx.Node) -> Any:
    """Another shape of the same elements: in it the batch stands behind as many elements as before."""
    source = converter.input_of(node)
    value, before, after = converter.value(source, node), converter.shapes[source], converter.shapes[node]
    if before == after:
        return value
    layout, new = converter.layout(source), converter.layout(node)
    if layout.axis is not None and (
        new.axis is None or math.prod(before[: layout.axis]) != math.prod(after[: new.axis])
    ):
        raise converter.refusal(node, " mixes the samples of a batch, which has no integer form")
    return converter.moved(value, [reshape_to(node.name, new.sample(after))])


def unchanged(converter: Converter, node: fx.Node) -> Any:
    """What does nothing in evaluation."""
    return converter.value(converter.input_of(node), node)


def reshape_to(name: str, shape: tuple[int, ...]) -> Move:
    """The reshape of a sample to a shape, for a node of this name."""
    return Move(f"{name}_reshaped", lambda n, x: Reshape(name=n, inputs=(x,), shape=shape))


def _slice(name: str, axis: int, start: int, stop: int, step: int) -> Move:
    return Move(name, lambda n, x: Slice(name=n, inputs=(x,), axis=axis, start=start, stop=stop, step=step))


def taken(name: str, axis: int, places: Sequence[int]) -> Move:
    """The elements at these places of a dimension, counted with the batch as 0, for a node of this name."""
    return Move(name, lambda n, x: IndexSelect(name=n, inputs=(x,), axis=axis, places=tuple(places)))


def transposed(name: str, order: Sequence[int]) -> Move:
    """The dimensions of a sample in another order, counted with the batch as 0, for a node of this name."""
    return Move(name, lambda n, x: Transpose(name=n, inputs=(x,), order=tuple(order)))


def _without(shape: tuple[int, ...], place: int) -> tuple[int, ...]:
    """A sample's shape without a dimension, counted with the batch as 0."""
    return (*shape[: place - 1], *shape[place:])


def _shuffle(name: str, groups: int) -> Move:
    return Move(name, lambda n, x: ChannelShuffle(name=n, inputs=(x,), groups=groups))


HANDLERS = {
    k.CONCATENATE: concatenate, k.STACK: stack, k.SPLIT: split, k.UNBIND: unbind, k.SELECT: select, k.EXPAND: expand,
    k.INDEX: index, k.PAD: pad, k.CHANNEL_SHUFFLE: channel_shuffle, k.TRANSPOSE: transpose, k.RESHAPE: reshape,
    k.UNCHANGED: unchanged,
}  # fmt: skip
