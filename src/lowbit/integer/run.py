"""The bit-exact reference executor, on torch integer tensors, on the CPU.

It executes the nodes in order, each as its operation says, whatever the process has set for floats
(`integer.settings`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Graph, Node, TensorType
from lowbit.integer.ops.broadcast import aligned
from lowbit.integer.roundings import Rounding, get_rounding
from lowbit.integer.settings import reference_arithmetic

_BLOCK_ELEMENTS = 1 << 20  # of a tensor at once: its floats fit a cache

Inputs = Tensor | Mapping[str, Tensor]
"""The inputs of a graph: one tensor where it has one input, else tensors by name."""


def run(graph: Graph, x: Inputs, requantize: str = "float") -> Iterator[tuple[str, Tensor]]:
    """Yield every node's tensor by name, in order: codes (`arithmetic.code_dtype`), or float32 for a float output.

    Args:
        graph: from `validate`.
        x: float32 (batch, *shape) of every input; int64 (int32, bool) of one that holds indices or is a mask.
        requantize: the name of a rounding (`roundings.ROUNDINGS`).

    Raises:
        LowbitError: an input of the wrong shape or type, with NaN or an index that there is not in it, or an unknown
            rounding.
    """
    rounding = get_rounding(requantize)
    values = checked_inputs(graph, x)
    samples = len(next(iter(values.values())))
    last_use = {name: node.name for node in graph.nodes for name in node.inputs}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        with reference_arithmetic():  # for each node: between two of them the caller's code runs, with its own settings
            values[node.name] = executed(node, inputs, graph.input_types(node), rounding, samples)
        yield node.name, values[node.name]
        for name in node.inputs:
            if last_use[name] == node.name:
                values.pop(name, None)


def executed(
    node: Node, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding, samples: int = 1
) -> Tensor:
    """`Node.execute`, block by block of a large tensor: floats and int32 take several times the memory of the codes.

    The tensor of a node without inputs is the same for all `samples`.
    """
    if not inputs:
        return node.execute(inputs, types, rounding).expand(samples, *node.shape_of())
    if node.independent == "samples":  # layers make blocks of their own
        return node.execute(inputs, types, rounding)
    inputs = aligned(inputs)
    shape = (len(inputs[0]), *node.shape_of())
    elements = max(math.prod(shape), *(x.numel() for x in inputs))
    if elements <= _BLOCK_ELEMENTS:
        return node.execute(inputs, types, rounding)
    axes = 2 if node.independent == "channels" else len(shape)
    axis = max(range(axes), key=shape.__getitem__)
    size = shape[axis]
    length = max(1, size * _BLOCK_ELEMENTS // elements)
    parts = []
    for start in range(0, size, length):
        count = min(length, size - start)
        block = [x.narrow(axis, start, count) if x.shape[axis] == size else x for x in inputs]
        parts.append(node.execute(block, types, rounding))
    return torch.cat(parts, axis)


def checked_inputs(graph: Graph, x: Inputs) -> dict[str, Tensor]:
    """The inputs by name. Raises LowbitError for what is not a batch of this graph's inputs."""
    if isinstance(x, Mapping):
        if x.keys() != graph.inputs.keys():
            raise LowbitError(
                f"the network's inputs are {', '.join(graph.inputs)}, but tensors are given for "
                f"{', '.join(map(str, x))}"
            )
        values = {name: x[name] for name in graph.inputs}
    elif len(graph.inputs) == 1:
        values = dict.fromkeys(graph.inputs, x)
    else:
        names = ", ".join(graph.inputs)
        raise LowbitError(f"the network has {len(graph.inputs)} inputs, {names}: give a dictionary of tensors by name")
    limits = graph.index_limits()
    for name, value in values.items():
        whose = "the network's input" if len(values) == 1 else f"the network's input {name!r}"
        dtype = torch.int64 if name in limits else torch.float32
        if name in limits and isinstance(value, Tensor) and value.dtype in (torch.bool, torch.int32):
            values[name] = value = value.to(torch.int64)
        if not isinstance(value, Tensor) or value.dtype != dtype or value.device.type != "cpu":
            kind = f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
            raise LowbitError(
                f"{whose} must be {'an int64' if name in limits else 'a float32'} tensor on the CPU, not {kind}"
            )
        if value.ndim == 0 or tuple(value.shape[1:]) != tuple(graph.inputs[name]):
            expected = ", ".join(["batch", *map(str, graph.inputs[name])])
            raise LowbitError(f"{whose} has shape {tuple(value.shape)}; it must be ({expected})")
        if len(value) == 0:
            raise LowbitError("the batch is empty; give at least one sample")
        if name in limits:
            low, high = int(value.min()), int(value.max())
            if low < 0 or high >= limits[name]:
                raise LowbitError(f"{whose} holds the indices {low} .. {high}; there are 0 .. {limits[name] - 1}")
        elif bool(value.isnan().any()):
            raise LowbitError(f"{whose} holds NaN, which has no code; clean the data")
    if len({len(value) for value in values.values()}) > 1:
        raise LowbitError(
            f"the network's inputs differ in their batch: {[len(value) for value in values.values()]} samples"
        )
    return {name: value.detach() for name, value in values.items()}
