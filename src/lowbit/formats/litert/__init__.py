"""LiteRT (TensorFlow Lite): a .tflite file that has the integer reference's codes.

io="floats"   for phones and computers: through the XNNPACK delegate, in the rounding "float"
io="codes" for microcontrollers and NPUs: 8-bit operators alone, in LiteRT's reference kernels and in TensorFlow Lite
Micro, in
              the rounding "double-rounding"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowbit.formats.registry import Format
from lowbit.integer.graph import Graph, Node
from lowbit.integer.result import Runner


def write(graph: Graph, path: Path, io: str = "floats", weights: str = "int8") -> None:
    """Write a validated graph to `path`.

    Args:
        io: "floats" or "codes": what inputs and outputs are.
        weights: "int4" stores weights of at most 4 bits two to a byte, in files of codes.
    """
    from lowbit.errors import LowbitError
    from lowbit.files import atomic_write
    from lowbit.formats.litert import integers, writer

    if io == "codes":
        content = integers.build(graph, int4=weights == "int4")
    elif weights == "int4":
        raise LowbitError(
            'weights="int4" is for files of codes (io="codes"): XNNPACK has no convolution of 4-bit weights'
        )
    else:
        content = writer.build(graph)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def open_runner(path: Path, graph: Graph) -> Runner:
    """The file in LiteRT's interpreter."""
    from lowbit.formats.litert import runner

    return runner.open_runner(path, graph)


def _covers(kind: type[Node]) -> bool:
    from lowbit.formats.litert.writer import LOWERINGS

    return LOWERINGS.find(kind) is not None


def _recognizes(content: Any) -> bool:
    return content[4:8] == b"TFL3"


OPTIONS = {"io": ("floats", "codes"), "weights": ("int8", "int4")}
FORMAT = Format("litert", ".tflite", "litert", write, open_runner, _recognizes, _covers, options=OPTIONS)
