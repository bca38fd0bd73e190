"""Windows of positions, written out while a network is recorded: as positions that are chosen, and their sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F


def unfold(x: Any, dimension: int, size: int, step: int) -> Any:
    """Tensor.unfold: windows along a dimension, their positions in a last dimension of their own."""
    dimension %= x.dim()
    count = (x.size(dimension) - size) // step + 1
    places = [start * step + place for start in range(count) for place in range(size)]
    return _taken(x, dimension, places).unflatten(dimension, (count, size)).movedim(dimension + 1, -1)


def im2col(input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    """F.unfold of (batch, channels, height, width)."""
    x = _padded(input, padding)
    for axis, (size, *how) in enumerate(zip(x.shape[2:], *map(_pair, (kernel_size, dilation, stride)))):
        x = _taken(x, 2 + 2 * axis, [place for run in _runs(size, *how) for place in run])
        x = x.unflatten(2 + 2 * axis, (-1, how[0]))
    return x.permute(0, 1, 3, 5, 2, 4).flatten(4).flatten(1, 3)


def col2im(input: Any, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    """F.fold of (batch, channels · kernel, windows): at each position the sum of the windows' elements that lie there.

    As many as lie anywhere are chosen at every position, of windows with a zero behind them.
    """
    kernel, dilations, pads, strides = map(_pair, (kernel_size, dilation, padding, stride))
    sizes = [size + 2 * pad for size, pad in zip(_pair(output_size), pads)]
    runs = [_runs(*each) for each in zip(sizes, kernel, dilations, strides)]
    x = input.unflatten(2, (len(runs[0]), len(runs[1]))).unflatten(1, (-1, *kernel)).permute(0, 1, 2, 4, 3, 5)
    for axis, (size, pad, own) in enumerate(zip(sizes, pads, runs)):
        at = 2 + 2 * axis
        x = x.transpose(at, at + 1).flatten(at, at + 1)  # windows, and the positions of each
        elements = [place for run in own for place in run]
        lying = [[e for e, place in enumerate(elements) if place == p] for p in range(pad, size - pad)]
        most = max(map(len, lying))
        if any(len(each) < most for each in lying):
            x = F.pad(x, [0, 0] * (x.dim() - 1 - at) + [0, 1])
        places = [e for each in lying for e in (*each, *[len(elements)] * (most - len(each)))]
        x = _taken(x, at, places).unflatten(at, (-1, most))
    return x.sum((3, 5))


def padded_by(input: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """F.pad with a number: the tensor between constants, along one dimension after the other."""
    x = input
    for number in range(len(pad) // 2):
        axis = x.dim() - 1 - number
        before, after = (
            [torch.full((*x.shape[:axis], amount, *x.shape[axis + 1 :]), float(value or 0))] if amount > 0 else []
            for amount in pad[2 * number : 2 * number + 2]
        )
        x = torch.cat([*before, x, *after], axis) if before or after else x
    return x


def pads_by_number(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a call of F.pad pads by a number other than 0 and −∞."""
    given = dict(zip(("input", "pad", "mode", "value"), args)) | kwargs
    numbers = all(isinstance(amount, int) and amount >= 0 for amount in given["pad"])
    return numbers and given.get("mode", "constant") == "constant" and given.get("value") not in (None, 0, -math.inf)


def unfold_layer(layer: nn.Unfold, x: Any) -> Any:
    """nn.Unfold."""
    return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


def fold_layer(layer: nn.Fold, x: Any) -> Any:
    """nn.Fold."""
    return F.fold(x, layer.output_size, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


def _runs(size: int, kernel: int, dilation: int, stride: int) -> list[list[int]]:
    """The positions of each window along a dimension."""
    last = size - dilation * (kernel - 1) - 1
    if last < 0:
        raise fx.proxy.TraceError(f"windows of {kernel} positions do not fit {size}")
    return [[start + dilation * place for place in range(kernel)] for start in range(0, last + 1, stride)]


def _taken(x: Any, axis: int, places: list[int]) -> Any:
    """The elements at these places; x itself where that is all of them in order."""
    return x if places == list(range(x.size(axis))) else x.index_select(axis, torch.tensor(places, device=x.device))


def _padded(x: Any, padding: Any) -> Any:
    high, wide = _pair(padding)
    return F.pad(x, (wide, wide, high, high)) if high or wide else x


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
