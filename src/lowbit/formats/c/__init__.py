"""C99 for microcontrollers: net.c and net.h, proved by compiling and running them on this machine.

The arithmetic is that of the rounding "shift", which is "fixed" but where multipliers are powers of two: no float
between the input's codes and the output's. Weights are packed at their width; all tensors lie in one static arena;
every operation is written only where the network has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowbit.formats.registry import Footprint, Format
from lowbit.integer.graph import Graph, Node
from lowbit.integer.result import Runner


def _write(graph: Graph, path: Path, rounding: str = "shift") -> None:
    from lowbit.formats.c import writer

    writer.write(graph, path, rounding)


def _open(path: Path, graph: Graph) -> Runner:
    from lowbit.formats.c.runner import CRunner

    return CRunner(path, graph)


def _covers(kind: type[Node]) -> bool:
    from lowbit.formats.c import writer

    return writer.LOWERINGS.find(kind) is not None


def _recognizes(content: Any) -> bool:
    return content[:13] == b"/* lowbit C99"


def _open_on(path: Path, graph: Graph, board: str) -> Runner:
    from lowbit.formats.c.boards import BoardRunner

    return BoardRunner(path, graph, board)


def _footprint(graph: Graph) -> Footprint:
    from lowbit.formats.c import writer

    return writer.footprint(graph)


OPTIONS = {"rounding": ("shift", "fixed", "fixed16", "double-rounding", "single-rounding")}
FORMAT = Format(
    "c", ".c", "export", _write, _open, _recognizes, _covers, companions=(".h",), footprint=_footprint, open_on=_open_on,
    options=OPTIONS,
)  # fmt: skip
