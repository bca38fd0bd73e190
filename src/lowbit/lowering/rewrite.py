"""What of a recorded network is written in another way, which computes the same and has a better integer form."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from lowbit.layers.quantized import QuantizedLayer
from lowbit.lowering.calls import Modules, arguments
from lowbit.lowering.kinds import ADD, CONCATENATE, RESHAPE, SUBTRACT, is_norm
from lowbit.lowering.tracer import batch_of


def rewritten(graph: fx.Graph, modules: Modules) -> None:
    """Rewrite, in place, a graph that was recorded with shapes.

    Rewritten are reshapes like another tensor, empty parts of a concatenation, and batch-norm behind linear layers.
    """
    for node in list(graph.nodes):
        if node.op == "call_method" and node.target in ("reshape_as", "view_as"):
            _by_sizes(node)
        elif node.op == "call_function" and node.target in CONCATENATE.functions:
            _without_empty_parts(node)
    for node in list(graph.nodes):
        if node.op == "call_module" and is_norm(modules[str(node.target)]):
            _flattened_before(node, modules)
            _apart_from_layer(node, modules)


def without_alpha(graph: fx.Graph) -> None:
    """Write a + α·b and a − α·b, where α is an argument of the call, as the product and the sum, in place."""
    for node in [each for each in graph.nodes if "alpha" in each.kwargs]:
        alpha, others = node.kwargs["alpha"], {k: v for k, v in node.kwargs.items() if k != "alpha"}
        spelled = (*ADD.functions, *ADD.methods, *SUBTRACT.functions, *SUBTRACT.methods)
        name = "other" if "other" in others else 1 if len(node.args) > 1 else None
        if node.target not in spelled or name is None or not isinstance(alpha, (int, float)):
            continue
        other: Any = others[name] if isinstance(name, str) else node.args[name]
        if alpha != 1:
            other = _times(other, alpha, node)
        if isinstance(name, str):
            others[name] = other
        else:
            node.args = (node.args[0], other, *node.args[2:])
        node.kwargs = others


def _times(x: Any, factor: float, node: fx.Node) -> Any:
    """x · factor, recorded before a node."""
    if not isinstance(x, fx.Node):
        return x * factor
    with node.graph.inserting_before(node):
        product = node.graph.call_function(operator.mul, (x, factor))
    product.meta.update({key: value for key, value in node.meta.items() if key == "nn_module_stack"})
    if "value" in x.meta:
        product.meta["value"] = x.meta["value"]
    return product


def _by_sizes(node: fx.Node) -> None:
    """x.reshape_as(y) as x.reshape(sizes of y), so that y itself is not needed."""
    sizes = [-1 if batch_of(size) else size for size in node.meta["value"].shape]
    if sizes.count(-1) <= 1:
        node.target, node.args, node.kwargs = str(node.target).removesuffix("_as"), (node.args[0], *sizes), {}


def _without_empty_parts(node: fx.Node) -> None:
    """A concatenation of what has elements."""
    parts: Any = arguments(node, {}).get("input")
    if not isinstance(parts, (tuple, list)):
        return
    full = [part for part in parts if not _is_empty(part)]
    if not 0 < len(full) < len(parts):
        return
    if len(full) == 1:
        node.replace_all_uses_with(full[0])
        node.graph.erase_node(node)
    elif node.args:
        node.args = (full, *node.args[1:])
    else:
        name = next(key for key in node.kwargs if key not in ("dim", "axis"))
        node.kwargs = {**node.kwargs, name: full}


def _is_empty(node: Any) -> bool:
    value = node.meta.get("value") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.numel() == 0


def _apart_from_layer(norm: fx.Node, modules: Modules) -> None:
    """Batch-norm over another dimension than the features of the linear layer before it does not fold into that."""
    before = norm.all_input_nodes[0]
    layer = modules.get(str(before.target)) if before.op == "call_module" else None
    if isinstance(layer, nn.Linear) and before.meta["value"].ndim > 2:
        with norm.graph.inserting_before(norm):
            same = norm.graph.call_method("contiguous", (before,))
        same.meta["value"] = before.meta["value"]
        norm.replace_input_with(before, same)


def _flattened_before(norm: fx.Node, modules: Modules) -> None:
    """norm(flatten(linear(x))) as norm(linear(flatten(x))): then batch-norm folds into the layer."""
    flat = norm.args[0] if norm.args else None
    spelled = isinstance(flat, fx.Node) and flat.target in (*RESHAPE.functions, *RESHAPE.methods)
    if not isinstance(flat, fx.Node) or not spelled or len(flat.users) != 1:
        return
    made = flat.args[0] if flat.args else None
    layer = modules.get(str(made.target)) if isinstance(made, fx.Node) and made.op == "call_module" else None
    if not isinstance(layer, QuantizedLayer) or not isinstance(layer, nn.Linear):
        return
    assert isinstance(made, fx.Node)
    x, shape, after = made.args[0], made.meta["value"].shape, flat.meta["value"].shape
    others = [user for user in made.users if user is not flat]
    of_sizes = all(user.target == "size" and len(user.args) == 2 and user.args[1] != len(shape) - 1 for user in others)
    if len(after) != 2 or len(shape) < 3 or after[-1] != shape[-1] or not isinstance(x, fx.Node) or not of_sizes:
        return
    for user in others:
        user.args = (x, user.args[1])
    graph = norm.graph
    with graph.inserting_before(flat):
        flattened = graph.call_method("flatten", (x, 0, -2))
        again = graph.call_module(str(made.target), (flattened,))
    flattened.meta["value"] = torch.flatten(x.meta["value"], 0, -2)
    again.meta.update(made.meta, value=flat.meta["value"])
    flat.replace_all_uses_with(again)
    graph.erase_node(flat)
    graph.erase_node(made)
