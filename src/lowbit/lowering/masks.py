"""Masks of attention, however a network writes them, as one.

Scores of −∞ before a softmax that gives them the weight 0.

A mask that is added hides what it makes `HIDDEN` or less (−100 in Swin, −10,000, the lowest float, −∞). On a grid with
the scores it would take the whole range, and leave the scores a few codes; and no runtime adds −∞ to a code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from lowbit.lowering import kinds as k
from lowbit.lowering.calls import Modules, arguments
from lowbit.lowering.constants import constant
from lowbit.lowering.kinds import Kind
from lowbit.lowering.sequences import HIDDEN
from lowbit.lowering.whole import ShownSoftmax, WholeNumbers


def whole_inputs(graph: fx.Graph, model: nn.Module, known: Mapping[str, Tensor]) -> None:
    """Put `WholeNumbers` behind every input that is not of floats."""
    for node in [each for each in graph.nodes if each.op == "placeholder" and str(each.target) in known]:
        example = known[str(node.target)]
        if example.is_floating_point():
            continue
        name = f"whole_numbers_of_{node.name}"
        model.add_module(name, WholeNumbers(example.dtype == torch.bool))
        with graph.inserting_after(node):
            numbers = graph.call_module(name, (node,))
        numbers.meta["value"] = node.meta.get("value")
        node.replace_all_uses_with(numbers, delete_user_cb=lambda user, numbers=numbers: user is not numbers)


def may_hide(graph: fx.Graph, kinds: Mapping[fx.Node, Kind | None], modules: Modules) -> bool:
    """Whether there are masks, for which shapes are needed."""
    for node in graph.nodes:
        if kinds[node] in (k.MASK, k.EMBEDDING) or node.target in (torch.where, "where"):
            return True
        if kinds[node] is k.SOFTMAX:
            source = _before(arguments(node, modules)["input"], kinds)
            if kinds[source] is k.ADD and any(kinds[each] is k.CONSTANT for each in source.all_input_nodes):
                return True
    return False


def written_as_masks(graph: fx.Graph, model: nn.Module) -> None:
    """Write masks that are added to the scores of a softmax as scores of −∞, and let the softmax take them."""
    modules: Modules = dict(model.named_modules(remove_duplicate=False))
    kinds = k.kinds_of(graph, modules)
    for node in [each for each in graph.nodes if kinds[each] is k.SOFTMAX]:
        given = arguments(node, modules)
        hides, source = False, given["input"]
        while isinstance(source := _before(source, kinds), fx.Node):
            if kinds[source] is k.MASK:
                hides, source = True, arguments(source, modules)["input"]
            elif kinds[source] is k.ADD and len(source.users) == 1:
                scores = _without_mask(source, graph, kinds, modules)
                if scores is None:
                    break
                hides, source = True, scores
            else:
                break
        if hides and isinstance(given.get("dim"), int):
            name = f"{node.name}_of_what_is_shown"
            model.add_module(name, ShownSoftmax(given["dim"]))
            source = arguments(node, modules)["input"]  # as it is now
            node.op, node.target, node.args, node.kwargs = "call_module", name, (source,), {}


def _before(node: Any, kinds: Mapping[fx.Node, Kind | None]) -> Any:
    """The node whose tensor this one has in other places."""
    while isinstance(node, fx.Node):
        kind = kinds.get(node)
        sources = [each for each in node.all_input_nodes if kinds.get(each) is not k.SHAPE]
        if kind is None or kind is k.MASK or not kind.moves_codes or len(sources) != 1:
            break
        (node,) = sources
    return node


def _without_mask(add: fx.Node, graph: fx.Graph, kinds: dict[fx.Node, Kind | None], modules: Modules) -> fx.Node | None:
    """The scores of a sum with a mask that hides, which is taken out of the sum; None where no operand is one."""
    given = arguments(add, modules)
    one, two = given.get("input"), given.get("other")
    if given.get("alpha", 1) != 1 or not isinstance(one, fx.Node) or not isinstance(two, fx.Node):
        return None
    for scores, mask in ((one, two), (two, one)):
        alike = _shape(scores) == _shape(add)
        if not alike or (kinds[mask] is not k.CONSTANT and not k.is_whole(mask, kinds)):
            continue
        values = mask_values(mask, kinds, modules)
        if values is None or not bool((values <= HIDDEN).any()):
            continue
        shown = values[values > HIDDEN]
        only_hides = not bool((shown != 0).any()) and not _is_trained(mask, modules)
        if kinds[mask] is not k.CONSTANT and not only_hides:
            continue
        with graph.inserting_before(add):
            hidden = _made(graph, add, "le", (mask, HIDDEN))
            kinds[hidden] = kinds[mask] if kinds[mask] is k.CONSTANT else k.WHOLE
            if not only_hides:
                rest = _made(graph, add, "masked_fill", (mask, hidden, 0.0))
                kinds[rest] = k.CONSTANT
                kept = _made(graph, add, "add", (scores, rest))
                kept.meta["value"], kinds[kept] = add.meta.get("value"), k.ADD
                scores = kept
            masked = _made(graph, add, "masked_fill", (scores, hidden, -math.inf))
            masked.meta["value"], kinds[masked] = add.meta.get("value"), k.MASK
        add.replace_all_uses_with(masked)
        graph.erase_node(add)
        return scores
    return None


def _shape(node: fx.Node) -> Any:
    value = node.meta.get("value")
    return tuple(value.shape) if isinstance(value, Tensor) else value


def _made(graph: fx.Graph, like: fx.Node, method: str, args: tuple) -> fx.Node:
    """A call of a method, in the place of another node."""
    node = graph.call_method(method, args)
    node.meta = {key: value for key, value in like.meta.items() if key != "value"}
    return node


def _sources(node: fx.Node) -> set[fx.Node]:
    """All nodes that a node is computed of, and itself."""
    found, waiting = {node}, [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found


def _is_trained(node: fx.Node, modules: Modules) -> bool:
    """Whether parameters are in it."""
    for each in _sources(node):
        holder, _, name = str(each.target).rpartition(".")
        if each.op == "get_attr" and isinstance(getattr(modules[holder], name), nn.Parameter):
            return True
    return False


def mask_values(mask: fx.Node, kinds: Mapping[fx.Node, Kind | None], modules: Modules) -> Tensor | None:
    """All values that a mask of floats can have; None where they are not known."""
    shapes = {each: _shape(each) for each in _sources(mask)}
    if kinds[mask] is k.CONSTANT:
        values = constant(mask, kinds, shapes, modules)
        return values if values.is_floating_point() else None
    inputs = [each for each in shapes if kinds[each] is k.INDICES]
    if len(inputs) != 1 or any(kinds[each] is k.CONSTANT for each in shapes):
        return None
    found = values_of_whole(mask, inputs[0], kinds, shapes, modules)
    return found if found.is_floating_point() else None


def values_of_whole(
    node: fx.Node,
    numbers: fx.Node,
    kinds: Mapping[fx.Node, Kind | None],
    shapes: Mapping[fx.Node, Any],
    modules: Modules,
) -> Tensor:
    """All values of a function of the elements of an input of whole numbers, in no order."""
    sizes = (1, *shapes[numbers][1:])
    places, limit = math.prod(sizes), limit_of(numbers, kinds, shapes, modules)
    found = []
    for start in range(0, limit, places):
        domain = (torch.arange(places, device="cpu") + start).clamp_(max=limit - 1).reshape(sizes)
        given = {numbers: modules[str(numbers.target)](domain)}
        found.append(constant(node, kinds, shapes, modules, given).flatten())
    return torch.cat(found)


def limit_of(
    numbers: fx.Node, kinds: Mapping[fx.Node, Kind | None], shapes: Mapping[fx.Node, Any], modules: Modules
) -> int:
    """How many different whole numbers an input may hold: as many as the tables that it is looked up in.

    Else two, as a mask.
    """
    rows, waiting = [], [numbers]
    while waiting:
        for user in waiting.pop().users:
            kind = kinds.get(user)
            if kind is k.EMBEDDING and user.op == "call_module":
                rows.append(modules[str(user.target)].num_embeddings)
            elif kind is k.EMBEDDING:
                rows.append(shapes[arguments(user, modules)["weight"]][0])
            elif kind is not None and kind.moves_codes:
                waiting.append(user)
    return min(rows, default=2)
