"""IntegerNetwork: an integer graph with everything that is done with one."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from lowbit.integer import costs, file
from lowbit.integer.check import validate
from lowbit.integer.ir import Graph, TensorType
from lowbit.integer.run import Requantization, run


class IntegerNetwork:
    """A network whose tensors between the input's quantizer and the output are integers.

    graph: checked and completed by `check.validate`, which raises LowbitError. Nothing in it is to change afterwards; what
        leaves for a file is checked again.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = validate(graph)

    def __call__(self, x: Tensor, requantize: Requantization = "float") -> Tensor:
        """The result for the model's float input x (batch, *graph.input_shape): float32, dequantized where it is codes.

        requantize: "float" or "fixed", see `ir`. Raises LowbitError for an input of the wrong shape or type or with NaN.
        """
        for name, value in run(self.graph, x, requantize):
            if name == self.graph.output:
                return dequantize(value, self.graph.by_name[name].type)
        raise AssertionError("a validated graph has an output")

    def codes(self, x: Tensor, requantize: Requantization = "float") -> dict[str, Tensor]:
        """Every tensor by the name of the node that makes it, in order: codes as uint8 or int8; a float output as float32."""
        return dict(run(self.graph, x, requantize))

    def costs(self) -> list[costs.LayerCost]:
        """Bits, bytes, multiply-accumulates and bit operations of every node, per sample."""
        return costs.layer_costs(self.graph)

    def summary(self) -> str:
        """`costs` as a table with totals."""
        return costs.table(self.costs())

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file with packed codes; see `file`. Raises LowbitError where the graph was changed and is none."""
        file.save(validate(self.graph), path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> IntegerNetwork:
        """Read what `save` wrote. Raises LowbitError for anything else."""
        return cls(file.load(path))


def dequantize(value: Tensor, kind: object) -> Tensor:
    """f(scale · (code − zero point)) for codes; float values as they are."""
    if not isinstance(kind, TensorType):
        return value
    return (value.to(torch.float32) - kind.zero_point) * torch.tensor(kind.scale, dtype=torch.float32)
