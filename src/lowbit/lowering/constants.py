"""What the network computes of its own parameters and buffers alone, the same for every input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from lowbit.lowering import kinds as k
from lowbit.lowering.calls import Modules
from lowbit.lowering.kinds import Kind
from lowbit.lowering.tracer import BATCH, batch_of


def constant(
    node: fx.Node,
    kinds: Mapping[fx.Node, Kind | None],
    shapes: Mapping[fx.Node, Any],
    modules: Modules,
    given: Mapping[fx.Node, Tensor] | None = None,
) -> Tensor:
    """The value of a node of the kind `CONSTANT`, for a batch of one; on the CPU.

    With `given` also of one that is computed of the given tensors, and of constants, alone.
    """
    values: dict[fx.Node, Any] = dict(given or {})

    def value(each: fx.Node) -> Any:
        if each not in values:
            values[each] = compute(each)
        return values[each]

    def compute(each: fx.Node) -> Any:
        if each.op == "get_attr":
            holder, _, name = str(each.target).rpartition(".")
            return getattr(modules[holder], name).detach().cpu()
        known = shapes.get(each)
        if kinds[each] is not k.CONSTANT and not (
            given and k.is_whole(each, kinds)
        ):  # it lends its shape alone, or is a number
            if isinstance(known, (int, float)):
                return known // BATCH if batch_of(known) else known
            return torch.empty([size // BATCH if batch_of(size) else size for size in known or ()], device="cpu")
        args, kwargs = fx.node.map_arg((each.args, each.kwargs), value)
        if each.op == "call_module":
            return modules[str(each.target)](*args, **kwargs)
        if each.op == "call_method":
            return getattr(args[0], str(each.target))(*args[1:], **kwargs)
        assert callable(each.target)
        return each.target(*args, **kwargs)

    with torch.no_grad():
        return value(node)
