"""What a format is, and how an operation gets a form in one.

A format is a folder of this package with its writer and its runner side by side, and one line in `formats.FORMATS`. Its
writer has a `Lowerings`: a function per operation, registered for the operation's class or for a class it derives from,
so that `Elementwise` and `Take` bring all their subclasses along.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.errors import LowbitError
from lowbit.files import atomic_write, check_writable
from lowbit.integer.graph import Graph, Node
from lowbit.integer.result import Runner


class Lowerings:
    """The functions with which one format writes the operations; one per class of node.

    Args:
        title: what messages call the format.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._functions: dict[type[Node], Callable[..., Any]] = {}

    def __call__(self, *kinds: type[Node]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A decorator that registers a function for these operations, and for those that derive from them."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self._functions.update(dict.fromkeys(kinds, function))
            return function

        return register

    def find(self, kind: type[Node]) -> Callable[..., Any] | None:
        """The function for a class of node; None where the format has no form of it."""
        return next((self._functions[base] for base in kind.__mro__ if base in self._functions), None)

    def of(self, node: Node) -> Callable[..., Any]:
        """The function for a node. Raises LowbitError, naming the node, where the format has no form of it."""
        function = self.find(type(node))
        if function is None:
            raise LowbitError(f"node {node.name!r}: {self.title} has no form of {type(node).__name__}")
        return function


@dataclass(frozen=True)
class Footprint:
    """What a file takes of a microcontroller, in bytes.

    Attributes:
        ram: static memory, without the caller's inputs and outputs, and the stack.
        flash: constants, and an estimate of the code.
        by_node: (RAM, flash) by the name of the node: its input and output tensors, its constants.
    """

    ram: int
    flash: int
    by_node: Mapping[str, tuple[int, int]]

    def check(self, max_ram: int | None, max_flash: int | None) -> None:
        """Raise LowbitError, with the largest layers, where there is less of a memory than the network takes."""
        for which, what, needed, most in ((0, "RAM", self.ram, max_ram), (1, "flash", self.flash, max_flash)):
            if most is not None and needed > most:
                largest = sorted(self.by_node, key=lambda name: -self.by_node[name][which])[:3]
                listed = ", ".join(f"{name} ({self.by_node[name][which]:,})" for name in largest)
                raise LowbitError(
                    f"the network takes {needed:,} bytes of {what}, and there are {most:,}; most of them for {listed}: "
                    "give these layers fewer bits or channels"
                )


@dataclass(frozen=True)
class Format:
    """A file that holds an integer network.

    Attributes:
        name: as `lowbit.export` and `--format` take it.
        suffix: of the file that `lowbit export` writes.
        extra: the extra of lowbit that installs what it needs.
        write: writes a validated graph to a path, with a value for each of `options`; raises LowbitError, naming the
            node, for what the format can't hold.
        open: the file at a path, which was written from a graph, in the runtime that it is for; raises LowbitError for
            a file that is damaged or another graph's.
        recognizes: whether a file with this content is one of the format's.
        covers: whether the format has a form of an operation.
        bits_max: the widest code that the format carries.
        takes_fractions: whether zero points may be fractions.
        footprint: what the file of a graph takes of a microcontroller; None where it is for none.
        open_on: as `open`, on a board in an emulator, by its name; None where there are no boards.
        companions: suffixes of the files that `write` puts beside the one at its path.
        options: the values that each keyword of `write` may have, by its name; the first is the default.

    The functions import what they need when they are called. `write`, `open` and `covers` may raise ImportError.
    """

    name: str
    suffix: str
    extra: str
    write: Callable[..., None]
    open: Callable[[Path, Graph], Runner]
    recognizes: Callable[[Any], bool]
    covers: Callable[[type[Node]], bool]
    bits_max: int = 8
    takes_fractions: bool = False
    companions: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    footprint: Callable[[Graph], Footprint] | None = None
    open_on: Callable[[Path, Graph, str], Runner] | None = None

    @contextmanager
    def staged(self, path: Path) -> Iterator[Path]:
        """Yield a path to write to, of the same name where other files belong to it; on success all are put at `path`.

        Raises LowbitError where a file can't be put there.
        """
        if not self.companions:
            with atomic_write(path) as temporary:
                yield temporary
            return
        targets = [path.with_suffix(suffix) for suffix in self.companions] + [path]
        if path.suffix in self.companions:
            raise LowbitError(
                f"{path}: give the name of a file that ends in {self.suffix}; {path.suffix} is written beside it"
            )
        for target in targets:
            check_writable(target)
            if target != path and target.exists() and not self.recognizes(target.read_bytes()):
                raise LowbitError(
                    f"{target} is there and is not lowbit's, and would be written beside {path.name}: give another name"
                )
        with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
            yield Path(folder) / path.name
            with ExitStack() as stack:
                for target in targets:
                    stack.enter_context(atomic_write(target)).write_bytes((Path(folder) / target.name).read_bytes())

    def checked_options(self, given: Mapping[str, str | None]) -> dict[str, str]:
        """A value for each option, by default its first.

        Raises LowbitError for options and values that there are not.
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        for name, value in chosen.items():
            if name not in self.options:
                has = f"its options are {', '.join(self.options)}" if self.options else "it has none"
                raise LowbitError(f"{name}={value!r} is no option of the format {self.name}: {has}")
            if value not in self.options[name]:
                raise LowbitError(f"{name}={value!r}: the format {self.name} has {', '.join(self.options[name])}")
        return {name: chosen.get(name, values[0]) for name, values in self.options.items()}

    def checked_write(self, graph: Graph, path: Path, options: Mapping[str, str] | None = None) -> None:
        """`write`. Raises LowbitError where a package is missing, or a tensor is wider than the format carries."""
        for node in graph.nodes:
            bits = getattr(node.type, "bits", 0)
            if bits > self.bits_max:
                raise LowbitError(f"node {node.name!r}: {self.name} holds codes of {self.bits_max} bits, not {bits}")
        try:
            self.write(graph, path, **(options or {}))
        except ModuleNotFoundError as error:
            raise LowbitError(
                f"writing {self.name} needs the package {error.name!r}, which is not installed: "
                f"pip install 'lowbit[{self.extra}]'"
            ) from error

    def check_memory(self, graph: Graph, max_ram: int | None, max_flash: int | None) -> None:
        """Raise LowbitError where the file of a graph takes more bytes than there are, or is for no microcontroller."""
        if max_ram is None and max_flash is None:
            return
        if self.footprint is None:
            raise LowbitError(f"max_ram and max_flash are for C files: a {self.name} file is for no microcontroller")
        self.footprint(graph).check(max_ram, max_flash)

    def checked_open(self, path: Path, graph: Graph, board: str | None = None) -> Runner:
        """`open`, or `open_on` a board. Raises LowbitError where a package is missing, or the format has no boards."""
        if board is not None and self.open_on is None:
            raise LowbitError(f"{path}: a {self.name} file does not run on a board; a C file does (--format c)")
        try:
            return self.open(path, graph) if board is None or self.open_on is None else self.open_on(path, graph, board)
        except ModuleNotFoundError as error:
            raise LowbitError(
                f"an exported file is checked in its own runtime, and {error.name} is not installed: "
                f"pip install 'lowbit[{self.extra}]'"
            ) from error


def not_this_network(path: Path, what: str) -> LowbitError:
    """What to raise for a file of another graph."""
    return LowbitError(f"{path}: was not exported from this network: {what}; export it again")
