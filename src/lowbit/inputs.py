"""What a network takes: one tensor, or tensors by the names of `forward`'s arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Inputs = Tensor | Mapping[str, Tensor]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The network's outputs."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def each(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """The inputs with the function applied to every tensor."""
    return {k: function(x) for k, x in inputs.items()} if isinstance(inputs, Mapping) else function(inputs)


def shapes(inputs: Inputs) -> str:
    """The shape of a sample, for messages: 3x32x32, or one by name."""
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {shapes(x)}" for name, x in inputs.items())
    return "x".join(map(str, inputs.shape[1:])) or "one number"


def batch_size(inputs: Inputs) -> int:
    """Samples of a batch."""
    return len(next(iter(inputs.values()))) if isinstance(inputs, Mapping) else len(inputs)
