"""x[part] = y, written out while a network is recorded: x between what stays, where nothing else sees x's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from lowbit.lowering.kinds import EXPAND, INDEX, RESHAPE, SPLIT, TRANSPOSE, UNBIND

_VIEWS = {
    target for kind in (EXPAND, INDEX, RESHAPE, SPLIT, TRANSPOSE, UNBIND) for target in (*kind.functions, *kind.methods)
} | {torch.select, torch.narrow, "select", "narrow", "detach", "contiguous", "unfold"}


def assigned(x: Any, key: Any, y: Any) -> Any:
    """x with y in place of x[key].

    Args:
        key: slices without a step, numbers and "...".
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (x.dim() - len(keys) + 1)
    ranges = []
    for axis, each in enumerate(keys):
        whole = isinstance(each, slice) and each == slice(None)
        if not whole and not isinstance(x.size(axis), int):
            raise fx.proxy.TraceError("forward assigns to single samples of a batch")
        if isinstance(each, int) and not isinstance(each, bool):
            each = slice(each, each + 1 or None)
        if not isinstance(each, slice) or each.step not in (None, 1):
            raise fx.proxy.TraceError(
                f"forward assigns to x[{key}], where only slices without a step and numbers have an integer form"
            )
        ranges.append(None if whole else each.indices(x.size(axis))[:2])
    part = x[key]
    if not isinstance(y, fx.Proxy):
        y = torch.full(part.size(), float(y)) if isinstance(y, (bool, int, float)) else y.expand(part.size())
    elif tuple(y._value.shape) != tuple(part._value.shape):
        y = y.expand(part.size())
    numbers = [axis for axis, each in enumerate(keys) if isinstance(each, int)]
    for axis in numbers:
        y = y.unsqueeze(axis)
    return _joined(x, ranges, y, 0)


def _joined(x: Any, ranges: Sequence[tuple[int, int] | None], y: Any, axis: int) -> Any:
    while axis < len(ranges) and ranges[axis] is None:
        axis += 1
    if axis == len(ranges):
        return y
    start, stop = ranges[axis] or (0, 0)
    length = x.size(axis)
    middle = _joined(x.narrow(axis, start, stop - start), ranges, y, axis + 1)
    before = [x.narrow(axis, 0, start)] if start else []
    after = [x.narrow(axis, stop, length - stop)] if stop < length else []
    return torch.cat([*before, middle, *after], axis) if before or after else middle


def is_view(node: fx.Node) -> bool:
    """Whether a call gives a part of its input's memory, or may."""
    in_place = isinstance(node.target, str) and node.target.endswith("_")
    return in_place or node.target in _VIEWS or node.op in ("placeholder", "get_attr", "call_module")


def seen_by(node: fx.Node) -> set[fx.Node]:
    """The tensor and what has been recorded as views of it."""
    found, waiting = {node}, [node]
    while waiting:
        new = [user for user in waiting.pop().users if is_view(user) and user not in found]
        found.update(new)
        waiting += new
    return found
