"""Integer graphs without nodes that another one makes unnecessary."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from lowbit.integer.graph import Graph, Node, Weight
from lowbit.integer.ops import Constant, Reshape
from lowbit.integer.roundings import get_rounding
from lowbit.lowering.trained import Places


def simplified(graph: Graph, places: Places) -> tuple[Graph, Places]:
    """The graph without superfluous nodes.

    Those are nodes that do what an earlier one does, moves of constants, and reshapes that another one follows or that
    change nothing. A tensor that is split waits for its grid in each part, and so is made once a part; reshapes stand
    around a channel shuffle.

    Args:
        graph: validated.
        places: where its tensors stand in the trained network.
    """
    nodes: dict[str, Node] = {}
    seen: dict[tuple, str] = {}
    same: dict[str, str] = {}
    placed = set(places.values())
    for node in graph.nodes:
        node = _constant(replace(node, inputs=tuple(same.get(name, name) for name in node.inputs)), nodes)
        if isinstance(node, Reshape):
            before = nodes[node.inputs[0]]
            if isinstance(before, Reshape) and before.name not in placed:  # a quantizer stands there, so it stays
                node, before = replace(node, inputs=before.inputs), nodes[before.inputs[0]]
            if before.shape_of() == node.shape_of():
                same[node.name] = before.name
                continue
        content = (type(node), *(_comparable(getattr(node, f.name)) for f in fields(node) if f.name != "name"))
        earlier = seen.setdefault(content, node.name)
        if earlier != node.name:
            same[node.name] = earlier
            continue
        nodes[node.name] = node
    outputs = tuple(same.get(name, name) for name in graph.outputs)
    used = {name for node in nodes.values() for name in node.inputs} | {*outputs}
    kept = tuple(node for node in nodes.values() if node.name in used or not isinstance(node, Reshape | Constant))
    kept = _sharing(kept)
    names = {node.name for node in kept}
    found = {place: same.get(name, name) for place, name in places.items()}
    return replace(graph, nodes=kept, outputs=outputs), {place: name for place, name in found.items() if name in names}


_SHARED_FROM = 64
"""Elements of tensors that are worth looking whether there is another one of the same content."""


def _sharing(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The nodes with one tensor in place of equal ones: weights and tables of a layer that is called at every step."""
    seen: dict[tuple, Any] = {}

    def one(value: Any) -> Any:
        if isinstance(value, Weight) and value.codes.numel() >= _SHARED_FROM:
            return seen.setdefault(_comparable(value), value)
        if isinstance(value, Tensor) and value.numel() >= _SHARED_FROM:
            return seen.setdefault(_comparable(value), value)
        return value

    shared = []
    for node in nodes:
        own = {f.name: getattr(node, f.name) for f in fields(node)}
        new = {name: one(value) for name, value in own.items()}
        changed = {name: value for name, value in new.items() if value is not own[name]}
        shared.append(replace(node, **changed) if changed else node)
    return tuple(shared)


def _constant(node: Node, nodes: Mapping[str, Node]) -> Node:
    """The constant that moving codes of constants gives; any other node as it is."""
    sources = [nodes[name] for name in node.inputs if name in nodes]
    if not node.moves_codes or not sources or not all(isinstance(source, Constant) for source in sources):
        return node
    types = [source.codes_of() for source in sources]
    codes = [source.codes[None] for source in sources if isinstance(source, Constant)]
    moved = node.execute(codes, types, get_rounding("float"))[0].contiguous()
    return Constant(name=node.name, inputs=(), type=node.type, codes=moved)


def _comparable(field: Any) -> Any:
    """A node's field as something that equals another field of the same content."""
    if isinstance(field, Weight):
        return _comparable(field.codes), _comparable(field.scale), field.bits
    if not isinstance(field, Tensor):
        return field
    whole = field.cpu().contiguous()  # its bytes without NumPy, which torch does not ask for
    return field.dtype, field.shape, ctypes.string_at(whole.data_ptr(), whole.nbytes)
