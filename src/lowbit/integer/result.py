"""What a file, or the trained network, computes beside the integer reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Result:
    """The tensors of one batch.

    Attributes:
        codes: by the name of the node, on the graph's grids, of any type that holds whole numbers. Tensors that are not
            shown are left out.
        outputs: float32, by the name of the output's node.
    """

    codes: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


Runner = Callable[[Mapping[str, Tensor]], Result]
"""From the float32 inputs of a graph, by name, to what is computed of them. Raises LowbitError where that fails."""


@dataclass
class Mismatch:
    """A tensor of the integer graph that is not what the trained network computes from the same inputs.

    Attributes:
        name: of the node.
        count: how many elements differ.
        integer: the first one's value in the integer network: a code, or a real number of a float output.
        trained: the same in the trained network, a code before it is rounded and clipped.
    """

    name: str
    count: int
    integer: float
    trained: float

    def text(self) -> str:
        """What differs, for a message."""
        first = f"{self.integer:g} in integers and {self.trained:g} as trained"
        return f"{self.count:,} of its values differ, the first is {first}"


class Prove(Protocol):
    """Finds the tensors that the trained network does not compute."""

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        codes: Mapping[str, Tensor] | None = None,
        *,
        local_differ: Counter[str] | None = None,
    ) -> dict[str, Mismatch]:
        """Those tensors by name.

        Args:
            inputs: float32 inputs of the graph, by name.
            codes: what the trained network gives of these inputs, where it has been run.
            local_differ: to be added to: of each tensor, how many codes differ though those before them are the same.
        """
        ...
