"""One arena for all tensors: each has its bytes from the node that computes it to the last that reads it.

An operation that goes through its input in order may write over what it has read. Its output then lies lower than the
input by so many bytes that no write meets a code still to be read: 0 for a sum, about two rows of the picture for a 3×3
convolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lowbit.formats.c.tensors import Place, alike, is_view, packed_width, places
from lowbit.integer.graph import Graph, Node
from lowbit.integer.ops import Add, AveragePool, Convolution, Lookup, MaxPool, Multiply, Requantize
from lowbit.integer.ops.elementwise import Elementwise

_ALIGNMENT = 4
_ORDERS = 24  # how many orders of placing are tried


@dataclass(frozen=True)
class Plan:
    """Where everything lies.

    Attributes:
        places: every tensor by the name of its node.
        arena: bytes of the arena.
        views: names of nodes that compute nothing, because their tensor is their input's.
    """

    places: Mapping[str, Place]
    arena: int
    views: frozenset[str]


@dataclass(frozen=True)
class _Block:
    """A piece of the arena: its bytes, and the first and last node during which it is taken."""

    name: str
    size: int
    first: int
    last: int


def plan(graph: Graph) -> Plan:
    """The arena of least size that a few orders of placing find.

    Codes are packed where the arena gets smaller by it alone.
    """
    slides = _Slides(graph)
    found = places(graph)
    best = trial = _planned(graph, found, slides)
    while more := _packed_at_the_peak(graph, trial, found):
        found = found | more
        trial = _planned(graph, found, slides)
        best = min(best, trial, key=lambda each: each.arena)
    for name, place in places(graph).items():  # codes by the byte are read and written faster
        if best.places[name].storage != place.storage:
            trial = _planned(graph, {**best.places, name: place}, slides)
            best = trial if trial.arena <= best.arena else best
    return best


def _packed_at_the_peak(graph: Graph, plan: Plan, found: Mapping[str, Place]) -> dict[str, Place]:
    """The tensors that are live where the arena is fullest, packed: those that can be and are not."""
    packed = {}
    for name in _at_the_peak(graph, plan):
        width = packed_width(found[name], graph.by_name[name].codes_of())
        if width and found[name].storage != "packed":
            packed[name] = replace(found[name], storage="packed", width=width)
    return packed


def _owners(graph: Graph, found: Mapping[str, Place]) -> dict[str, str]:
    """The tensor whose bytes each tensor's are, for those in the arena: its own, or that of which it is a view."""
    owners: dict[str, str] = {}
    for node in graph.nodes:
        place = found[node.name]
        source = node.inputs[0] if node.inputs else ""
        if source in owners and is_view(node, found[source], place):
            owners[node.name] = owners[source]
        elif place.memory == "arena":
            owners[node.name] = node.name
    return owners


def _blocks(graph: Graph, found: Mapping[str, Place], owners: Mapping[str, str]) -> dict[str, _Block]:
    blocks: dict[str, _Block] = {}
    for number, node in enumerate(graph.nodes):
        for name in (*node.inputs, node.name):
            owner = owners.get(name)
            if owner is None:
                continue
            block = blocks.get(owner) or _Block(owner, found[owner].size, number, number)
            keep = len(graph.nodes) if name in graph.outputs else number
            blocks[owner] = replace(block, last=max(block.last, number, keep if name == node.name else number))
    return blocks


def _planned(graph: Graph, found: Mapping[str, Place], known: _Slides) -> Plan:
    owners = _owners(graph, found)
    blocks = _blocks(graph, found, owners)
    slides = dict(known.of(found, owners, blocks))
    arena, offsets = min((_placed(order, slides) for order in _orders(list(blocks.values()))), key=lambda each: each[0])
    where = {
        name: replace(place, offset=offsets[owners[name]]) if name in owners else place for name, place in found.items()
    }
    views = frozenset(node.name for node in graph.nodes if node.name in owners and owners[node.name] != node.name)
    return Plan(where, arena, views)


def _orders(blocks: Sequence[_Block]) -> Iterator[list[_Block]]:
    yield sorted(blocks, key=lambda block: (-block.size, block.first))
    yield sorted(blocks, key=lambda block: (block.first, -block.size))
    yield sorted(blocks, key=lambda block: (-block.last, -block.size))
    seed = 1
    for _ in range(_ORDERS):  # by size, where sizes are blurred by up to a half
        keys = {}
        for block in blocks:
            seed = (seed * 1103515245 + 12345) % 2**31
            keys[block.name] = block.size * (0.5 + seed / 2**31)
        yield sorted(blocks, key=lambda block: -keys[block.name])


def _placed(order: Sequence[_Block], slides: Mapping[tuple[str, str], int]) -> tuple[int, dict[str, int]]:
    """Blocks one after the other at the lowest place where none is in the way."""
    offsets: dict[str, int] = {}
    done: list[_Block] = []
    for block in order:
        others = [other for other in done if other.first <= block.last and block.first <= other.last]
        ends = (offsets[other.name] + other.size for other in others)
        slid = (
            offsets[other.name] + sign * distance
            for other in others
            for sign, distance in _distances(block, other, slides)
        )
        for candidate in sorted({0, *map(_aligned, itertools.chain(ends, slid))}):
            if candidate >= 0 and all(_apart(block, candidate, other, offsets[other.name], slides) for other in others):
                offsets[block.name] = candidate
                break
        done.append(block)
    return max((offsets[block.name] + block.size for block in done), default=0), offsets


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _distances(block: _Block, other: _Block, slides: Mapping[tuple[str, str], int]) -> Iterator[tuple[int, int]]:
    if (block.name, other.name) in slides:  # the block is read while the other is written below it
        yield 1, slides[block.name, other.name]
    if (other.name, block.name) in slides:
        yield -1, _aligned(slides[other.name, block.name])


def _apart(block: _Block, at: int, other: _Block, there: int, slides: Mapping[tuple[str, str], int]) -> bool:
    if at + block.size <= there or there + other.size <= at:
        return True
    if (block.name, other.name) in slides:
        return at - there >= slides[block.name, other.name]
    return (other.name, block.name) in slides and there - at >= slides[other.name, block.name]


def _at_the_peak(graph: Graph, plan: Plan) -> list[str]:
    """Names of the tensors that are live where the arena is fullest."""
    owners = _owners(graph, plan.places)
    blocks = _blocks(graph, plan.places, owners)
    tops = {name: plan.places[name].offset + block.size for name, block in blocks.items()}
    top = max(tops, key=lambda name: tops[name], default=None)
    if top is None:
        return []
    span = blocks[top]
    live = {name for name, block in blocks.items() if block.first <= span.last and span.first <= block.last}
    return [name for name, owner in owners.items() if owner in live and plan.places[name].memory == "arena"]


class _Slides:
    """How many bytes below an input an output has to begin, of outputs that may be written over their input."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[tuple[str, str, int, int], int | None] = {}

    def of(
        self, found: Mapping[str, Place], owners: Mapping[str, str], blocks: Mapping[str, _Block]
    ) -> Iterator[tuple[tuple[str, str], int]]:
        """((input, output), bytes), by the names of whose bytes they are."""
        for number, node in enumerate(self._graph.nodes):
            if owners.get(node.name) != node.name:
                continue
            for owner in {owners[name]: None for name in node.inputs if name in owners}:
                if blocks[owner].last == number:
                    names = [name for name in node.inputs if owners.get(name) == owner]
                    distances = [self._distance(node, name, found) for name in names]
                    if None not in distances:
                        yield (owner, node.name), max(distance for distance in distances if distance is not None)

    def _distance(self, node: Node, name: str, found: Mapping[str, Place]) -> int | None:
        x, y = found[name], found[node.name]
        key = (node.name, name, x.width, y.width)
        if key not in self._known:
            self._known[key] = slide(node, x, y)
        return self._known[key]


def slide(node: Node, x: Place, y: Place) -> int | None:
    """How many bytes lower than x the node's output y has to begin, if the two may overlap."""
    if isinstance(node, (Add, Multiply, Requantize, Lookup, Elementwise)):
        if x.shape != y.shape or not alike(x.shape, x.strides, y.strides):
            return None
        return -(-max(0, y.width - x.width) * (y.count - 1) // 8)
    if isinstance(node, Convolution):
        if node.groups > 1 and not is_depthwise(node):
            return None
        return _window_slide(node, tuple(node.weight.codes.shape[2:]), x, y)
    if isinstance(node, (MaxPool, AveragePool)):
        return _window_slide(node, node.kernel, x, y)
    return None


def is_depthwise(node: Convolution) -> bool:
    """Whether every channel is convolved by itself."""
    out, inputs, *_ = node.weight.codes.shape
    return inputs == 1 and node.groups == out > 1


def _window_slide(node: Convolution | MaxPool | AveragePool, kernel: Sequence[int], x: Place, y: Place) -> int:
    """Positions in order: the bytes of an output are written when its window, and the next one's at most, were read.

    What takes channels by themselves still reads the window while it writes the position's first ones; of other
    convolutions two windows are read, then two positions written.
    """
    by_channel = not isinstance(node, Convolution) or is_depthwise(node)
    bits_in, bits_out = x.shape[0] * x.width, y.shape[0] * y.width
    space = x.shape[1:]
    starts = []
    for at in itertools.product(*(range(size) for size in y.shape[1:])):
        first = 0
        for i, size, stride, (before, _) in zip(at, space, node.stride, node.padding):
            first = first * size + min(max(0, i * stride - before), size - 1)
        starts.append(first)
    distance, needed = 0, len(starts) * bits_out  # nothing is needed beyond the last position
    for number in range(len(starts) - 1, -1, -1):
        after = needed
        needed = min(needed, starts[number] * bits_in)
        distance = max(distance, (number + 1) * bits_out - (needed if by_channel else after))
    return -(-distance // 8)
