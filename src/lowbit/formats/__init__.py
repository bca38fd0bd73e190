"""Files that an integer network is written to: a folder each, with the writer and the runner that proves what it wrote.

To add one: docs/add-a-format.md.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

from lowbit.errors import LowbitError
from lowbit.files import check_readable
from lowbit.formats import c, executorch, hls4ml, json, litert, lowbit, onnx, qonnx
from lowbit.formats.registry import Format
from lowbit.integer.graph import Graph
from lowbit.integer.result import Runner

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        onnx.PLAIN,
        onnx.PACKED,
        qonnx.FORMAT,
        executorch.FORMAT,
        litert.FORMAT,
        lowbit.FORMAT,
        json.FORMAT,
        c.FORMAT,
        hls4ml.FORMAT,
    )
}
"""Every format by name. A format of one's own is an entry more."""

__all__ = ["FORMATS", "Format", "get_format", "open_file"]


def get_format(name: str) -> Format:
    """The format of that name. Raises LowbitError for a name that there is not."""
    if name not in FORMATS:
        raise LowbitError(f"unknown format {name!r}: known are {', '.join(FORMATS)}")
    return FORMATS[name]


def open_file(path: str | os.PathLike, graph: Graph, board: str | None = None) -> Runner:
    """The file, in the runtime of the format that recognizes it; a file that none recognizes is taken for ONNX.

    With a board, a C file runs on that in an emulator.

    Raises LowbitError where the runtime is not installed, or it is not a file, or not one of this network.
    """
    path = Path(path)
    check_readable(path)
    try:
        with open(path, "rb") as file, contextlib.ExitStack() as stack:
            empty = os.fstat(file.fileno()).st_size == 0
            content = b"" if empty else stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            known = (each for each in FORMATS.values() if each.recognizes(content))
            format = next(known, onnx.PLAIN)
    except OSError as error:
        raise LowbitError(f"{path}: cannot be read: {error.strerror}") from error
    return format.checked_open(path, graph, board)
