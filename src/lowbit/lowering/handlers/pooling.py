"""Pooling and upsampling: what goes over the positions of each channel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.nn import functional as F

from lowbit.integer.ops import AveragePool, GlobalAveragePool, MaxPool, Upsample
from lowbit.lowering import kinds as k
from lowbit.lowering.handlers.moves import reshape_to
from lowbit.lowering.values import Codes, Computation, Move

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter


def average(converter: Converter, node: fx.Node) -> Codes | Computation:
    """Average pooling and means, over windows or all positions."""
    given, source = converter.arguments(node), converter.input_of(node)
    x, before, after = converter.codes_at(source, node), converter.shapes[source], converter.shapes[node]
    if "kernel_size" in given:
        kernel, stride, padding = _windows(converter, node, "kernel_size", "stride", "padding")
        covers_all = all(size >= positions for size, positions in zip(kernel, before[2:])) and not any(padding)
        is_identity = before == after and not any(padding) and all(size == 1 for size in kernel)
        if not (is_identity or covers_all) or given.get("divisor_override"):
            return _average_pool(converter, node, x, kernel, stride, padding)
    if before == after:
        return x
    spatial = len(before) - 2
    if spatial >= 1 and (after == before[:2] or after == (*before[:2], *(1,) * spatial)):
        pooled = Computation(node.name, lambda n, y: GlobalAveragePool(name=n, inputs=(x.name,), type=y))
        return pooled if len(after) > 2 else replace(pooled, moves=(reshape_to(node.name, (after[1],)),))
    if "dtype" in given:  # torch.mean, in any of its spellings
        raise converter.refusal(
            node, " takes the mean over other dimensions than all positions of a channel, which has no integer form"
        )
    raise converter.refusal(node, ": adaptive pooling to a size other than 1 has no integer form")


def _average_pool(
    converter: Converter,
    node: fx.Node,
    x: Codes,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Computation:
    given = converter.arguments(node)
    padding_counts = given["count_include_pad"] or not any(padding)
    if given.get("divisor_override") or given["ceil_mode"] or not padding_counts:
        raise converter.refusal(node, ": only plain average pooling has an integer form (no ceil_mode, …)")
    pads = tuple((p, p) for p in padding)
    return Computation(
        node.name,
        lambda n, y: AveragePool(name=n, inputs=(x.name,), type=y, kernel=kernel, stride=stride, padding=pads),
    )


def max_pool(converter: Converter, node: fx.Node) -> Any:
    """Pooling by maximum."""
    source = converter.input_of(node)
    value, before, after = converter.value(source, node), converter.shapes[source], converter.shapes[node]
    if converter.arguments(node)["return_indices"]:
        raise converter.refusal(node, ": the indices of pooling have no integer form")
    kernel, stride, padding, dilation = _windows(converter, node, "kernel_size", "stride", "padding", "dilation")
    pads = tuple((p, p) for p in padding)
    if converter.arguments(node)["ceil_mode"]:  # the last window may reach beyond the image: as much padding more
        reach = [(out - 1) * s + d * (size - 1) + 1 for out, size, s, d in zip(after[2:], kernel, stride, dilation)]
        pads = tuple((p, max(p, r - n - p)) for p, r, n in zip(padding, reach, before[2:]))
    move = Move(
        node.name,
        lambda n, x: MaxPool(name=n, inputs=(x,), kernel=kernel, stride=stride, padding=pads, dilation=dilation),
    )
    return converter.moved(value, [move])


def _windows(converter: Converter, node: fx.Node, *names: str) -> list[tuple[int, ...]]:
    """Sizes of a pool, one number per spatial dimension each. The first is the kernel's, which the stride is by default."""
    spatial = len(converter.shapes[converter.input_of(node)]) - 2
    first, *others = converter.options(node, *names)
    sizes = [first, *(first if size in (None, (), []) else size for size in others)]
    return [tuple(size) if isinstance(size, (tuple, list)) else (size,) * spatial for size in sizes]


def upsample(converter: Converter, node: fx.Node) -> Any:
    """Nearest-neighbour upsampling by whole factors."""
    source = converter.input_of(node)
    value, before, after = converter.value(source, node), converter.shapes[source][2:], converter.shapes[node][2:]
    if before == after:
        return value
    if any(large % small for small, large in zip(before, after)):
        raise converter.refusal(
            node,
            f" resizes {before} to {after}, and only growing by a whole factor in each dimension has an integer form",
        )
    factors = tuple(large // small for small, large in zip(before, after))
    if not _repeats(converter.arguments(node), before, factors):
        raise converter.refusal(
            node,
            f": nearest upsampling by {factors} does not repeat every position as often, because torch computes positions in float32; "
            "use mode 'nearest-exact', which does",
        )
    return converter.moved(value, [Move(node.name, lambda n, x: Upsample(name=n, inputs=(x,), factors=factors))])


def _repeats(given: dict[str, Any], before: tuple[int, ...], factors: tuple[int, ...]) -> bool:
    """Whether torch's interpolation repeats every position as often as its dimension grows: by 41, 47 or 55 "nearest" does not."""
    scale = given.get("scale_factor")
    options: dict[str, Any] = {
        "mode": given.get("mode", "nearest"),
        "recompute_scale_factor": given.get("recompute_scale_factor"),
    }
    for axis, (size, factor) in enumerate(zip(before, factors)):
        positions = torch.arange(size, dtype=torch.float32).reshape(1, 1, size)
        by = scale[axis] if isinstance(scale, (tuple, list)) else scale
        to: dict[str, Any] = (
            {"size": size * factor, "mode": options["mode"]} if by is None else {"scale_factor": by, **options}
        )
        grown = F.interpolate(positions, **to)
        if not torch.equal(grown, positions.repeat_interleave(factor, 2)):
            return False
    return True


HANDLERS = {k.AVERAGE: average, k.MAX_POOL: max_pool, k.UPSAMPLE: upsample}
