"""C text: names, loops, loads and stores of codes, and the kernels that are in use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources

from lowbit.formats.c.memory import Plan
from lowbit.formats.c.tensors import Place, alike, index
from lowbit.integer.graph import Graph, Node

C_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int32": "int32_t", "packed": "uint8_t"}
"""The C type of an element, by storage."""


_SIZES = {"int8_t": 1, "uint8_t": 1, "uint16_t": 2, "int32_t": 4, "uint32_t": 4, "int64_t": 8}


def identifier(text: str) -> str:
    """A C identifier from any text: other characters become underscores, and it begins with a letter."""
    name = re.sub(r"[^0-9A-Za-z_]", "_", text).strip("_") or "net"
    return name if name[0].isalpha() else f"n{name}"


def comment(text: str) -> str:
    """Text that may stand in a comment: printable ASCII that neither ends it nor is read by the preprocessor."""
    return re.sub(r"\*/|/\*|\?\?|\\|[^ -~]", "_", text)


def numbers(values: Sequence[int] | Sequence[str], indent: str = "    ", per_line: int = 12) -> str:
    """The lines of an initializer."""
    lines = (values[start : start + per_line] for start in range(0, len(values), per_line))
    return "\n".join(indent + ", ".join(map(str, line)) + "," for line in lines)


@dataclass
class Builder:
    """Collects what net.c is made of, while the operations write themselves.

    Attributes:
        graph: what is written.
        plan: where its tensors lie.
        rounding: the name of the rounding that it is written in.
        uses: names of kernels and of their parts, as the kernels' texts ask for them.
        constants: definitions of tables and layers.
        weights: the words of all weights.
        body: lines of the function that runs the network.
        flash: bytes of constants by the name of their node.
        node: which is being written.
        columns: elements of the layers' columns.
        taps, tap_rows: of the layers that convolve every channel by itself, taps of a window, and bytes of its weights.
        space: positions' dimensions of the layers.
    """

    graph: Graph
    plan: Plan
    rounding: str = "shift"
    uses: set[str] = field(default_factory=set)
    constants: list[str] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    flash: dict[str, int] = field(default_factory=dict)
    node: Node | None = None
    columns: int = 0
    taps: int = 0
    tap_rows: int = 0
    space: int = 2
    depth: int = 1

    def number(self, node: Node) -> int:
        """Of a node, from 1."""
        return next(number for number, other in enumerate(self.graph.nodes, 1) if other is node)

    def place(self, name: str) -> Place:
        """Where a node's tensor lies."""
        return self.plan.places[name]

    def line(self, text: str) -> None:
        """A line of the body, indented."""
        self.body.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str = "") -> Iterator[None]:
        """Lines within braces."""
        self.line(f"{head} {{".lstrip())
        self.depth += 1
        yield
        self.depth -= 1
        self.line("}")

    @contextmanager
    def loop(self, variable: str, count: int) -> Iterator[None]:
        """Lines that run for `variable` from 0 to count − 1."""
        with self.block(f"for (int32_t {variable} = 0; {variable} < {count}; {variable}++)"):
            yield

    @contextmanager
    def loops(self, sizes: Sequence[tuple[str, int]]) -> Iterator[None]:
        """Loops in one another, the first outermost."""
        if not sizes:
            yield
            return
        with self.loop(*sizes[0]), self.loops(sizes[1:]):
            yield

    def constant(self, declaration: str, values: Sequence[int]) -> None:
        """A table of whole numbers in read-only memory."""
        self.constants.append(f"static const {declaration}[{len(values)}] = {{\n{numbers(values)}\n}};")
        self.spend(len(values) * next(size for kind, size in _SIZES.items() if declaration.startswith(kind)))

    def spend(self, count: int) -> None:
        """Count bytes of constants of the node that is being written."""
        assert self.node is not None
        self.flash[self.node.name] = self.flash.get(self.node.name, 0) + count

    def pointer(self, place: Place, *, writable: bool = False) -> str:
        """The C expression of where a tensor begins."""
        kind = C_TYPES[place.storage]
        if place.memory == "arena":
            return f"({'' if writable else 'const '}{kind} *)(arena + {place.offset})"
        return place.memory

    def declare(self, variable: str, place: Place, *, writable: bool = False) -> None:
        """A pointer to a tensor as a local variable."""
        const = "" if writable else "const "
        self.line(f"{const}{C_TYPES[place.storage]} *const {variable} = {self.pointer(place, writable=writable)};")

    def load(self, variable: str, place: Place, at: str) -> str:
        """The C expression of a code."""
        if place.storage != "packed":
            return f"{variable}[{at}]"
        self.uses.add("packed")
        return f"(unpack({variable}, {place.width}, (uint32_t)({at})) + {place.low})"

    def store(self, variable: str, place: Place, at: str, code: str) -> None:
        """A statement that stores a code, an int32_t."""
        if place.storage == "packed":
            self.uses.add("packed")
            self.line(f"pack({variable}, {place.width}, (uint32_t)({at}), {code} - {place.low});")
        else:
            self.line(f"{variable}[{at}] = ({C_TYPES[place.storage]})({code});")

    @contextmanager
    def elements(self, y: Place, others: Sequence[Place]) -> Iterator[tuple[str, list[str]]]:
        """Loops over all elements of y in memory's order, with the index of each, and of its partner in the others.

        A dimension in which another tensor has one element is broadcast. One loop does where all lie alike.
        """
        dense = y.count == math_prod_of_extent(y) and all(
            other.shape == y.shape and alike(y.shape, other.strides, y.strides) for other in others
        )
        if dense:
            with self.loop("i", y.count):
                yield "i", ["i"] * len(others)
            return
        axes = [axis for axis in y.axes if y.shape[axis] > 1]
        with self.loops([(f"i{axis}", y.shape[axis]) for axis in axes]):
            yield (
                index([(f"i{axis}", y.strides[axis]) for axis in axes]),
                [
                    index([(f"i{axis}", other.strides[axis]) for axis in axes if other.shape[axis] > 1])
                    for other in others
                ],
            )


def math_prod_of_extent(place: Place) -> int:
    """How many elements lie between a tensor's first and last: its count, if it has no gaps."""
    return 1 + sum((size - 1) * stride for size, stride in zip(place.shape, place.strides))


def kernel(name: str, uses: set[str]) -> str:
    """The text of a kernel without the parts that are not used: lines between `@if part` and `@end`."""
    text = resources.files("lowbit.formats.c").joinpath("kernels", f"{name}.c").read_text(encoding="utf-8")
    kept, wanted = [], [True]
    for line in text.splitlines():
        if line.startswith("@if "):
            wanted.append(wanted[-1] and line[4:] in uses)
        elif line == "@end":
            wanted.pop()
        elif wanted[-1]:
            kept.append(line)
    return "\n".join(kept)
