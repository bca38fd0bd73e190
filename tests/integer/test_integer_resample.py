"""Weighted means of positions against torch's own pools and interpolation in float64, and against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from tests.integer.test_integer_run import compute, float32, requant_fixed, requant_float
from tests.integer_graphs import f32
from torch.nn import functional as F

from lowbit.errors import LowbitError
from lowbit.integer.graph import Graph, TensorType
from lowbit.integer.ops import IndexSelect, LinearResize, Quantize, UnevenAveragePool
from lowbit.integer.validate import validate

X = TensorType(f32(0.03), 7, 8, False, shape=(3, 7, 6))
Y = TensorType(f32(0.02), -5, 7, True)


def codes() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 7, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def adaptive(out: tuple[int, int]) -> UnevenAveragePool:
    """By torch's definition of adaptive pools: from ⌊i·n/out⌋ to ⌈(i + 1)·n/out⌉."""
    windows = []
    for axis, (size, count) in enumerate(zip((7, 6), out), 2):
        for i in range(count):
            start, stop = i * size // count, -((i + 1) * size // -count)
            windows.append((axis, start, stop, stop - start))
    return UnevenAveragePool(name="p", inputs=("x",), type=Y, windows=tuple(windows))


def halves(axis: int, size: int) -> list[tuple[int, int, int, int]]:
    """Twice as many points with half-pixel centers: weights 1/4 and 3/4, the edge's its own."""
    inner = [point for i in range(size - 1) for point in ((axis, i, 3, 1), (axis, i, 1, 3))]
    return [(axis, 0, 4, 0), *inner, (axis, size - 1, 4, 0)]


# Cubic weights at the middle of two positions, from Keys's formula with a = −3/4: −3/32, 19/32, 19/32, −3/32. Beside the
# edge its own position stands for the one outside.
SIX_TO_THREE = ((0, 16, 19, -3), (1, -3, 19, 19, -3), (3, -3, 19, 16))

CASES = {
    "adaptive": (adaptive((3, 4)), 3 * 2, lambda x: F.adaptive_avg_pool2d(x, (3, 4))),
    "padding does not count": (
        UnevenAveragePool(
            name="p",
            inputs=("x",),
            type=Y,
            windows=((2, 0, 2, 2), (2, 1, 4, 3), (2, 3, 6, 3), (2, 5, 7, 2)),
        ),
        6,
        lambda x: F.avg_pool2d(x, (3, 1), (2, 1), (1, 0), count_include_pad=False),
    ),
    "another divisor": (
        UnevenAveragePool(name="p", inputs=("x",), type=Y, windows=tuple((3, i, i + 2, 7) for i in range(5))),
        7,
        lambda x: F.avg_pool2d(x, (1, 2), 1, divisor_override=7),
    ),
    "twice as large": (
        LinearResize(name="p", inputs=("x",), type=Y, points=(*halves(2, 7), *halves(3, 6))),
        16,
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    ),
    "corners aligned": (
        LinearResize(
            name="p", inputs=("x",), type=Y, points=((2, 0, 2, 0), (2, 1, 1, 1), (2, 3, 2, 0), (2, 4, 1, 1), (2, 6, 2, 0))
        ),
        2,
        lambda x: F.interpolate(x, (5, 6), mode="bilinear", align_corners=True),
    ),
    "cubic": (
        LinearResize(name="p", inputs=("x",), type=Y, points=tuple((3, *point) for point in SIX_TO_THREE)),
        32,
        lambda x: F.interpolate(x, (7, 3), mode="bicubic"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_weighted_means(case, fixed):
    """Torch's mean in float64 times the divisor is a whole number, the accumulator; then one requantization by its definition."""
    node, divisor, oracle = CASES[case]
    x = codes()
    got = compute(node, [x], [X], fixed)
    real = oracle(x.double() - 7) * divisor
    sums = real.round()
    assert float((real - sums).abs().max()) < 1e-9
    inner = float32(Fraction(X.scale) * Fraction(float32(Fraction(1, divisor))))
    m = float32(Fraction(inner) / Fraction(Y.scale))
    exact = Fraction(X.scale / (divisor * Y.scale))
    numbers = [int(n) for n in sums.flatten().tolist()]
    assert got.shape == real.shape
    assert got.flatten().tolist() == [requant_fixed(n, exact, Y) if fixed else requant_float(n, m, Y) for n in numbers]


def graph_of(node) -> Graph:
    image = Quantize(name="x", inputs=("image",), type=TensorType(X.scale, 7, 8, False))
    return validate(Graph(inputs={"image": (3, 7, 6)}, nodes=(image, node), outputs=(node.name,)))


@pytest.mark.parametrize(
    ("kind", "entries", "words"),
    [
        (UnevenAveragePool, ((2, 0, 8, 8),), "window from 0 to 8 of 7 positions"),
        (UnevenAveragePool, ((2, 3, 3, 1),), "window from 3 to 3"),
        (UnevenAveragePool, ((2, 0, 3, 0),), "divided by 0"),
        (UnevenAveragePool, ((1, 0, 3, 3),), r"it is \(dimension, start, stop, divisor\)"),
        (UnevenAveragePool, ((2, 0, 3),), r"it is \(dimension"),
        (UnevenAveragePool, ((2, 0, 7, 2**20), (2, 0, 7, 3**11)), "least common multiple"),
        (UnevenAveragePool, ((2, 0, 7, 2**24), (2, 0, 7, 1)), "more than 32 bits hold"),
        (LinearResize, ((2, 6, 1, 1),), "from 6 on, of 7 positions"),
        (LinearResize, ((2, -1, 1, 1),), "from -1 on"),
        (LinearResize, ((2, 0, 1, 1), (2, 0, 1, 2)), r"sums \[2, 3\]"),
        (LinearResize, ((2, 5, 1, 1, 1),), "from 5 on, of 7 positions"),
        (LinearResize, ((2, 0, 3, -3),), "takes"),
        (LinearResize, ((2, 0),), r"it is \(dimension, first, weights …\)"),
        (LinearResize, ((4, 0, 1, 0),), r"it is \(dimension, first, weights …\)"),
    ],
)
def test_what_is_no_weighted_mean_is_refused(kind, entries, words):
    field = "windows" if kind is UnevenAveragePool else "points"
    with pytest.raises(LowbitError, match=words):
        graph_of(kind(name="p", inputs=("x",), type=Y, **{field: entries}))


@pytest.mark.parametrize(
    ("axis", "places", "words"),
    [
        (0, [0], "no dimension 0"),
        (4, [0], "no dimension 4"),
        (2, [7], "from 0 to 6"),
        (2, [-1], "from 0 to 6"),
        (2, [], "one or more from 0"),
    ],
)
def test_places_outside_are_refused(axis, places, words):
    with pytest.raises(LowbitError, match=words):
        graph_of(IndexSelect(name="p", inputs=("x",), axis=axis, places=tuple(places)))


def test_picked_places():
    got = compute(IndexSelect(name="p", inputs=("x",), axis=3, places=(5, 0, 0)), [codes()], [X], False)
    assert torch.equal(got, codes()[:, :, :, [5, 0, 0]])
