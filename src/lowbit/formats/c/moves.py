"""Operations that move codes, in C: loops that copy, with an index of the input for every index of the output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from lowbit.formats.c.operations import LOWERINGS
from lowbit.formats.c.source import Builder
from lowbit.formats.c.tensors import Place, index
from lowbit.integer.graph import Node, known_shape
from lowbit.integer.ops import (
    ChannelShuffle,
    Concatenate,
    Constant,
    PixelShuffle,
    PixelUnshuffle,
    Reshape,
    Slice,
    Transpose,
)
from lowbit.integer.ops.pad import ZeroPadding
from lowbit.integer.ops.take import Take


@LOWERINGS(Constant)
def _constant(builder: Builder, node: Constant) -> None:
    """The codes lie in read-only memory, where whoever takes them reads them."""
    place = builder.place(node.name)
    kind = "int8_t" if node.codes_of().signed else "uint8_t"
    builder.constant(f"{kind} {place.memory}", node.codes.flatten().tolist())


def _filled(builder: Builder, y: Place, x: Place, at: Callable[[Sequence[str]], Sequence[str]]) -> None:
    """y[i0, i1, …] = x[at(i0, i1, …)], in the order in which y lies in memory."""
    builder.declare("x", x)
    builder.declare("y", y, writable=True)
    axes = [axis for axis in y.axes if y.shape[axis] > 1]
    with builder.loops([(f"i{axis}", y.shape[axis]) for axis in axes]):
        here = index([(f"i{axis}", y.strides[axis]) for axis in axes])
        taken = at([f"i{axis}" if axis in axes else "0" for axis in range(len(y.shape))])
        builder.store("y", y, here, builder.load("x", x, _index(taken, x)))


def _index(places: Sequence[str], x: Place) -> str:
    """The index of x for a place along each of its dimensions."""
    wanted = [(text, stride) for text, stride, size in zip(places, x.strides, x.shape) if size > 1 and text != "0"]
    return index([(f"({text})" if " " in text else text, stride) for text, stride in wanted])


def _put(builder: Builder, x: Place, y: Place, first: Mapping[int, int]) -> None:
    """Copy all of x into y, from place first[axis] on along these axes."""
    builder.declare("x", x)
    builder.declare("y", y, writable=True)
    axes = [axis for axis in y.axes if x.shape[axis] > 1]
    with builder.loops([(f"i{axis}", x.shape[axis]) for axis in axes]):
        terms = [(f"i{axis}", y.strides[axis]) for axis in axes]
        terms += [(str(place), y.strides[axis]) for axis, place in first.items() if place]
        there = index([(f"i{axis}", x.strides[axis]) for axis in axes])
        builder.store("y", y, index(terms), builder.load("x", x, there))


def _taken(builder: Builder, node: Node, taken: Mapping[int, Sequence[int]]) -> None:
    """y[…, i, …] = x[…, taken[axis][i], …], axes counted without the batch."""
    number = builder.number(node)
    for axis, places in taken.items():
        if _formula(places, "i") is None:
            kind = "uint8_t" if max(places) < 256 else "uint16_t" if max(places) < 65536 else "uint32_t"
            builder.constant(f"{kind} places{number}_{axis}", places)

    def at(here: Sequence[str]) -> list[str]:
        return [
            (_formula(taken[axis], i) or f"places{number}_{axis}[{i}]") if axis in taken else i
            for axis, i in enumerate(here)
        ]

    _filled(builder, builder.place(node.name), builder.place(node.inputs[0]), at)


def _formula(places: Sequence[int], i: str) -> str | None:
    """The places as a formula of the index: first + step · i, or i / factor; None where they are neither."""
    step = places[1] - places[0] if len(places) > 1 else 0
    if list(places) == [places[0] + step * j for j in range(len(places))]:
        if i == "0" or not step:
            return str(places[0])
        scaled = i if step == 1 else f"{i} * {step}"
        return scaled if not places[0] else f"{places[0]} + {scaled}"
    factor = next(j for j, place in enumerate(places) if place != places[0])
    return f"{i} / {factor}" if list(places) == [j // factor for j in range(len(places))] else None


@LOWERINGS(Take)
def _take(builder: Builder, node: Take) -> None:
    (kind,) = builder.graph.input_types(node)
    _taken(builder, node, {axis - 1: list(places) for axis, places in node.indices(known_shape(kind)).items()})


@LOWERINGS(Slice)
def _slice(builder: Builder, node: Slice) -> None:
    _taken(builder, node, {node.axis - 1: range(node.start, node.stop, node.step)})


@LOWERINGS(ChannelShuffle)
def _shuffle(builder: Builder, node: ChannelShuffle) -> None:
    channels, groups = node.shape_of()[0], node.groups
    each = channels // groups
    _taken(builder, node, {0: [c % groups * each + c // groups for c in range(channels)]})


@LOWERINGS(Transpose)
def _transpose(builder: Builder, node: Transpose) -> None:
    def at(here: Sequence[str]) -> list[str]:
        return [here[node.order.index(axis)] for axis in range(1, len(node.order) + 1)]

    _filled(builder, builder.place(node.name), builder.place(node.inputs[0]), at)


@LOWERINGS(PixelShuffle)
def _pixel_shuffle(builder: Builder, node: PixelShuffle) -> None:
    block = math.prod(node.factors)

    def at(here: Sequence[str]) -> list[str]:
        channel, left = [f"{here[0]} * {block}"], block
        for i, factor in zip(here[1:], node.factors):
            left //= factor
            channel.append(f"{i} % {factor} * {left}")
        return [" + ".join(channel), *(f"{i} / {factor}" for i, factor in zip(here[1:], node.factors))]

    _filled(builder, builder.place(node.name), builder.place(node.inputs[0]), at)


@LOWERINGS(PixelUnshuffle)
def _pixel_unshuffle(builder: Builder, node: PixelUnshuffle) -> None:
    block = math.prod(node.factors)

    def at(here: Sequence[str]) -> list[str]:
        places, left = [f"{here[0]} / {block}"], block
        for i, factor in zip(here[1:], node.factors):
            left //= factor
            places.append(f"{i} * {factor} + {here[0]} / {left} % {factor}")
        return places

    _filled(builder, builder.place(node.name), builder.place(node.inputs[0]), at)


@LOWERINGS(Concatenate)
def _concatenate(builder: Builder, node: Concatenate) -> None:
    first, axis = 0, node.axis - 1
    for name in node.inputs:
        x = builder.place(name)
        with builder.block():
            _put(builder, x, builder.place(node.name), {axis: first})
        first += x.shape[axis]


@LOWERINGS(ZeroPadding)
def _zero_padding(builder: Builder, node: ZeroPadding) -> None:
    """Zeros everywhere, then what they surround."""
    (kind,), x, y = builder.graph.input_types(node), builder.place(node.inputs[0]), builder.place(node.name)
    with builder.block():
        builder.declare("y", y, writable=True)
        with builder.elements(y, []) as (at, _):
            builder.store("y", y, at, str(kind.zero_point))
    with builder.block():
        _put(builder, x, y, {axis: before for axis, (before, _) in enumerate(node.sizes(x.shape))})


@LOWERINGS(Reshape)
def _reshape(builder: Builder, node: Reshape) -> None:
    """Codes in the model's own order, one after the other."""
    x, y = builder.place(node.inputs[0]), builder.place(node.name)
    builder.declare("x", x)
    builder.declare("y", y, writable=True)
    with builder.loop("i", y.count):
        builder.store("y", y, y.at("i"), builder.load("x", x, x.at("i")))
