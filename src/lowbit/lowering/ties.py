"""Where steps in a whole ratio would make ties: around averages, and sums of tensors on one grid.

The average of whole numbers often lies half-way between two of them: of four, one in four does. If both sides have one
step, that is a tie of the rounding behind it, which the integer network decides exactly and float32 by the last bit of
its sum; training and integers then differ in as many codes. LSQ's rule initializes the two steps alike, because
averaging non-negative values keeps their mean. So it is with sums of them: of two, the step behind is twice the step
before, and half of all codes lie half-way. Steps a little apart make no ties.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from lowbit.lowering import kinds as k
from lowbit.lowering.kinds import Kinds
from lowbit.lowering.placement import OneGrid, collect_users, folds_into, sources_of
from lowbit.quantizer.module import Quantizer, as_quantizer

APART = 2.0**-12
"""Of a step. Far above float32's error in a sum, and far below what half a code is of the largest code."""


def averages(model: fx.GraphModule) -> Iterator[tuple[Quantizer, Quantizer]]:
    """The quantizers before and behind every average and sum of an integer-only network, in the order of computation.

    A sum of two tensors counts where both are on one grid.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    kinds: Kinds = {node: kind for node, kind in k.kinds_of(model.graph, modules).items() if kind is not None}
    for node in model.graph.nodes:
        if kinds.get(node) not in (k.AVERAGE, k.LINEAR_RESIZE, k.REDUCE, k.ADD):
            continue
        end = node
        while (follower := folds_into(end, kinds)) is not None:
            end = follower
        behind = OneGrid("", [end])
        collect_users(end, kinds, behind, set())
        before = _quantizers(
            [source for tensor in node.all_input_nodes for source in sources_of(tensor, kinds)], kinds, modules
        )
        if kinds[node] is k.ADD and (len(before) < 2 or len(set(before)) > 1):
            continue
        for first in before:
            for second in _quantizers([*behind.layers, *behind.others], kinds, modules):
                yield first, second


def _quantizers(nodes: list[fx.Node], kinds: Kinds, modules: dict[str, nn.Module]) -> list[Quantizer]:
    found = []
    for node in nodes:
        if kinds[node] is k.QUANTIZER:
            found.append(as_quantizer(modules[str(node.target)]))
        elif kinds[node] is k.LAYER:
            found.append(as_quantizer(modules[str(node.target)].get_submodule("input_quantizer")))
    return found


def apart(step: Tensor, from_step: Tensor) -> Tensor:
    """The step, or one that is `APART` larger than a multiple of the other where it is nearer to that."""
    multiple = (step / from_step).round().clamp(min=1) * from_step
    near = (step / multiple - 1).abs() < APART
    return torch.where(near, multiple * (1 + APART), step)
