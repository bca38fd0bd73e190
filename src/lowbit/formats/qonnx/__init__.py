"""QONNX, for FINN, hls4ml and what else reads it: Quant nodes of any width around float operators.

Zero points may be fractions (LSQ+ offsets as trained). Then values are no whole numbers and equality with an integer
reference has no meaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowbit.formats.registry import Format
from lowbit.integer.graph import Graph, Node
from lowbit.integer.result import Runner

DOMAIN = "qonnx.custom_op.general"


def write(graph: Graph, path: Path) -> None:
    """Write a validated graph (fractional zero points allowed) to `path`."""
    from lowbit.formats.qonnx import writer

    writer.write(graph, path)


def open_runner(path: Path, graph: Graph) -> Runner:
    """The file in ONNX Runtime, its Quant nodes written out."""
    from lowbit.formats.qonnx.runner import QonnxRunner

    return QonnxRunner(path, graph)


def _covers(kind: type[Node]) -> bool:
    from lowbit.formats.qonnx.writer import LOWERINGS

    return LOWERINGS.find(kind) is not None


def _recognizes(content: Any) -> bool:
    return content.find(DOMAIN.encode()) >= 0


FORMAT = Format("qonnx", ".qonnx.onnx", "export", write, open_runner, _recognizes, _covers, takes_fractions=True)
