"""The shape of every tensor in the traced network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from lowbit.errors import LowbitError
from lowbit.layers.modes import evaluation
from lowbit.lowering import tracer
from lowbit.lowering.layouts import Shape

Shapes = dict[fx.Node, Any]
"""By node: a Shape, with a batch of `tracer.BATCH`; of a node that gives several tensors a list of them.

Or a number.
"""


def shapes_of(model: fx.GraphModule, examples: Mapping[str, Tensor]) -> Shapes:
    """The shape of every node's tensor, with a batch of `tracer.BATCH`, and the numbers that the network computes.

    Args:
        model: the traced network.
        examples: a batch of each input, by name.

    Raises:
        LowbitError: inputs that are no tensors of float32, of whole numbers or bools, or that the network does not
            take.
    """
    for example in examples.values():
        check_example(example)
    wanted = _input_names(model)
    missing = [name for name in wanted if name not in examples]
    if missing:
        raise LowbitError(
            f"the network takes {len(wanted)} inputs, {', '.join(wanted)}, and the example has no {missing[0]!r}: "
            "give a tuple of tensors in this order, or a dictionary by name"
        )
    try:
        with evaluation(model):
            values = _values_of(model, examples)
    except LowbitError:
        raise
    except Exception as error:  # whatever the network's own operations raise
        taken = " and ".join(str(tuple(x.shape[1:])) for x in examples.values())
        reason = str(error).partition("\n")[0]
        raise LowbitError(
            f"the network does not take inputs of shape {taken}, as the example's are: {reason}"
        ) from error
    return {node: shape for node, value in values.items() if (shape := _shape(value)) is not None}


_TAKEN = (torch.float32, torch.int64, torch.int32, torch.bool)


def check_example(example: Any) -> None:
    """Refuse what is not a batch of float32 inputs, of indices or of bools."""
    if not isinstance(example, Tensor) or example.dtype not in _TAKEN or example.ndim == 0:
        what = example.dtype if isinstance(example, Tensor) else type(example).__name__
        raise LowbitError(
            "the example input must be a batch of float32 inputs (or of int64 indices, or bools) in one tensor, not "
            f"{what}"
        )


def _shape(value: Any) -> Shape | list[Any] | float | None:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [_shape(part) for part in value]
    return value if isinstance(value, (bool, int, float)) else None


def named_examples(model: torch.nn.Module, example: Any) -> dict[str, Tensor]:
    """The example inputs by the name of forward's argument.

    Args:
        model: the network, traced or not.
        example: one tensor, a tuple of them in the order of forward's arguments, or a mapping by name.

    Raises:
        LowbitError: more tensors than arguments, or names that forward does not have.
    """
    names = _input_names(model)
    if isinstance(example, Mapping):
        given = dict(example)
        unknown = [name for name in given if name not in names]
        if unknown:
            raise LowbitError(
                f"the network's forward has no input {unknown[0]!r}; it has {', '.join(map(repr, names)) or 'none'}"
            )
        return {name: given[name] for name in names if name in given}
    given = list(example) if isinstance(example, (tuple, list)) else [example]
    if len(given) > len(names):
        raise LowbitError(
            f"{len(given)} example inputs, but the network's forward takes {len(names)}: {', '.join(names)}"
        )
    return dict(zip(names, given))


def _input_names(model: torch.nn.Module) -> list[str]:
    """What the network takes: of a traced one the inputs that it uses, of another all arguments of forward."""
    if isinstance(model, fx.GraphModule):
        return [str(node.target) for node in model.graph.nodes if node.op == "placeholder" and node.users]
    parameters = inspect.signature(model.forward).parameters.values()
    return [
        each.name
        for each in parameters
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]


def _values_of(model: fx.GraphModule, examples: Mapping[str, Tensor]) -> dict[fx.Node, Any]:
    """What every node of a recorded network gives: tensors without data (a batch of `tracer.BATCH`), numbers, tuples.

    Args:
        examples: a batch of each input, by name.
    """
    shapes, values = tracer.Shapes(model), {}
    for node in model.graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "placeholder":
            name = str(node.target)
            values[node] = shapes.input(examples[name]) if name in examples else None
        elif node.op == "output":
            values[node] = args[0]
        else:
            values[node] = shapes.call(node.op, node.target, args, kwargs)
    return values
