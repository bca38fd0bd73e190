"""Where every tensor of the network lies in C: its order of axes, how its codes are stored, and in which memory.

Tensors between layers have the channels last, because a window's channels then lie beside each other; those that linear
layers over leading dimensions take keep the order of their axes. The caller's inputs and outputs have the model's
order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowbit.errors import LowbitError
from lowbit.integer.graph import FloatType, Graph, Node, Shape, TensorType
from lowbit.integer.ops import AveragePool, Constant, Convolution, GlobalAveragePool, MaxPool, Quantize, Reshape

_WINDOWED = (Convolution, MaxPool, AveragePool, GlobalAveragePool)

Strides = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """A tensor in memory.

    Attributes:
        shape: of a sample, in the order of the model's own axes.
        strides: how far apart two neighbours along each of these axes lie, in elements.
        storage: "int8", "uint8" or "int32": a code, or an accumulator, as it is; "packed": codes counted from the
            lowest one, `width` bits each, the first in the lowest bits of a byte.
        width: bits of an element.
        low: the lowest code.
        memory: "arena", or with a number behind it "input" or "output", the caller's, or "codes", a constant.
        offset: in the arena, in bytes.
    """

    shape: Shape
    strides: Strides
    storage: str
    width: int
    low: int
    memory: str = "arena"
    offset: int = 0

    @property
    def count(self) -> int:
        """How many codes it has."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return -(-self.count * self.width // 8)

    @property
    def axes(self) -> list[int]:
        """The axes from the one whose neighbours lie farthest apart to the one where they are nearest."""
        return sorted(range(len(self.shape)), key=lambda axis: (-self.strides[axis], self.shape[axis] == 1, axis))

    def with_rank(self, rank: int) -> Place:
        """The same with as many dimensions, by ones of size 1 before its own."""
        missing = rank - len(self.shape)
        return replace(self, shape=(1,) * missing + self.shape, strides=(0,) * missing + self.strides)

    def at(self, i: str) -> str:
        """The C expression of where the i-th element in the model's own order of axes lies."""
        if alike(self.shape, self.strides, row_major(self.shape)):
            return i
        terms = []
        for axis, (size, count) in enumerate(zip(self.shape, row_major(self.shape))):
            if size > 1:
                within = f"{i} / {count}" if count > 1 else i
                whole = all(other == 1 for other in self.shape[:axis])
                terms.append((f"({within})" if whole else f"({within} % {size})", self.strides[axis]))
        return index(terms)


def row_major(shape: Shape) -> Strides:
    """Strides of the model's own order of axes."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def channels_last(shape: Shape) -> Strides:
    """Strides with the first axis behind the others."""
    return (1, *(shape[0] * stride for stride in row_major(shape[1:])))


def alike(shape: Shape, a: Strides, b: Strides) -> bool:
    """Whether two orders of axes are one, given that a dimension of one element has no neighbours."""
    return all(x == y for size, x, y in zip(shape, a, b) if size > 1)


def places(graph: Graph) -> dict[str, Place]:
    """Every node's tensor, stored in bytes, all in an arena whose offsets are not yet chosen."""
    last = _with_channels_last(graph)
    found: dict[str, Place] = {}
    for node in graph.nodes:
        shape = node.shape_of()
        strides = channels_last(shape) if node.name in last else row_major(shape)
        found[node.name] = _stored(node, shape, strides)
    number = 0
    for serial, node in enumerate(graph.nodes, 1):
        if isinstance(node, Quantize):
            found[node.name] = replace(found[node.name], memory=f"input{number}", strides=row_major(node.shape_of()))
            number += 1
        if isinstance(node, Constant):
            found[node.name] = replace(found[node.name], memory=f"codes{serial}", strides=row_major(node.shape_of()))
    used = {name for node in graph.nodes for name in node.inputs}
    for number, name in enumerate(graph.outputs):
        if name not in used and not isinstance(graph.by_name[name], (Quantize, Constant)):
            strides = row_major(found[name].shape)
            found[name] = replace(found[name], memory=f"output{number}", strides=strides)
    return found


def _stored(node: Node, shape: Shape, strides: Strides) -> Place:
    if isinstance(node.type, FloatType):
        return Place(shape, strides, "int32", 32, 0)
    y = node.codes_of()
    if y.bits > 8:
        raise LowbitError(f"node {node.name!r}: C code holds codes of 8 bits, not {y.bits}")
    return Place(shape, strides, "int8" if y.signed else "uint8", 8, y.qn)


def packed_width(place: Place, y: TensorType) -> int | None:
    """Bits that a code takes when packed, where the channels of a position then fill whole bytes; else None."""
    width = next((width for width in (1, 2, 4) if y.bits <= width), None)
    nearest = place.shape[place.axes[-1]]
    return width if width and place.memory == "arena" and nearest * width % 8 == 0 else None


def _with_channels_last(graph: Graph) -> set[str]:
    """Names of the tensors of two and more dimensions that stand in one line with windows over positions."""
    leader = {node.name: node.name for node in graph.nodes}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    windowed: set[str] = set()
    for node in graph.nodes:
        names = [name for name in node.inputs if name in leader]
        if isinstance(node, _WINDOWED):
            windowed |= {node.name, *names}
        elif not isinstance(node, Reshape):
            for name in names:
                if len(graph.by_name[name].shape_of()) == len(node.shape_of()):
                    leader[find(name)] = find(node.name)
    leaders = {find(name) for name in windowed}
    return {node.name for node in graph.nodes if find(node.name) in leaders and len(node.shape_of()) > 1}


def is_view(node: Node, x: Place, y: Place) -> bool:
    """Whether a Reshape's tensor is its input's, byte for byte."""
    if not isinstance(node, Reshape) or (x.storage, x.width) != (y.storage, y.width) or y.memory != "arena":
        return False
    return _in_order(x) and _in_order(y)


def _in_order(place: Place) -> bool:
    return alike(place.shape, place.strides, row_major(place.shape))


def index(terms: Sequence[tuple[str, int]]) -> str:
    """The C expression of Σ variable · stride; "0" where there is none."""
    parts = [name if stride == 1 else f"{name} * {stride}" for name, stride in terms if stride]
    return " + ".join(parts) or "0"
