"""The network's forward as a graph of operations, recorded by torch.fx: what placement and conversion both look at."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lowbit.errors import LowbitError
from lowbit.layers.attention import QuantizedAttention
from lowbit.layers.modes import evaluation
from lowbit.layers.resize import weighted_resize
from lowbit.layers.saturating import root
from lowbit.lowering.calls import REMEDY, Modules, arguments
from lowbit.lowering.decompose import MODULES
from lowbit.lowering.folding import frozen_as_norms
from lowbit.lowering.kinds import ADD, UNCHANGED, is_norm, kind_of_module, kinds_of
from lowbit.lowering.masks import whole_inputs, written_as_masks
from lowbit.lowering.rewrite import rewritten, without_alpha
from lowbit.lowering.sizes import SizeCheck
from lowbit.lowering.tracer import BATCH, Tracer

_DROPOUTS: dict[fx.node.Target, type[nn.Module]] = {
    F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d, F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
}  # fmt: skip


def trace(model: nn.Module, known: Mapping[str, Tensor] | None = None) -> fx.Graph:
    """The operations of the model in evaluation. Takes timm's normalisation-with-activation layers apart, in place.

    A graph holds one of the ways that a forward goes, training or evaluation; what an integer network computes is the
    second. Dropout, written as a function or as a layer, is in the graph as a layer and so acts in training all the
    same. Arguments that have a default have it, and are no inputs of the graph.

    Raises:
        LowbitError: torch.fx cannot follow the model's forward (control flow that depends on data, say).
    """
    frozen_as_norms(model)
    for module in model.modules():
        # Once: recording that takes an example tries without one first.
        if (
            is_norm(module)
            and isinstance(getattr(module, "act", None), nn.Module)
            and not hasattr(module, "activation")
        ):
            module.activation, module.act = module.act, nn.Identity()
    try:
        with evaluation(model):
            tracer = Tracer(known)
            graph = tracer.trace(model)
        # A pickled graph is recorded again when it is loaded, from code that has all of this in it: by a plain tracer,
        # or what
        # `Tracer` adds would be in it twice.
        graph._tracer_cls = None
    except Exception as error:  # whatever the network's own code raises of what it is traced with
        message = (
            f"torch.fx cannot follow the forward of {type(model).__name__} ({type(error).__name__}: {error}): an "
            "integer-only network needs a forward without control flow that depends on data"
        )
        if known is not None:
            message += f" (sizes are those of a batch of {BATCH:,}, from which no decision may follow)"
        without = _without_integer_form(model)
        if without:
            message += f". These layers have no integer form either:\n  {without}\n{REMEDY}"
        raise LowbitError(message) from error
    without_alpha(graph)
    modules = dict(model.named_modules(remove_duplicate=False))
    kinds = kinds_of(graph, modules)
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users and (node.args or str(node.target).startswith("*")):
            graph.erase_node(node)  # what forward takes besides, with a default or as *args, and does not use
    for node in list(graph.nodes):
        # What stands between a layer and its activation must not hide that they belong together.
        same = _same_as(node, modules) if kinds[node] in (ADD, UNCHANGED) or is_cast(node) else None
        if same is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
        elif node.op == "call_function" and node.target in _DROPOUTS:
            _dropout_as_layer(node, model)
        elif node.target is getattr and node.args[1] == "mT":
            node.op, node.target, node.args = "call_method", "transpose", (node.args[0], -2, -1)
        elif _in_place(node, modules):
            _pass_on(node)
        elif _is_weighted_resize(node, modules):
            _as_weighted_resize(node, modules)
        if _is_root(node):
            node.op, node.target, node.args, node.kwargs = "call_function", root, (node.all_input_nodes[0],), {}
    if known is not None:
        rewritten(graph, dict(model.named_modules(remove_duplicate=False)))
        for node in reversed(graph.nodes):  # what forward computes and does not use
            if not node.users and node.op not in ("placeholder", "output"):
                graph.erase_node(node)
        whole_inputs(graph, model, known)
        written_as_masks(graph, model)
        if tracer.sizes_taken:
            _check_sizes(graph, model, known)
    return graph


def _check_sizes(graph: fx.Graph, model: nn.Module, known: Mapping[str, Tensor]) -> None:
    """Let the network refuse inputs of other sizes than the example's."""
    for node in [each for each in graph.nodes if each.op == "placeholder" and str(each.target) in known]:
        name = f"size_of_{node.name}"
        model.add_module(name, SizeCheck(str(node.target), tuple(known[str(node.target)].shape[1:])))
        with graph.inserting_after(node):
            graph.call_module(name, (node,))


def _is_root(node: fx.Node) -> bool:
    """Whether a call is a square root: its gradient is NaN where rounding has made 0 of the tensor."""
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target in (torch.sqrt, torch.sqrt_, "sqrt", "sqrt_"):
        return True
    powers = (operator.pow, operator.ipow, pow, torch.pow, "pow", "pow_")
    return node.target in powers and len(node.args) == 2 and bool(node.args[1] == 0.5)


def _is_weighted_resize(node: fx.Node, modules: Modules) -> bool:
    """Whether a call is a bicubic or antialiased resize, for whose weights whole numbers are found."""
    module = modules[str(node.target)] if node.op == "call_module" else None
    if node.target is not F.interpolate and not isinstance(module, nn.Upsample):
        return False
    given = arguments(node, modules)
    return given.get("mode") == "bicubic" or bool(given.get("antialias"))


def _as_weighted_resize(node: fx.Node, modules: Modules) -> None:
    """F.interpolate, or the layer, as `weighted_resize`."""
    given = arguments(node, modules)
    names = inspect.signature(weighted_resize).parameters
    node.op, node.target, node.args = "call_function", weighted_resize, ()
    node.kwargs = {name: given[name] for name in names if name in given}


def _in_place(node: fx.Node, modules: Modules) -> bool:
    """Whether a call changes its first argument, and gives it."""
    if node.op == "call_module":
        return getattr(modules[str(node.target)], "inplace", False) is True
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function":
        return False
    assert callable(node.target)
    name = node.target.__name__
    if node.target.__module__ == "_operator":
        return name.startswith("i") and name[1:] in vars(operator)  # isub, iadd, …
    if node.target.__module__ == "torch.nn.functional":
        return arguments(node, {}).get("inplace") is True
    return name.endswith("_") and not name.endswith("__")


def _pass_on(node: fx.Node) -> None:
    """What comes behind a change in place takes the changed tensor, where the network's code still names the first one.

    A quantizer between the two would part them: the first tensor would stay as it was.
    """
    changed = node.all_input_nodes[0] if node.all_input_nodes else None
    if changed is None or not node.args or node.args[0] is not changed:
        return
    changed.replace_all_uses_with(node, delete_user_cb=lambda user: node < user)


def _same_as(node: fx.Node, modules: Modules) -> fx.Node | None:
    """The node whose tensor this one gives unchanged, or None.

    It is that of an identity, of a cast to the type that it has, and of 0 + x, with which Python's sum() begins.
    """
    if is_cast(node):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        before, after = source.meta.get("value"), node.meta.get("value")
        alike = isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype == after.dtype
        return source if alike else None
    given = arguments(node, modules)
    if node.op == "call_module":
        return given["input"] if type(modules[str(node.target)]) is nn.Identity else None
    pair = given["input"], given.get("other")
    for summand, number in (pair, pair[::-1]):
        if isinstance(summand, fx.Node) and isinstance(number, (int, float)) and number == 0:
            return summand
    return None


def is_cast(node: fx.Node) -> bool:
    """Whether it is a call that gives a tensor in a type, on a device or in a memory format."""
    return node.op == "call_method" and node.target in ("to", "type_as", "float", "type", "cpu", "cuda")


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
        innermost = next(module.children(), None) is None and _of_torch(module) and type(module) not in MODULES
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
