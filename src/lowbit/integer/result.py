"""What a file, or the trained network, computes beside the integer reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Result:
    """The tensors of one batch.

    Attributes:
        codes: by the name of the node, on the graph's grids, of any type that holds whole numbers. Tensors that are not shown are
            left out.
        outputs: float32, by the name of the output's node.
    """

    codes: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


Runner = Callable[[Mapping[str, Tensor]], Result]
"""From the float32 inputs of a graph, by name, to what is computed of them. Raises LowbitError where that fails."""
