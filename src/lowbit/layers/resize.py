"""Cubic and antialiased resizing with weights that are whole numbers over one divisor, in training and integers alike.

Along a dimension output i lies at (i + ½)·step − ½ of the input, step = size/count; with `align_corners` at i·step,
step = (size − 1)/(count − 1), where antialiasing takes this step and the former place, as torch does. It takes the
positions near it, at distances d, with weights that sum to 1 (W of Keys 1981, equation 4; d ≤ 1, else 1 < d < 2):

    linear          W(d) = 1 − d
    cubic           W(d) = (a + 2)·d³ − (a + 3)·d² + 1,  a·(d³ − 5·d² + 8·d − 4)
    not antialiased a = −3/4; four neighbours, where those outside the input are its edge
    antialiased     a = −1/2; all with W(d / r) over the sum of these, r = max(step, 1), within the input

Two dimensions have the products of both. Weights whose common denominator is at most 2048 stay as they are (a factor of
2 has 256ths); others, those of a resize from 240 to 224, say, are rounded to the nearest multiples of 1/2048, and the
largest takes what is left of 1. Training computes with the rounded ones.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

DIVISOR = 1 << 11
"""Of rounded weights: products of two, times the 8 bits of a code, stay within an accumulator of 32."""


class Weights(NamedTuple):
    """Output i is Σ_k weights[i][k] · x[first[i] + k] / divisor, along a dimension."""

    first: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]
    divisor: int


@lru_cache(maxsize=64)
def resize_weights(
    size: int, count: int, factor: float | None, *, cubic: bool, align_corners: bool, antialias: bool
) -> Weights | None:
    """The weights of a resize from `size` to `count` positions; None where it changes nothing.

    Args:
        factor: the scale factor that positions are computed with, as the decimal number that it is written as; None
            where the sizes say it.
        cubic: a cubic kernel, else a linear one.
        align_corners: whether the first and last positions of both lie at the same place.
        antialias: widen the kernel where the result is smaller.
    """
    step, offset = positions_of(size, count, factor, align_corners)
    if antialias:
        offset = (step - 1) / 2
    found = [_run(size, i * step + offset, step, cubic, antialias) for i in range(count)]
    common = math.lcm(*(weight.denominator for _, run in found for weight in run))
    divisor = common if common <= DIVISOR else DIVISOR
    runs = [_whole(run, divisor) for _, run in found]
    if size == count and all(_is_one_at(i - first, run) for i, ((first, _), run) in enumerate(zip(found, runs))):
        return None
    return Weights(tuple(first for first, _ in found), tuple(runs), divisor)


def _is_one_at(place: int, run: tuple[int, ...]) -> bool:
    """Whether a run of weights is 1 at a place and 0 elsewhere."""
    return 0 <= place < len(run) and run[place] == sum(run) and not any(run[:place] + run[place + 1 :])


def positions_of(size: int, count: int, factor: float | None, align_corners: bool) -> tuple[Fraction, Fraction]:
    """(step, offset): output i lies at i·step + offset of the input. Arguments as `resize_weights` takes them."""
    if align_corners:
        return Fraction(size - 1, count - 1) if count > 1 else Fraction(0), Fraction(0)
    step = Fraction(size, count) if factor is None else 1 / Fraction(repr(float(factor)))
    return step, (step - 1) / 2


def _run(size: int, center: Fraction, step: Fraction, cubic: bool, antialias: bool) -> tuple[int, list[Fraction]]:
    """(first position, weights) of an output."""
    if antialias:
        wider = max(step, Fraction(1))
        reach = wider * (2 if cubic else 1)
        # Positions are half a unit wide on either side, and those count whose middle lies within.
        first = max(math.floor(center + 1 - reach), 0)
        stop = min(math.floor(center + 1 + reach), size)
        raw = [_kernel((place - center) / wider, cubic, Fraction(-1, 2)) for place in range(first, stop)]
        total = sum(raw)
        return first, [weight / total for weight in raw]
    base = math.floor(center)
    places = [min(max(base + k, 0), size - 1) for k in (-1, 0, 1, 2)]
    run = [Fraction(0)] * (places[-1] - places[0] + 1)
    for k, place in zip((-1, 0, 1, 2), places):
        run[place - places[0]] += _kernel(base + k - center, cubic, Fraction(-3, 4))
    return places[0], run


def _kernel(distance: Fraction, cubic: bool, a: Fraction) -> Fraction:
    d = abs(distance)
    if not cubic:
        return max(1 - d, Fraction(0))
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else Fraction(0)


def _whole(run: list[Fraction], divisor: int) -> tuple[int, ...]:
    """The nearest whole numbers over the divisor that sum to it, the largest taking what rounding has left."""
    whole = [round(weight * divisor) for weight in run]
    whole[whole.index(max(whole))] += divisor - sum(whole)
    return tuple(whole)


def weighted_resize(
    input: Tensor,
    size: int | tuple[int, ...] | None = None,
    scale_factor: float | tuple[float, ...] | None = None,
    mode: str = "bicubic",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """F.interpolate of (batch, channels, height, width), bicubic or with antialias, with the weights of this module."""
    y = input
    with torch.autocast(input.device.type, enabled=False):
        for axis in (3, 2):
            before, factor = input.shape[axis], of_dimension(scale_factor, axis - 2)
            count = math.floor(before * factor) if size is None else of_dimension(size, axis - 2)
            found = resize_weights(
                before,
                count,
                None if recompute_scale_factor else factor,
                cubic=mode == "bicubic",
                align_corners=bool(align_corners),
                antialias=antialias,
            )
            if found is not None:
                matrix = _matrix(found, before, input)
                y = torch.matmul(y, matrix.mT) if axis == 3 else torch.matmul(matrix, y)
    return y


def of_dimension(given: Any, axis: int) -> Any:
    """A size or scale factor of a dimension of positions, of one for each or one for all."""
    return given[axis] if isinstance(given, (tuple, list)) else given


def _matrix(found: Weights, size: int, like: Tensor) -> Tensor:
    """(outputs, inputs) of the weights."""
    most = max(map(len, found.weights))
    runs = [[weight / found.divisor for weight in run] + [0.0] * (most - len(run)) for run in found.weights]
    places = torch.tensor(found.first, device=like.device)[:, None] + torch.arange(most, device=like.device)
    matrix = like.new_zeros(len(runs), size + most)  # the zeros behind a short run may lie outside
    return matrix.scatter_(1, places, torch.tensor(runs, dtype=like.dtype, device=like.device))[:, :size]
