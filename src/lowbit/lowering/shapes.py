"""The shape of every tensor in the traced network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from lowbit.errors import LowbitError
from lowbit.layers.modes import evaluation

Shape = tuple[int, ...]
"""Of a batch of two."""
Shapes = dict[fx.Node, Any]
"""By node: a Shape; of a node that gives several tensors a list of them. Nodes that give none are left out."""


def shapes_of(model: fx.GraphModule, example_inputs: Sequence[Tensor]) -> Shapes:
    """The shape of every node's tensor, with a batch of two, in which no dimension of one is taken for the batch.

    Args:
        model: the traced network.
        example_inputs: a batch of each input, in the network's order.

    Raises:
        LowbitError: inputs that are no float32 tensors, or that the network does not take.
    """
    for example in example_inputs:
        if not isinstance(example, Tensor) or example.dtype != torch.float32 or example.ndim == 0:
            what = example.dtype if isinstance(example, Tensor) else type(example).__name__
            raise LowbitError(f"the example input must be a batch of float32 inputs in one tensor, not {what}")
    shapes: Shapes = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            out = super().run_node(n)
            if isinstance(out, Tensor):
                shapes[n] = tuple(out.shape)
            elif isinstance(out, (tuple, list)) and all(isinstance(part, Tensor) for part in out):
                shapes[n] = [tuple(part.shape) for part in out]
            return out

    device = next(model.parameters()).device
    two = [torch.zeros(2, *example.shape[1:], device=device) for example in example_inputs]
    try:
        with evaluation(model), torch.no_grad():
            Recorder(model).run(*two)
    except LowbitError:
        raise
    except Exception as error:  # whatever the network's own operations raise
        taken = " and ".join(str(tuple(x.shape[1:])) for x in two)
        reason = str(error).partition("\n")[0]
        raise LowbitError(
            f"the network does not take a batch of two inputs of shape {taken}, as the example's are: {reason}"
        ) from error
    return shapes
