"""lowbit's own file of an integer network (`integer.file`), run in the integer reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lowbit.formats.registry import Format, not_this_network
from lowbit.integer import file
from lowbit.integer.graph import Graph, Node
from lowbit.integer.network import dequantized
from lowbit.integer.result import Result, Runner
from lowbit.integer.run import run


def reference_runner(path: Path, found: Graph, graph: Graph) -> Runner:
    """A graph that was read from a file, in the integer reference.

    Args:
        path: the file, for messages.
        found: what was read.
        graph: what it was written from. Raises LowbitError where the two differ in names or shapes.
    """
    shapes = {node.name: node.shape_of() for node in found.nodes}
    for node in graph.nodes:
        if shapes.get(node.name) != node.shape_of():
            raise not_this_network(path, f"it has no tensor {node.name!r} of shape {node.shape_of()}")
    if (found.outputs, dict(found.inputs)) != (graph.outputs, dict(graph.inputs)):
        raise not_this_network(path, "its input or output is another")

    def runner(inputs: Mapping[str, Tensor]) -> Result:
        codes = dict(run(found, inputs))
        return Result(codes, dequantized(found, codes))

    return runner


def _open(path: Path, graph: Graph) -> Runner:
    return reference_runner(path, file.load(path), graph)


def covers_everything(kind: type[Node]) -> bool:
    """Every operation is data, and data is what the file holds."""
    return True


def _recognizes(content: Any) -> bool:
    return content[8:9] == b"{"


FORMAT = Format("lowbit", ".safetensors", "export", file.save, _open, _recognizes, covers_everything, bits_max=16)
