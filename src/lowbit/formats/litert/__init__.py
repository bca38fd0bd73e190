"""LiteRT (TensorFlow Lite): a .tflite file that has the integer reference's codes through the XNNPACK delegate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowbit.formats.registry import Format
from lowbit.integer.graph import Graph, Node
from lowbit.integer.result import Runner


def write(graph: Graph, path: Path) -> None:
    """Write a validated graph to `path`."""
    from lowbit.formats.litert import writer

    writer.write(graph, path)


def open_runner(path: Path, graph: Graph) -> Runner:
    """The file in LiteRT's interpreter."""
    from lowbit.formats.litert.runner import LitertRunner

    return LitertRunner(path, graph)


def _covers(kind: type[Node]) -> bool:
    from lowbit.formats.litert.writer import LOWERINGS

    return LOWERINGS.find(kind) is not None


def _recognizes(content: Any) -> bool:
    return content[4:8] == b"TFL3"


FORMAT = Format("litert", ".tflite", "litert", write, open_runner, _recognizes, _covers)
