"""Quantizers wherever an integer processor needs them, so that training sees what the integer network computes.

A tensor that is computed (by a layer, an addition, a multiplication, an average, an activation function) must be on a
grid before anything else computes with it; which kinds of operation compute and which move codes says
`lowbit.lowering.kinds`. Where all that takes it are layers with one setting, their input quantizer does; otherwise a
quantizer is inserted behind it, in `activation_quantizers`, 8 bits unless a rule says otherwise: residual sums and what
feeds them, concatenations, averages, lookups. Batch-norm behind a layer and clamps (ReLU, ReLU6) behind anything belong
to the computation before them. Maximum pooling, reshaping, slicing and padding only move codes, so a quantizer behind
them is as good as one before. All that a concatenation joins is on one grid, with one step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from lowbit.errors import LowbitError
from lowbit.grid import BITS_MAX
from lowbit.layers.function import FUNCTIONS
from lowbit.layers.quantized import QuantizedLayer
from lowbit.layers.rules import INSERTED, Setting
from lowbit.lowering import kinds as k
from lowbit.lowering import variation
from lowbit.lowering.called import functions_as_modules, name_of
from lowbit.lowering.calls import REMEDY, Modules, describe, outputs_of
from lowbit.lowering.checks import check_float_layers
from lowbit.lowering.constants import constant
from lowbit.lowering.decompose import DECOMPOSED, EXTREMA, MODULES, NORMS, QUOTIENTS
from lowbit.lowering.folding import (
    accumulator_bias,
    bias_on_grid,
    channel_values,
    follow,
)
from lowbit.lowering.kinds import Kind, Kinds
from lowbit.lowering.masks import may_hide
from lowbit.lowering.recurrent import SHARED, WIDE
from lowbit.lowering.shapes import named_examples
from lowbit.lowering.trace import is_cast, trace
from lowbit.lowering.windows import pads_by_number
from lowbit.quantizer.initialization import spacious_init
from lowbit.quantizer.methods import get_method
from lowbit.quantizer.module import Quantizer, as_quantizer


class NeedsExample(LowbitError):
    """The network can be recorded with an example of its inputs only, or may be."""


@dataclass
class OneGrid:
    """Computed tensors that must be on one grid: the nodes that end their computation, and what takes them."""

    name: str
    ends: list[fx.Node]
    layers: list[fx.Node] = field(default_factory=list)
    others: list[fx.Node] = field(default_factory=list)


def integer_form(
    prepared: nn.Module,
    setting_for: Callable[[list[str]], list[tuple[Setting, bool]]],
    function_setting: Callable[[str], Setting],
    example_input: Any = None,
) -> fx.GraphModule:
    """The prepared model as a graph with the inserted quantizers in its submodule `activation_quantizers`.

    Args:
        prepared: a model with quantized layers, not calibrated. It is taken over.
        function_setting: the setting of a convolution or linear layer that forward calls as a function, from its name
            ("functions.<name>").
        example_input: a batch of inputs, as `named_examples` takes them; None where shapes are not known.
        setting_for: the settings of the inserted quantizers, from their names ("activation_quantizers.<name>"), and
            whether a rule has made each of them; the state of a recurrent layer has 16 bits where none has.

    Raises:
        LowbitError: operations without an integer form, all of them named; layers in full precision; several steps
            within an output channel.
    """
    check_float_layers(prepared)
    examples = None if example_input is None else named_examples(prepared, example_input)
    if examples is None and any(type(module) in MODULES for module in prepared.modules()):
        raise NeedsExample
    try:
        graph = trace(prepared, examples)
    except LowbitError as error:
        raise error if examples is not None else NeedsExample from error
    modules = dict(prepared.named_modules(remove_duplicate=False))
    if examples is None and _takes_shapes(graph, modules):
        raise NeedsExample
    for module in modules.values():
        if isinstance(module, QuantizedLayer):
            steps = as_quantizer(module.weight_quantizer).raw_step
            channel_values(module, torch.arange(steps.numel()).reshape(steps.shape))  # raises where one has several
    functions_as_modules(prepared, graph, modules, function_setting)
    modules = dict(prepared.named_modules(remove_duplicate=False))
    kinds = _kinds(graph, modules, refuse=examples is None)
    state = set(prepared.state_dict())
    model = fx.GraphModule(prepared, graph, class_name=f"IntegerOnly{type(prepared).__name__}")
    for name in list(model._buffers):  # tensors that forward makes are no part of a checkpoint
        if name not in state:
            model._non_persistent_buffers_set.add(name)

    for node in graph.nodes:
        if kinds[node] is k.LAYER:
            follower, layer = folds_into(node, kinds), _layer(node, modules)
            layer.accumulator_bias = accumulator_bias
            if follower is not None and kinds[follower] is k.NORM:
                _follow(follower, modules, layer)
            else:
                layer.followed_by = (*layer.followed_by, *((None,) if None not in layer.followed_by else ()))
                layer.bias_rounding = bias_on_grid

    inserted = []
    for group in _groups(graph, kinds):
        if _served_by_layers(group, modules):
            first, *others = (modules[str(node.target)] for node in group.layers)
            for other in others:
                other.input_quantizer = first.input_quantizer
        elif not _is_float_output(group, kinds):
            inserted.append(group)

    settings = setting_for([f"{INSERTED}.{group.name}" for group in inserted])
    quantizers = model.activation_quantizers = nn.ModuleDict()
    for group, (setting, by_rule) in zip(inserted, settings):
        if setting.activations is None or setting.skip:
            raise LowbitError(f"'{INSERTED}.{group.name}' must have bits: an integer-only network has no float tensors")
        device = next(prepared.parameters()).device
        wide = not by_rule and any(end.meta.get(WIDE) for end in group.ends)
        method = get_method("minmax").varied(init_activations=spacious_init) if wide else setting.method
        quantizers[group.name] = Quantizer(
            BITS_MAX if wide else setting.activations,
            method=method.for_activations,
            narrow=setting.narrow,
            signed=True if wide else None,
            batch_dim=None if all(kinds[end] is k.CONSTANT for end in group.ends) else 0,
            name=f"the tensor '{INSERTED}.{group.name}'",
            relative_below=1.0,
            bits_max=BITS_MAX,
        ).to(device)
        for end in group.ends:
            takers, value = tensor_users(end, kinds), end
            if kinds[end] is k.CONSTANT and _is_number(end, kinds, modules):
                with graph.inserting_after(end):
                    value = graph.call_method("reshape", (end, 1))  # tensors of integers have dimensions
                kinds[value] = k.CONSTANT
            with graph.inserting_after(value):
                quantized = graph.call_module(f"{INSERTED}.{group.name}", (value,))
            end.replace_all_uses_with(quantized, delete_user_cb=takers.__contains__)
    for node in graph.nodes:
        if kinds.get(node) is not k.NORM:
            continue
        before = node.all_input_nodes[0]
        if kinds.get(before) is not k.LAYER:
            (source, *_) = sources_of(before, kinds | {n: k.QUANTIZER for n in graph.nodes if n not in kinds})
            _follow(node, modules, model.get_submodule(str(source.target)))
    _weaken_gradients(model, kinds)
    graph.lint()
    model.recompile()
    quantizers.train(model.training)
    return model


def _weaken_gradients(model: fx.GraphModule, kinds: Kinds) -> None:
    """Put a `Variation` before every normalization that works over a sample."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for node in [each for each in model.graph.nodes if kinds.get(each) is k.NORMALIZE]:
        source = x = node.all_input_nodes[0]
        while source in kinds and kinds[source].moves_codes:
            source = k.operands(source, kinds)[0]
        quantizer = modules.get(str(source.target))
        module = variation.before(node, modules, quantizer) if isinstance(quantizer, Quantizer) else None
        if module is not None:
            name = f"{node.name}_variation"
            model.add_module(name, module.train(model.training))
            with model.graph.inserting_before(node):
                node.replace_input_with(x, model.graph.call_module(name, (x,)))


def _takes_shapes(graph: fx.Graph, modules: Modules) -> bool:
    """Whether there are calls that are written out where shapes are known."""
    kinds = k.kinds_of(graph, modules)

    def of_tensors(node: fx.Node) -> bool:
        return len(node.all_input_nodes) == 2 and all(kinds[each] is not k.SHAPE for each in node.all_input_nodes)

    if may_hide(graph, kinds, modules):
        return True
    calls = [node for node in graph.nodes if node.op in ("call_function", "call_method")]
    return any(
        node.target in (*DECOMPOSED, *FUNCTIONS, *NORMS, *EXTREMA)
        or (node.target in QUOTIENTS and of_tensors(node))
        or (node.target is F.pad and pads_by_number(node.args, node.kwargs))
        or (kinds[node] is k.NORMALIZE and any(kinds[each] is k.SHAPE for each in node.all_input_nodes))
        or (kinds[node] is None and (is_cast(node) or _of_sizes(node, kinds)))
        or (kinds[node] in (k.STACK, k.CONCATENATE) and _parts_of_a_list(node))
        for node in calls
    )


def _of_sizes(node: fx.Node, kinds: Mapping[fx.Node, Kind | None]) -> bool:
    """Whether a call takes sizes alone, as torch.arange(x.shape[1]) does."""
    return bool(node.all_input_nodes) and all(kinds[each] is k.SHAPE for each in node.all_input_nodes)


def _parts_of_a_list(node: fx.Node) -> bool:
    """Whether a call takes a slice of what another gives: of how many tensors shapes tell."""
    return any(isinstance(each, fx.Node) and each.target is operator.getitem for each in node.args[:1])


def _is_number(node: fx.Node, kinds: Kinds, modules: Modules) -> bool:
    """Whether a constant has no dimensions."""

    def of_constants(each: fx.Node) -> bool:
        return kinds.get(each) is k.CONSTANT and all(map(of_constants, each.all_input_nodes))

    value = node.meta.get("value")
    if value is None and of_constants(node):
        value = constant(node, kinds, {}, modules)
    return isinstance(value, torch.Tensor) and value.ndim == 0


def _layer(node: fx.Node, modules: Modules) -> QuantizedLayer:
    """The layer that a node of the kind `LAYER` calls."""
    layer = modules[str(node.target)]
    assert isinstance(layer, QuantizedLayer)
    return layer


def _follow(node: fx.Node, modules: Modules, source: nn.Module) -> None:
    """`follow` for the batch-norm of a node, which gives the number of the place where it is called."""
    place = follow(modules[str(node.target)], source)
    if place:
        node.kwargs = {**node.kwargs, "place": place}


def tensor_users(node: fx.Node, kinds: Kinds) -> list[fx.Node]:
    """The nodes that take the tensor itself on a grid, not merely its shape; of a constant those that are none."""
    apart = (k.SHAPE, k.CONSTANT) if kinds[node] is k.CONSTANT else (k.SHAPE,)
    return [user for user in node.users if kinds[user] not in apart and node in k.operands(user, kinds)]


def folds_into(node: fx.Node, kinds: Kinds) -> fx.Node | None:
    """The node that belongs to the same computation and follows this one, or None."""
    users = tensor_users(node, kinds)
    if len(users) != 1:
        return None
    (user,) = users
    if kinds[user] is k.NORM:
        return user if kinds[node] is k.LAYER else None
    if kinds[user] in (k.CLAMP, k.LOOKUP) and _is_table(node, kinds):
        return user
    return user if kinds[user] is k.CLAMP and kinds[node].computes and kinds[node] not in (k.INPUT, k.CLAMP) else None


def _is_table(node: fx.Node, kinds: Kinds) -> bool:
    """Whether a node ends a function of one value: a lookup, or a clamp behind one or behind a grid."""
    if kinds[node] is not k.CLAMP:
        return kinds[node] is k.LOOKUP
    (source,) = k.operands(node, kinds)
    return folds_into(source, kinds) is not node or _is_table(source, kinds)


def _kinds(graph: fx.Graph, modules: Modules, *, refuse: bool) -> dict[fx.Node, Kind]:
    """The kind of every node; `kinds.UNKNOWN` where it has none.

    Args:
        refuse: operations without an integer form; else `foresee` is to name them, and those that shapes tell.

    Raises:
        LowbitError: operations without an integer form, and no tensor that goes in or comes out.
    """
    kinds: dict[fx.Node, Kind] = {}
    missing: dict[fx.Node, str] = {}
    for node, kind in k.kinds_of(graph, modules).items():
        why = None if kind is None else kind.lack(node, modules)
        if kind is None or why:
            missing[node] = describe(node, modules) + (f": {why}" if why else "")
        kinds[node] = kind or k.UNKNOWN
    if missing and refuse:
        # A parameter that only such an operation takes goes without saying.
        places = "\n  ".join(
            dict.fromkeys(
                place
                for node, place in missing.items()
                if node.op != "get_attr" or not all(user in missing for user in node.users)
            )
        )
        raise LowbitError(f"these operations have no integer form:\n  {places}\n{REMEDY}")
    if not any(kind in (k.INPUT, k.INDEX_INPUT) and node.users for node, kind in kinds.items()):
        raise LowbitError("an integer-only network takes tensors; this one's forward uses none")
    if not outputs_of(next(node for node, kind in kinds.items() if kind is k.OUTPUT)):
        raise LowbitError(
            "an integer-only network gives tensors, alone or in tuples and dictionaries; this one gives none"
        )
    return kinds


def _groups(graph: fx.Graph, kinds: Kinds) -> list[OneGrid]:
    """Classes of computed tensors that must be on one grid, in order of their first member."""
    ends = [n for n in graph.nodes if kinds[n].computes and tensor_users(n, kinds) and folds_into(n, kinds) is None]
    parent = {end: end for end in ends}

    def root(end: fx.Node) -> fx.Node:
        while parent[end] is not end:
            end = parent[end]
        return end

    order = {end: number for number, end in enumerate(ends)}
    for node in graph.nodes:
        if kinds[node] in (k.CONCATENATE, k.STACK):
            sources = [source for tensor in k.operands(node, kinds) for source in sources_of(tensor, kinds)]
            sources = [source for source in sources if source in parent]
            if not sources:
                continue
            first = min((root(source) for source in sources), key=order.__getitem__)
            for source in sources:
                parent[root(source)] = first
    shared: dict[str, fx.Node] = {}
    for end in ends:
        if SHARED in end.meta:
            first = root(shared.setdefault(end.meta[SHARED], end))
            parent[root(end)] = first
    groups: dict[fx.Node, OneGrid] = {}
    for end in ends:
        group = groups.setdefault(root(end), OneGrid(name_of(end), []))
        group.ends.append(end)
        collect_users(end, kinds, group, set())
    return list(groups.values())


def sources_of(node: fx.Node, kinds: Kinds) -> list[fx.Node]:
    """The computed tensors whose codes a node's codes are."""
    if kinds[node].moves_codes:
        return [source for tensor in k.operands(node, kinds) for source in sources_of(tensor, kinds)]
    return [node]


def collect_users(node: fx.Node, kinds: Kinds, group: OneGrid, seen: set[fx.Node]) -> None:
    """Add to the group what computes with a tensor, also with its codes in other places."""
    for user in tensor_users(node, kinds):
        if user in seen:
            continue
        seen.add(user)
        if kinds[user].moves_codes:
            collect_users(user, kinds, group, seen)
        else:
            (group.layers if kinds[user] in (k.LAYER, k.FUNCTION) else group.others).append(user)


def _served_by_layers(group: OneGrid, modules: Modules) -> bool:
    quantizers = [as_quantizer(modules[str(node.target)].get_submodule("input_quantizer")) for node in group.layers]
    alike = {(q.bits, q.narrow, q.method) for q in quantizers}
    return not group.others and len(alike) == 1


def _is_float_output(group: OneGrid, kinds: Kinds) -> bool:
    """A layer's result that is the network's output and nothing else leaves in full precision."""
    (end, *more) = group.ends
    computed_by_layer = kinds[end] is k.LAYER or (kinds[end] is k.NORM and kinds[end.all_input_nodes[0]] is k.LAYER)
    only_output = not group.layers and [kinds[user] for user in group.others] == [k.OUTPUT]
    return not more and computed_by_layer and only_output and [kinds[u] for u in end.users] == [k.OUTPUT]
