"""The network's forward as a graph of operations, recorded by torch.fx: what placement and conversion both look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from lowbit.errors import LowbitError
from lowbit.layers.attention import QuantizedAttention
from lowbit.layers.modes import evaluation
from lowbit.layers.quantized import QuantizedLayer
from lowbit.lowering.calls import REMEDY, Modules, arguments
from lowbit.lowering.kinds import ADD, LOOKUP, UNCHANGED, is_library_module, is_norm, kind_of_module, kinds_of
from lowbit.quantizer.module import Quantizer

_DROPOUTS: dict[fx.node.Target, type[nn.Module]] = {
    F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d, F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
}  # fmt: skip


class _Tracer(fx.Tracer):
    """Records prepared layers, quantizers, activations and normalisations whole, and looks into everything else."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (QuantizedLayer, Quantizer)) or is_norm(m)
        known = known or any(is_library_module(m, kind) for kind in (LOOKUP, UNCHANGED))
        return known or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        if is_norm(m) and isinstance(getattr(m, "activation", None), nn.Module):
            return self.create_proxy("call_module", f"{self.path_of_module(m)}.activation", (out,), {})
        return out

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *more: Any, **options: Any) -> Any:
        """Arguments of forward that have a default are recorded with it: no proxy, so that `if mask is None` says so."""
        if kind == "placeholder" and args and not isinstance(args[0], (tuple, list, dict)):
            return args[0]  # fx takes structures apart
        return super().create_proxy(kind, target, args, kwargs, *more, **options)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        count = _number_of_parts(node)
        return super().proxy(node) if count is None else _Parts(node, self, count)


class _Parts(fx.Proxy):
    """What chunk, or split into given sizes, gives: as many parts as are asked for, so that `list` and `for` can take them."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, count: int) -> None:
        super().__init__(node, tracer)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[fx.Proxy]:
        return iter([self[place] for place in range(self._count)])


def _number_of_parts(node: fx.Node) -> int | None:
    """How many tensors a call of chunk or split gives, where it says so."""
    if node.op == "call_module" or node.target not in (torch.chunk, torch.split, "chunk", "split"):
        return None
    given = arguments(node, {})
    sizes = given.get("split_size_or_sections", given.get("split_size"))
    count = len(sizes) if isinstance(sizes, (tuple, list)) else given.get("chunks")
    return count if isinstance(count, int) else None


def trace(model: nn.Module) -> fx.Graph:
    """The operations of the model in evaluation. Takes timm's normalisation-with-activation layers apart, in place.

    A graph holds one of the ways that a forward goes, training or evaluation; what an integer network computes is the
    second. Dropout, written as a function or as a layer, is in the graph as a layer and so acts in training all the same.
    Arguments that have a default have it, and are no inputs of the graph.

    Raises:
        LowbitError: torch.fx cannot follow the model's forward (control flow that depends on data, say).
    """
    for module in model.modules():
        if is_norm(module) and isinstance(getattr(module, "act", None), nn.Module):
            module.activation, module.act = module.act, nn.Identity()
    try:
        with evaluation(model):
            graph = _Tracer().trace(model)
        # A pickled graph is recorded again when it is loaded, from code that has all of this in it: by a plain tracer, or what
        # `_Tracer` adds would be in it twice.
        graph._tracer_cls = None
    except Exception as error:  # whatever the network's own code raises of what it is traced with
        message = (
            f"torch.fx cannot follow the forward of {type(model).__name__} ({type(error).__name__}: {error}): an "
            "integer-only network needs a forward without control flow that depends on data"
        )
        without = _without_integer_form(model)
        if without:
            message += f". These layers have no integer form either:\n  {without}\n{REMEDY}"
        raise LowbitError(message) from error
    modules = dict(model.named_modules(remove_duplicate=False))
    kinds = kinds_of(graph, modules)
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users and (node.args or str(node.target).startswith("*")):
            graph.erase_node(node)  # what forward takes besides, with a default or as *args, and does not use
    for node in list(graph.nodes):
        # What stands between a layer and its activation must not hide that they belong together.
        same = _same_as(node, modules) if kinds[node] in (ADD, UNCHANGED) else None
        if same is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
        elif node.op == "call_function" and node.target in _DROPOUTS:
            _dropout_as_layer(node, model)
    return graph


def _same_as(node: fx.Node, modules: Modules) -> fx.Node | None:
    """The node whose tensor this one gives unchanged: of an identity, and of 0 + x, with which Python's sum() begins."""
    given = arguments(node, modules)
    if node.op == "call_module":
        return given["input"] if type(modules[str(node.target)]) is nn.Identity else None
    pair = given["input"], given.get("other")
    for summand, number in (pair, pair[::-1]):
        if isinstance(summand, fx.Node) and isinstance(number, (int, float)) and number == 0:
            return summand
    return None


def _dropout_as_layer(node: fx.Node, model: nn.Module) -> None:
    """A call of F.dropout as the layer, which follows the mode of the model; its `training` was that of the trace."""
    given = arguments(node, {})
    name = f"{node.name}_in_forward"
    model.add_module(name, _DROPOUTS[node.target](given["p"]))
    with node.graph.inserting_after(node):
        layer = node.graph.call_module(name, (given["input"],))
    node.replace_all_uses_with(layer)
    node.graph.erase_node(node)


def _without_integer_form(model: nn.Module) -> str:
    """A line per class of layer that no integer network can have, with the names of the first few."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        innermost = next(module.children(), None) is None and _of_torch(module)
        if isinstance(module, QuantizedAttention) or (innermost and kind_of_module(module) is None):
            found.setdefault(type(module).__name__, []).append(repr(name))
    return "\n  ".join(
        f"{kind}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for kind, names in found.items()
    )


def _of_torch(module: nn.Module) -> bool:
    """Whether torch has it, or what it derives from; another class is looked into."""
    return any(
        kind is not nn.Module and kind.__module__.startswith("torch.nn.modules") for kind in type(module).__mro__
    )
