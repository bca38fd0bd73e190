"""IntegerNetwork: an integer graph with everything that is done with one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lowbit._deprecated import renamed_method, renamed_property
from lowbit.integer import costs, file
from lowbit.integer.arithmetic import f32
from lowbit.integer.graph import FloatType, Graph, TensorType
from lowbit.integer.result import Prove
from lowbit.integer.run import Inputs, run
from lowbit.integer.validate import validate


class IntegerNetwork:
    """A network whose tensors between the inputs' quantizers and the outputs are integers.

    Args:
        graph: checked and completed by `validate`, which raises LowbitError. Nothing in it is to change afterwards;
            what leaves for a file is checked again.
        proof: compares the graph with the trained network that it was made from, on a batch of inputs by name; None for
            a network that was read from a file. It is not saved.
    """

    def __init__(self, graph: Graph, proof: Prove | None = None) -> None:
        self.graph = validate(graph)
        self.proof = proof

    def __call__(self, x: Inputs, requantize: str = "float") -> Tensor | dict[str, Tensor]:
        """The result for the model's float input x (batch, *shape): float32, dequantized where it is codes.

        Args:
            x: one tensor, or tensors by name where the network has several inputs.
            requantize: the name of a rounding, "float", "fixed", … (`integer.roundings`).

        Returns:
            One tensor, or tensors by name where the network has several outputs.

        Raises:
            LowbitError: an input of the wrong shape or type or with NaN, or an unknown rounding.
        """
        found = self.outputs(x, requantize)
        return found if len(found) > 1 else next(iter(found.values()))

    def outputs(self, x: Inputs, requantize: str = "float") -> dict[str, Tensor]:
        """Every output by name, float32; arguments and errors as in a call."""
        wanted = set(self.graph.outputs)
        return dequantized(
            self.graph, {name: value for name, value in run(self.graph, x, requantize) if name in wanted}
        )

    def codes(self, x: Inputs, requantize: str = "float") -> dict[str, Tensor]:
        """Every tensor by the name of its node, in the graph's order.

        Codes are uint8 or int8, beyond 8 bits int16 or int32; a float output is float32.
        """
        return dict(run(self.graph, x, requantize))

    @property
    def metadata(self) -> dict[str, Any]:
        """What is stored beside the network: under "images" how images are read, under "trained" how it was trained."""
        return dict(self.graph.about)

    def with_metadata(self, metadata: Mapping[str, Any]) -> IntegerNetwork:
        """The same network with other metadata.

        Args:
            metadata: plain JSON; the formats "lowbit" and "json" keep it.
        """
        return IntegerNetwork(replace(self.graph, about=dict(metadata)), self.proof)

    about = renamed_property("IntegerNetwork", "about", "metadata")
    described = renamed_method("IntegerNetwork", "described", "with_metadata")

    def costs(self) -> list[costs.LayerCost]:
        """Bits, bytes, multiply-accumulates and bit operations of every node, per sample."""
        return costs.layer_costs(self.graph)

    def summary(self) -> str:
        """`costs` as a table with totals."""
        return costs.table(self.costs())

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file with packed codes; see `file`.

        Raises LowbitError where the graph was changed and is not valid.
        """
        file.save(validate(self.graph), path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> IntegerNetwork:
        """Read what `save` wrote. Raises LowbitError for anything else."""
        return cls(file.load(path))


def dequantize(value: Tensor, y: TensorType | FloatType | None) -> Tensor:
    """f(scale · (code − zero point)) for codes; float values as they are."""
    if not isinstance(y, TensorType):
        return value
    return torch.sub(value.to(torch.float32), y.zero_point).mul_(f32(y.scale))


def dequantized(graph: Graph, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The graph's outputs by name, float32, from the tensors of its nodes."""
    return {name: dequantize(values[name], graph.by_name[name].type) for name in graph.outputs}
