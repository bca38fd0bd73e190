"""What every operation of an integer network costs: memory, multiplications, bit operations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lowbit._table import aligned
from lowbit.errors import LowbitError
from lowbit.integer.graph import TensorType

if TYPE_CHECKING:
    from lowbit.integer.graph import Graph


@dataclass(frozen=True)
class Work:
    """What an operation that stores numbers or multiplies tensors says of itself, per sample.

    Attributes:
        weight_bits: of every weight code, or of a constant's.
        parameters: weights and biases, or codes of a constant.
        weight_bytes: codes packed at weight_bits, plus scales and biases at 4 bytes each.
        macs: multiply-accumulates.
    """

    weight_bits: int = 0
    parameters: int = 0
    weight_bytes: int = 0
    macs: int = 0

    @classmethod
    def of_stored(cls, codes: Tensor, bits: int) -> Work:
        """Of codes that are stored with one scale."""
        return cls(weight_bits=bits, parameters=codes.numel(), weight_bytes=-(-codes.numel() * bits // 8) + 4)


@dataclass(frozen=True)
class LayerCost:
    """One node of the graph, per sample.

    Attributes:
        name: of the node.
        operation: name of the node's class.
        shape: of its output without the batch.
        weight_bits, input_bits: 0 where there are none.
        output_bits: 32 for a float output.
        parameters, weight_bytes, macs: as `Work` has them; 0 without weights.
        output_bytes: the output's codes packed at output_bits.
        bit_operations: macs · bits of the weight, or of the second input, · input_bits.
        accumulator_bits: the narrowest signed accumulator that holds every partial sum, by its proved bound; 0 where
            nothing is summed.
    """

    name: str
    operation: str
    shape: tuple[int, ...]
    weight_bits: int
    input_bits: int
    output_bits: int
    parameters: int
    weight_bytes: int
    output_bytes: int
    macs: int
    bit_operations: int
    accumulator_bits: int = 0


def layer_costs(graph: Graph) -> list[LayerCost]:
    """One row per node of a validated graph, in order."""
    rows = []
    for node in graph.nodes:
        types = graph.input_types(node)
        work, input_bits = node.work(types) or Work(), types[0].bits if types else 0
        other_bits = work.weight_bits or (types[1].bits if len(types) > 1 else 0)
        output_bits = node.type.bits if isinstance(node.type, TensorType) else 32
        rows.append(
            LayerCost(
                name=node.name,
                operation=type(node).__name__,
                shape=node.shape_of(),
                weight_bits=work.weight_bits,
                input_bits=input_bits,
                output_bits=output_bits,
                parameters=work.parameters,
                weight_bytes=work.weight_bytes,
                output_bytes=-(-math.prod(node.shape_of()) * output_bits // 8),
                macs=work.macs,
                bit_operations=work.macs * other_bits * input_bits,
                accumulator_bits=node.accumulator_bound(types).bit_length() + 1 if work.macs else 0,
            )
        )
    return rows


def check_accumulators(graph: Graph, bits: int) -> None:
    """Refuse a validated graph with sums of products that a signed accumulator of `bits` bits might not hold.

    Raises:
        LowbitError: with each such layer, the width that it needs, and its bound over the largest number that there is.
    """
    most = (1 << (bits - 1)) - 1
    found = []
    for row in layer_costs(graph):
        if row.accumulator_bits > bits:
            node = graph.by_name[row.name]
            bound = node.accumulator_bound(graph.input_types(node))
            found.append(
                f"{row.name} needs {row.accumulator_bits} bits ({bound:,}, {bound / most:.3g} times the largest number)"
            )
    if found:
        raise LowbitError(
            f"sums of {len(found)} layers may overflow accumulators of {bits} bits: {'; '.join(found)}. Train the "
            "network with "
            f"lowbit.prepare(…, accumulator_bits={bits}), which keeps its weights to the bound, or with fewer bits"
        )


def table(rows: list[LayerCost]) -> str:
    """The rows as text with a total, for a terminal."""
    head = ("layer", "operation", "shape", "W", "A", "out", "weight bytes", "output bytes", "MACs", "bit operations")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        shape, bits = "×".join(map(str, row.shape)), (row.weight_bits or "", row.input_bits or "", row.output_bits)
        numbers = [f"{n:,}" if n else "" for n in (row.weight_bytes, row.output_bytes, row.macs, row.bit_operations)]
        lines.append((row.name, row.operation, shape, *map(str, bits), *numbers))
    # Outputs do not live at the same time: their sum says nothing.
    totals = {
        field: f"{sum(getattr(row, field) for row in rows):,}" for field in ("weight_bytes", "macs", "bit_operations")
    }
    lines.append(("total", *[""] * 5, totals["weight_bytes"], "", totals["macs"], totals["bit_operations"]))
    return aligned(lines, left=range(3))
