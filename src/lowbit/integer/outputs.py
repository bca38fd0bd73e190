"""Outputs as codes: the same graph where what leaves as floats leaves on a grid, for files that know no floats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from lowbit.integer.arithmetic import SCALE_MIN, f32
from lowbit.integer.graph import FloatType, Graph, TensorType
from lowbit.integer.run import Inputs, run
from lowbit.integer.validate import validate

_BITS = 8


def output_grids(graph: Graph, batches: Iterable[Inputs]) -> dict[str, TensorType]:
    """A grid of 8 signed bits for every float output, from the lowest to the highest value that it has on the batches.

    Raises as `run`.
    """
    ends = {name: (0.0, 0.0) for name in graph.outputs if isinstance(graph.by_name[name].type, FloatType)}
    if not ends:
        return {}
    for x in batches:
        for name, value in run(graph, x):
            if name in ends:
                low, high = ends[name]
                ends[name] = min(low, float(value.min())), max(high, float(value.max()))
    return {name: _grid(low, high) for name, (low, high) in ends.items()}


def _grid(low: float, high: float) -> TensorType:
    scale = float(f32(max((high - low) / (2**_BITS - 1), SCALE_MIN))) if high > low else 1.0
    least = -(1 << (_BITS - 1))
    return TensorType(scale, max(least, min(-1 - least, least - round(low / scale))), _BITS, True)


def with_output_grids(graph: Graph, grids: Mapping[str, TensorType]) -> Graph:
    """The graph with codes on these grids in place of floats. Raises LowbitError where one can't be."""
    nodes = (replace(node, type=grids[node.name]) if node.name in grids else node for node in graph.nodes)
    return validate(replace(graph, nodes=tuple(nodes)))
