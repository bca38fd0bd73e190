"""What a batch is made of: inputs, and labels behind them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def parts_of(batch: Any, names: Sequence[str]) -> tuple[Any, list[Any]]:
    """(inputs, what stands behind them: labels) of a batch as data loaders give it; several inputs by their names.

    A tuple or list is inputs, and labels behind them, where the network has several inputs and the tuple as many parts
    or one more. Else its first part is the inputs, which may themselves be a tuple.

    Args:
        names: of the inputs that the network cannot do without, in order.
    """
    if not isinstance(batch, (tuple, list)) or not batch:
        return batch, []
    first, count = batch[0], len(names)
    if isinstance(first, (tuple, list)):
        return dict(zip(names, first)) if count == len(first) else first, [*batch[1:]]
    if count > 1 and not isinstance(first, Mapping) and count <= len(batch) <= count + 1:
        return dict(zip(names, batch)), [*batch[count:]]
    return first, [*batch[1:]]


def required_inputs(model: nn.Module) -> list[str]:
    """The names of the arguments of forward that have no default."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return [each.name for each in parameters if each.kind in positional and each.default is each.empty]
