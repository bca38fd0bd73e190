"""hls4ml for FPGAs: a .fml file, hls4ml's own, of a network with power-of-two steps, proved in hls4ml's C simulation.

Every tensor of codes is an ap_fixed type whose last bit is worth its step, so that hls4ml rounds and saturates to the
integer reference's codes; accumulators are as wide as their proved bounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowbit.formats.registry import Format
from lowbit.integer.graph import Graph, Node
from lowbit.integer.result import Runner


def write(graph: Graph, path: Path) -> None:
    """Write a validated graph to `path`."""
    from lowbit.formats.hls4ml import writer

    writer.write(graph, path)


def open_runner(path: Path, graph: Graph) -> Runner:
    """The file in hls4ml's C simulation, compiled by g++."""
    from lowbit.formats.hls4ml.runner import Hls4mlRunner

    return Hls4mlRunner(path, graph)


def _covers(kind: type[Node]) -> bool:
    from lowbit.formats.hls4ml.layers import LOWERINGS

    return LOWERINGS.find(kind) is not None


def _recognizes(content: Any) -> bool:
    return content[:2] == b"\x1f\x8b"  # gzip


FORMAT = Format("hls4ml", ".fml", "hls4ml", write, open_runner, _recognizes, _covers)
