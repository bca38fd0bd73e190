"""Convolutions and linear layers that forward calls as functions, with weights made of the network's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import fx, nn
from torch.nn import functional as F

from lowbit.layers.function import FUNCTIONS, QuantizedFunction
from lowbit.layers.rules import Setting
from lowbit.lowering import kinds as k
from lowbit.lowering.calls import Modules, arguments
from lowbit.lowering.folding import function_bias_on_grid
from lowbit.lowering.kinds import Kind
from lowbit.lowering.recurrent import SHARED


def functions_as_modules(
    prepared: nn.Module, graph: fx.Graph, modules: Modules, setting_for: Callable[[str], Setting]
) -> None:
    """Replace calls of convolutions and linear layers as functions by quantized ones, in the submodule `functions`.

    Only calls whose weight is made of the network's parameters are replaced.
    """
    kinds = k.kinds_of(graph, modules)
    for node in list(graph.nodes):
        if kinds[node] is k.MATMUL:
            _as_linear(node, kinds, modules)
    kinds = k.kinds_of(graph, modules)
    calls = [node for node in graph.nodes if node.op == "call_function" and node.target in FUNCTIONS]
    made = nn.ModuleDict()
    shared: dict[str, fx.Node] = {}
    for node in calls:
        given = dict(arguments(node, modules))
        weight, bias = given.pop("weight"), given.pop("bias", None)
        own = [each for each in (weight, bias) if each is not None]
        if not all(isinstance(each, fx.Node) and kinds[each] is k.CONSTANT and "value" in each.meta for each in own):
            continue
        x = given.pop("input")
        first = shared.setdefault(node.meta.get(SHARED, node.name), node)
        name = f"functions.{name_of(first)}"
        if first is node:
            function = QuantizedFunction(
                FUNCTIONS[node.target], tuple(weight.meta["value"].shape), given, setting_for(name), name
            )
            function.bias_rounding = function_bias_on_grid
            made[name_of(node)] = function.to(next(prepared.parameters()).device)
        node.op, node.target = "call_module", name
        node.args, node.kwargs = (x, *own), {}
    if made:
        prepared.functions = made


def _as_linear(node: fx.Node, kinds: Mapping[fx.Node, Kind | None], modules: Modules) -> None:
    """x @ w, where w is a matrix made of the network's parameters, as a linear layer with the weight wᵀ."""
    x, w = list(arguments(node, modules).values())[:2]
    constant = isinstance(w, fx.Node) and kinds[w] is k.CONSTANT and kinds[x] is not k.CONSTANT
    if not constant or "value" not in w.meta or w.meta["value"].ndim != 2:
        return
    with node.graph.inserting_before(node):
        weight = node.graph.call_method("t", (w,))
        weight.meta["value"] = w.meta["value"].t()
    node.op, node.target, node.args, node.kwargs = "call_function", F.linear, (x, weight), {}


def name_of(end: fx.Node) -> str:
    """The module and the operation, "layer1_0_add"; of those that share a grid, the name they share."""
    if SHARED in end.meta:
        return end.meta[SHARED]
    stack = end.meta.get("nn_module_stack")
    place = next(reversed(stack.values()))[0].replace(".", "_") if stack and end.op != "call_module" else ""
    return f"{place}_{end.name}" if place and not end.name.startswith(place) else end.name
