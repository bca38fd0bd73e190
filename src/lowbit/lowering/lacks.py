"""Why a call of a kind that has an integer form has none, as far as its arguments tell; None where it has one."""

from __future__ import annotations

from torch import fx

from lowbit.lowering.calls import Modules, arguments, nodes_in
from lowbit.lowering.functions import bounds_of


def lack_of_norm(node: fx.Node, modules: Modules) -> str | None:
    """Batch-norm: without running statistics."""
    lacks = modules[str(node.target)].running_mean is None
    return "it keeps no running statistics, which folding it needs" if lacks else None


def lack_of_clamp(node: fx.Node, modules: Modules) -> str | None:
    """A clamp: at bounds that are neither numbers nor held as such."""
    bounds = () if node.op == "call_module" else bounds_of(node, modules)
    numbers = all(not isinstance(bound, fx.Node) or _is_held_number(bound, modules) for bound in bounds)
    return None if numbers else "a bound per element, or one that is computed, has none; numbers have"


def _is_held_number(node: fx.Node, modules: Modules) -> bool:
    """Whether it is a tensor of one number that the network holds."""
    holder, _, name = str(node.target).rpartition(".")
    return node.op == "get_attr" and getattr(modules[holder], name).numel() == 1


def lack_of_two_tensors(node: fx.Node, modules: Modules) -> str | None:
    """A sum, product or matrix product: of something else than two tensors, or scaled."""
    given = arguments(node, modules)
    if not all(isinstance(given.get(name), fx.Node) for name in ("input", "other" if "other" in given else "mat2")):
        return "it has one for two tensors only"
    return None if given.get("alpha", 1) == 1 else "alpha that forward computes has none; a number has"


def lack_of_one_tensor(node: fx.Node, modules: Modules) -> str | None:
    """A function of one value: of several tensors."""
    tensors = nodes_in((node.args, node.kwargs))
    return None if len(tensors) == 1 else "it has one for one tensor, with numbers beside it"


def lack_of_resizing(node: fx.Node, modules: Modules) -> str | None:
    """Resizing: by a factor that forward computes."""
    if nodes_in(arguments(node, modules).get("scale_factor")):
        return "a scale_factor that forward computes has none; a number, or a size, has"
    return None
