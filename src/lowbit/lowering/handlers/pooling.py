"""Pooling: means and maxima over the positions of each channel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import fx

from lowbit.integer.graph import Pads
from lowbit.integer.ops import AveragePool, GlobalAveragePool, MaxPool, UnevenAveragePool
from lowbit.lowering import kinds as k
from lowbit.lowering.handlers.matrices import extremum, reduction
from lowbit.lowering.handlers.moves import reshape_to
from lowbit.lowering.handlers.padding import lowest_pads
from lowbit.lowering.handlers.resize import picked
from lowbit.lowering.layouts import Layout
from lowbit.lowering.values import Codes, Computation, Move

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter


Sizes = tuple[int, ...]
Windows = tuple[tuple[int, int, int], ...]
"""(start, stop, divisor) of every window along one dimension; the window has the positions start to stop − 1."""


def average(converter: Converter, node: fx.Node) -> Codes | Computation:
    """Average pooling and means, over windows or all positions."""
    given, source = converter.arguments(node), converter.input_of(node)
    x, before, after = converter.codes_at(source, node), converter.shapes[source], converter.shapes[node]
    positions = list(range(2, len(before)))
    if "dtype" in given and not _is_over(converter, node, positions):  # torch.mean, in any of its spellings
        return reduction(converter, node, "mean")
    converter.check_batch_first(node)
    if positions and "kernel_size" not in given and after in (before[:2], (*before[:2], *(1 for _ in positions))):
        return _global_average(node, x, after)
    if "kernel_size" in given:
        windows = _average_windows(converter, node)
    else:
        windows = [_adaptive_windows(size, count) for size, count in zip(before[2:], after[2:])]
    if all(each == ((0, size, size),) for each, size in zip(windows, before[2:])):
        return _global_average(node, x, after)
    if all(each == tuple((i, i + 1, 1) for i in range(size)) for each, size in zip(windows, before[2:])):
        return x
    return _average_pool(converter, node, x, windows)


def _is_over(converter: Converter, node: fx.Node, dimensions: list[int]) -> bool:
    """Whether a mean is over these dimensions, of a tensor that has its batch first."""
    source = converter.input_of(node)
    (given,) = converter.options(node, "dim") if "dim" in converter.arguments(node) else (None,)
    axes = given if isinstance(given, (tuple, list)) else () if given is None else (given,)
    rank = len(converter.shapes[source])
    return converter.layout(source) == Layout() and bool(axes) and sorted(axis % rank for axis in axes) == dimensions


def _global_average(node: fx.Node, x: Codes, after: tuple[int, ...]) -> Computation:
    pooled = Computation(node.name, lambda n, y: GlobalAveragePool(name=n, inputs=(x.name,), type=y))
    return pooled if len(after) > 2 else replace(pooled, moves=(reshape_to(node.name, (after[1],)),))


def _average_windows(converter: Converter, node: fx.Node) -> list[Windows]:
    """The windows of a pool with a kernel, as torch divides them.

    Padding counts or not, but never what ceil_mode adds.
    """
    given, source = converter.arguments(node), converter.input_of(node)
    before, after = converter.shapes[source][2:], converter.shapes[node][2:]
    sizes = zip(before, after, *_windows(converter, node, "kernel_size", "stride", "padding"))
    override, counts = given.get("divisor_override"), given.get("count_include_pad", True)
    found: list[Windows] = []
    for size, count, kernel, stride, padding in sizes:
        windows = []
        for start in range(-padding, count * stride - padding, stride):
            stop = min(start + kernel, size + padding)
            inner = max(start, 0), min(stop, size)
            divisor = stop - start if counts else inner[1] - inner[0]
            if override:  # one number for all dimensions together
                divisor = 1 if found else int(override)
            windows.append((*inner, divisor))
        found.append(tuple(windows))
    return found


def _adaptive_windows(size: int, count: int) -> Windows:
    """torch's: from ⌊i·size/count⌋ to ⌈(i + 1)·size/count⌉."""
    edges = [(i * size // count, -((i + 1) * size // -count)) for i in range(count)]
    return tuple((start, stop, stop - start) for start, stop in edges)


def _average_pool(converter: Converter, node: fx.Node, x: Codes, windows: list[Windows]) -> Computation:
    """Windows of one size, and in equal distances, are an AveragePool."""
    before, after = converter.shapes[converter.input_of(node)][2:], converter.shapes[node][2:]
    given = converter.arguments(node)
    if "kernel_size" in given:
        kernel, stride, padding = _windows(converter, node, "kernel_size", "stride", "padding")
        divisible = not given.get("divisor_override")
    else:
        kernel = stride = tuple(size // count for size, count in zip(before, after))
        padding, divisible = (0,) * len(kernel), not any(size % count for size, count in zip(before, after))
    if divisible and all({divisor for _, _, divisor in each} == {size} for each, size in zip(windows, kernel)):
        pads = tuple((p, p) for p in padding)
        return Computation(
            node.name,
            lambda n, y: AveragePool(name=n, inputs=(x.name,), type=y, kernel=kernel, stride=stride, padding=pads),
        )
    uneven = tuple((axis, *window) for axis, each in enumerate(windows, 2) for window in each)
    return Computation(node.name, lambda n, y: UnevenAveragePool(name=n, inputs=(x.name,), type=y, windows=uneven))


def max_pool(converter: Converter, node: fx.Node) -> Any:
    """Pooling by maximum: over windows, adaptive, or over all positions."""
    source, given = converter.input_of(node), converter.arguments(node)
    value, before, after = converter.value(source, node), converter.shapes[source], converter.shapes[node]
    if given.get("return_indices"):
        raise converter.refusal(node, ": the indices of pooling have no integer form")
    if "kernel_size" in given:
        return converter.moved(value, _over_channels(converter, node, [_max_pool(converter, node)]))
    if "output_size" in given:
        return converter.moved(
            value, _over_channels(converter, node, _adaptive_max_pool(node.name, before[2:], after[2:]))
        )
    if not _is_over(converter, node, list(range(2, len(before)))):
        return extremum(converter, node)
    pooled = _adaptive_max_pool(node.name, before[2:], (1,) * (len(before) - 2))
    return converter.moved(value, [*pooled, reshape_to(node.name, after[1:])] if len(after) == 2 else pooled)


def _over_channels(converter: Converter, node: fx.Node, moves: list[Move]) -> list[Move]:
    """Moves of every channel on its own, also where windows are folded into the batch.

    They are so many channels more.
    """
    source = converter.input_of(node)
    layout = converter.layout(source)
    if layout == Layout():
        return moves
    if layout.axis != 0:
        converter.check_batch_first(node)  # refuses
    (_, channels, *positions) = converter.shapes[source]
    before = reshape_to(f"{node.name}_channels", (layout.folded * channels, *positions))
    return [before, *moves, reshape_to(node.name, converter.sample(node))]


def _max_pool(converter: Converter, node: fx.Node) -> Move:
    before, after = converter.shapes[converter.input_of(node)], converter.shapes[node]
    kernel, stride, padding, dilation = _windows(converter, node, "kernel_size", "stride", "padding", "dilation")
    pads = tuple((p, p) for p in padding)
    if converter.arguments(node)["ceil_mode"]:  # the last window may reach beyond the image: as much padding more
        reach = [(out - 1) * s + d * (size - 1) + 1 for out, size, s, d in zip(after[2:], kernel, stride, dilation)]
        pads = tuple((p, max(p, r - n - p)) for p, r, n in zip(padding, reach, before[2:]))
    more = lowest_pads(converter, node)
    pads = tuple((first + before, last + after) for (first, last), (before, after) in zip(pads, more))
    return _maximum(node.name, kernel, stride, pads, dilation)


def _maximum(name: str, kernel: Sizes, stride: Sizes, pads: Pads, dilation: Sizes) -> Move:
    return Move(
        name, lambda n, x: MaxPool(name=n, inputs=(x,), kernel=kernel, stride=stride, padding=pads, dilation=dilation)
    )


def _adaptive_max_pool(name: str, before: Sizes, after: Sizes) -> list[Move]:
    """A pool whose stride is its kernel; where windows overlap or differ in size, of positions that are repeated."""
    moves, kernel = [], []
    for axis, (size, count) in enumerate(zip(before, after), 2):
        windows = _adaptive_windows(size, count)
        kernel.append(max(stop - start for start, stop, _ in windows))
        if size % count:
            places = [min(start + k, stop - 1) for start, stop, _ in windows for k in range(kernel[-1])]
            moves.append(picked(name, axis, places))
    ones = (1,) * len(kernel)
    return [*moves, _maximum(name, tuple(kernel), tuple(kernel), ((0, 0),) * len(kernel), ones)]


def _windows(converter: Converter, node: fx.Node, *names: str) -> list[tuple[int, ...]]:
    """Sizes of a pool, one number per spatial dimension each.

    The first is the kernel's, which the stride is by default.
    """
    spatial = len(converter.shapes[converter.input_of(node)]) - 2
    first, *others = converter.options(node, *names)
    sizes = [first, *(first if size in (None, (), []) else size for size in others)]
    return [tuple(size) if isinstance(size, (tuple, list)) else (size,) * spatial for size in sizes]


HANDLERS = {k.AVERAGE: average, k.MAX_POOL: max_pool}
