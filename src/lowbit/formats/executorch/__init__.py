"""ExecuTorch for phones: a .pte file that runs in XNNPACK's integer kernels, with the integer reference's codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowbit.formats.registry import Format
from lowbit.integer.graph import Graph, Node
from lowbit.integer.result import Runner


def write(graph: Graph, path: Path) -> None:
    """Write a validated graph to `path`."""
    from lowbit.formats.executorch import writer

    writer.write(graph, path)


def open_runner(path: Path, graph: Graph) -> Runner:
    """The file in ExecuTorch's runtime, one sample at a time; it shows its outputs alone."""
    from lowbit.formats.executorch.runner import ExecutorchRunner

    return ExecutorchRunner(path, graph)


def _covers(kind: type[Node]) -> bool:
    from lowbit.formats.executorch.writer import LOWERINGS

    return LOWERINGS.find(kind) is not None


def _recognizes(content: Any) -> bool:
    return content[4:6] == b"ET"


FORMAT = Format("executorch", ".pte", "executorch", write, open_runner, _recognizes, _covers)
