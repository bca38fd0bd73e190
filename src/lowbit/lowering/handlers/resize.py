"""Resizing: positions that repeat, or lie between two others."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.nn import functional as F

from lowbit.integer.ops import LinearResize, Upsample
from lowbit.layers.resize import Weights, of_dimension, positions_of, resize_weights, weighted_resize
from lowbit.lowering import kinds as k
from lowbit.lowering.handlers.moves import taken
from lowbit.lowering.values import Codes, Computation, Move

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter

_DIVISOR_MAX = 1 << 23  # times the 8 bits of a code: what an accumulator holds


def nearest(converter: Converter, node: fx.Node) -> Any:
    """Nearest-neighbour resizing to any size."""
    converter.check_batch_first(node)
    source = converter.input_of(node)
    value, before, after = converter.value(source, node), converter.shapes[source][2:], converter.shapes[node][2:]
    given = converter.arguments(node)
    places = [_places(given, axis, size, count) for axis, (size, count) in enumerate(zip(before, after))]
    factors = tuple(max(count // size, 1) for size, count in zip(before, after))
    if all(each == [i // f for i in range(size * f)] for each, size, f in zip(places, before, factors)):
        if all(factor == 1 for factor in factors):
            return value
        return converter.moved(value, [Move(node.name, lambda n, x: Upsample(name=n, inputs=(x,), factors=factors))])
    changed = [axis for axis, each in enumerate(places) if each != list(range(before[axis]))]
    return converter.moved(value, [picked(node.name, axis + 2, places[axis]) for axis in changed])


def picked(name: str, axis: int, places: list[int]) -> Move:
    """The positions of one dimension by their index, for a node of this name."""
    return taken(f"{name}_{axis}", axis, places)


def _places(given: dict[str, Any], axis: int, size: int, count: int) -> list[int]:
    """Which position each one takes along a dimension, as torch computes it: in float32, so that it is asked."""
    mode, factor = given.get("mode", "nearest"), _scale_factor(given, axis)
    positions = torch.arange(size, dtype=torch.float32).reshape(1, 1, size)
    found = (
        F.interpolate(positions, count, mode=mode)
        if factor is None
        else F.interpolate(positions, scale_factor=factor, mode=mode)
    )
    return found.flatten().long().tolist()


def _scale_factor(given: dict[str, Any], axis: int) -> float | None:
    """The factor that positions are computed with along a dimension; None where the sizes alone say it."""
    factor = of_dimension(given.get("scale_factor"), axis)
    return None if factor is None or given.get("recompute_scale_factor") else float(factor)


def linear(converter: Converter, node: fx.Node) -> Codes | Computation:
    """Linear and cubic resizing."""
    converter.check_batch_first(node)
    source = converter.input_of(node)
    x, before, after = converter.codes_at(source, node), converter.shapes[source][2:], converter.shapes[node][2:]
    given = converter.arguments(node)
    points, divisor = [], 1
    for axis, (size, count) in enumerate(zip(before, after)):
        factor, corners = _scale_factor(given, axis), bool(given.get("align_corners"))
        if node.target is weighted_resize:
            cubic, antialias = given["mode"] == "bicubic", bool(given.get("antialias"))
            found = resize_weights(size, count, factor, cubic=cubic, align_corners=corners, antialias=antialias)
        else:
            found = _linear_weights(size, count, factor, corners)
        if found is not None:
            divisor *= found.divisor
            points += [(axis + 2, first, *weights) for first, weights in zip(found.first, found.weights)]
    if not points:
        return x
    if divisor > _DIVISOR_MAX:
        raise converter.refusal(
            node,
            f" resizes {before} to {after} with weights that are multiples of 1/{divisor}, more than 32-bit "
            "accumulators hold (align_corners=False, or a whole factor, gives smaller ones)",
        )
    return Computation(node.name, lambda n, y: LinearResize(name=n, inputs=(x.name,), type=y, points=tuple(points)))


def _linear_weights(size: int, count: int, factor: float | None, align_corners: bool) -> Weights | None:
    """Of linear interpolation without antialias, exact, between two neighbours; None where nothing changes."""
    step, offset = positions_of(size, count, factor, align_corners)
    centers = [min(max(i * step + offset, Fraction(0)), Fraction(size - 1)) for i in range(count)]
    if centers == list(range(size)):
        return None
    common = math.lcm(*(center.denominator for center in centers))
    far = [int(center % 1 * common) for center in centers]
    return Weights(tuple(map(int, centers)), tuple((common - each, each) for each in far), common)


HANDLERS = {k.UPSAMPLE: nearest, k.LINEAR_RESIZE: linear}
