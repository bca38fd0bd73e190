"""Operations that move codes and compute nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from lowbit.integer.ops import ChannelShuffle, PadChannels, Reshape, Slice
from lowbit.lowering import kinds as k
from lowbit.lowering.values import Codes, Concatenation, Move

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter


def concatenate(converter: Converter, node: fx.Node) -> Any:
    """Channels one tensor after the other."""
    given = converter.input_of(node)
    (axis,) = converter.options(node, "dim")
    if axis % len(converter.shapes[node]) != 1:
        raise converter.refusal(node, ": only channels (dimension 1) can be concatenated in integers")
    # One node where the parts that chunk or split gave are passed on as they are.
    if isinstance(given, fx.Node):
        parts = converter.value(given, node)
    else:
        parts = [converter.value(tensor, node) for tensor in given]
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, Codes) for part in parts) and len({part.type.code_type for part in parts}) == 1:
        return converter.concatenated(node.name, parts)
    return Concatenation(node.name, tuple(parts))


def split(converter: Converter, node: fx.Node) -> list[Any]:
    """chunk and split: a slice for each part."""
    source = converter.input_of(node)
    value, dimensions = converter.value(source, node), len(converter.shapes[source])
    (axis,) = converter.options(node, "dim")
    axis %= dimensions
    if axis == 0:
        raise converter.refusal(node, " splits the batch, which has no integer form")
    parts, start = [], 0
    for shape in converter.shapes[node]:
        stop = start + shape[axis]
        parts.append(converter.moved(value, [_slice(node.name, axis, start, stop, 1)]))
        start = stop
    return parts


def index(converter: Converter, node: fx.Node) -> Any:
    """One of the parts of a split tensor, or slices of a tensor."""
    source = converter.input_of(node)
    value = converter.value(source, node)
    (chosen,) = converter.options(node, "other")
    if isinstance(value, list):
        return value[chosen]
    before = converter.shapes[source]
    chosen = chosen if isinstance(chosen, tuple) else (chosen,)
    if not all(isinstance(part, slice) or part is Ellipsis for part in chosen):
        raise converter.refusal(node, ": only slices of whole dimensions have an integer form")
    if Ellipsis in chosen:
        place = chosen.index(Ellipsis)
        chosen = (*chosen[:place], *[slice(None)] * (len(before) - len(chosen) + 1), *chosen[place + 1 :])
    moves = []
    for axis, part in enumerate(chosen):
        start, stop, step = part.indices(before[axis])
        if (start, stop, step) != (0, before[axis], 1):
            if axis == 0 or step < 1:
                raise converter.refusal(node, ": slicing the batch or backwards has no integer form")
            moves.append(_slice(node.name, axis, start, stop, step))
    return converter.moved(value, moves)


def pad(converter: Converter, node: fx.Node) -> Any:
    """Channels of zero before and after."""
    source = converter.input_of(node)
    value, before, given = converter.value(source, node), converter.shapes[source], converter.arguments(node)
    (amounts,) = converter.options(node, "padding" if node.op == "call_module" else "pad")
    channels = tuple(amounts)[2 * (len(before) - 2) :][:2]
    only_channels = len(channels) == 2 and sum(map(abs, amounts)) == sum(channels) and min(channels) >= 0
    if given.get("mode", "constant") != "constant" or given.get("value") not in (0, None) or not only_channels:
        raise converter.refusal(node, ": only zero padding of channels has an integer form on its own")
    move = Move(node.name, lambda n, x: PadChannels(name=n, inputs=(x,), before=channels[0], after=channels[1]))
    return converter.moved(value, [move])


def channel_shuffle(converter: Converter, node: fx.Node) -> Any:
    """nn.ChannelShuffle."""
    value = converter.value(converter.input_of(node), node)
    return converter.moved(value, [_shuffle(node.name, *converter.options(node, "groups"))])


def transpose(converter: Converter, node: fx.Node) -> Any:
    """(groups, channels/groups, …) to (channels/groups, groups, …), between two reshapes: a channel shuffle."""
    source = converter.input_of(node)
    value, before, after = converter.value(source, node), converter.shapes[source], converter.shapes[node]
    order = list(range(len(before)))
    if "dims" in converter.arguments(node):
        (axes,) = converter.options(node, "dims")
        order = [axis % len(before) for axis in axes]
    else:
        a, b = (axis % len(before) for axis in converter.options(node, "dim0", "dim1"))
        order[a], order[b] = order[b], order[a]
    if order != [0, 2, 1, *range(3, len(before))]:
        raise converter.refusal(node, ": among transpositions only the channel shuffle has an integer form")
    groups, rest = before[1], tuple(before[3:])
    moves = [
        reshape_to(node.name, (groups * before[2], *rest)),
        _shuffle(node.name, groups),
        reshape_to(node.name, tuple(after[1:])),
    ]
    return converter.moved(value, moves)


def reshape(converter: Converter, node: fx.Node) -> Any:
    """Another shape of the same elements."""
    source = converter.input_of(node)
    value, before, after = converter.value(source, node), converter.shapes[source], converter.shapes[node]
    if before == after:
        return value
    if before[0] != after[0]:
        raise converter.refusal(node, " mixes the samples of a batch, which has no integer form")
    return converter.moved(value, [reshape_to(node.name, after[1:])])


def unchanged(converter: Converter, node: fx.Node) -> Any:
    """What does nothing in evaluation."""
    return converter.value(converter.input_of(node), node)


def reshape_to(name: str, shape: tuple[int, ...]) -> Move:
    """The reshape of a sample to a shape, for a node of this name."""
    return Move(f"{name}_reshaped", lambda n, x: Reshape(name=n, inputs=(x,), shape=shape))


def _slice(name: str, axis: int, start: int, stop: int, step: int) -> Move:
    return Move(name, lambda n, x: Slice(name=n, inputs=(x,), axis=axis, start=start, stop=stop, step=step))


def _shuffle(name: str, groups: int) -> Move:
    return Move(name, lambda n, x: ChannelShuffle(name=n, inputs=(x,), groups=groups))


HANDLERS = {
    k.CONCATENATE: concatenate, k.SPLIT: split, k.INDEX: index, k.PAD: pad, k.CHANNEL_SHUFFLE: channel_shuffle,
    k.TRANSPOSE: transpose, k.RESHAPE: reshape, k.UNCHANGED: unchanged,
}  # fmt: skip
