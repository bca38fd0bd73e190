"""Padding by positions that are there: reflected, replicated, circular."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from lowbit.lowering import kinds as k
from lowbit.lowering.handlers.resize import picked
from lowbit.lowering.values import Move

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter

_MODES = (
    ("reflect", (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)),
    ("replicate", (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)),
    ("circular", (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)),
)


def pad(converter: Converter, node: fx.Node) -> Any:
    """F.pad with a mode, and torch's layers for each."""
    converter.check_batch_first(node)
    source, given = converter.input_of(node), converter.arguments(node)
    value, before = converter.value(source, node), converter.shapes[source]
    if node.op == "call_module":
        layer = converter.modules[str(node.target)]
        mode = next(mode for mode, layers in _MODES if isinstance(layer, layers))
        (amounts,) = converter.options(node, "padding")
    else:
        mode = given["mode"]
        (amounts,) = converter.options(node, "pad")
    return converter.moved(value, repeated(node.name, before[1:], amounts, mode))


def lowest(converter: Converter, node: fx.Node) -> Any:
    """F.pad with −∞: what it is given, because the maximum pool behind it pads in its place (`lowest_pads`)."""
    return converter.value(converter.input_of(node), node)


def lowest_pads(converter: Converter, node: fx.Node) -> list[tuple[int, int]]:
    """(before, after) per spatial dimension that a `lowest` padding right before a node adds."""
    source = converter.input_of(node)
    space = len(converter.shapes[source]) - 2
    pads = [(0, 0)] * space
    if converter.kinds[source] is k.LOWEST_PAD:
        (amounts,) = converter.options(source, "padding" if source.op == "call_module" else "pad")
        for number in range(len(amounts) // 2):
            pads[space - 1 - number] = (amounts[2 * number], amounts[2 * number + 1])
    return pads


def repeated(name: str, x: Sequence[int], amounts: Sequence[int], mode: str) -> list[Move]:
    """The positions that torch puts around those of x (a sample's shape).

    `amounts` as F.pad takes them, the last dimension first.
    """
    moves = []
    for number in range(len(amounts) // 2):
        around, axis = list(amounts[2 * number : 2 * number + 2]), len(x) - number
        if any(around):
            positions = torch.arange(x[axis - 1], dtype=torch.float32).reshape(1, 1, -1)
            moves.append(picked(name, axis, F.pad(positions, around, mode=mode).flatten().long().tolist()))
    return moves


HANDLERS = {k.REPEATED_PAD: pad, k.LOWEST_PAD: lowest}
