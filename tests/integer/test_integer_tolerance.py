"""How far an operation's arithmetic is from that of real numbers: what `Node.tolerance` states, against float64."""

from __future__ import annotations

import pytest
import torch
from tests.integer_graphs import every_operation, f32

from lowbit.integer.graph import TensorType
from lowbit.integer.ops import Add, Concatenate, Multiply, Quantize, Requantize, Reshape, Subtract
from lowbit.integer.roundings import ROUNDINGS

A, B, Y = (
    TensorType(f32(0.0313), 17, 8, False),
    TensorType(f32(0.00717), -3, 8, True),
    TensorType(f32(0.0509), 100, 8, False),
)


def codes(kind: TensorType) -> torch.Tensor:
    return torch.arange(kind.qn, kind.qp + 1).to(torch.int8 if kind.signed else torch.uint8)


def real(q: torch.Tensor, kind: TensorType) -> torch.Tensor:
    return (q.double() - kind.zero_point) * kind.scale


def excess(got: torch.Tensor, exact: torch.Tensor, y: TensorType, tolerance: float) -> tuple[float, int]:
    """(steps beyond half a step that the farthest code is from the exact value, codes that the tolerance may decide)."""
    steps = exact / y.scale + y.zero_point
    inside = (steps > y.qn - 0.5) & (steps < y.qp + 0.5)
    gap = (got.double() - steps).abs()[inside]
    return float(gap.max()) - 0.5, int((gap > 0.5 - tolerance).sum())


@pytest.mark.parametrize(
    ("node", "function"),
    [
        (Requantize(name="r", inputs=("a",), type=Y), lambda a: a),
        (Add(name="s", inputs=("a", "b"), type=Y), lambda a, b: a + b),
        (Subtract(name="d", inputs=("a", "b"), type=Y), lambda a, b: a - b),
        (Multiply(name="p", inputs=("a", "b"), type=Y), lambda a, b: a * b),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_code_is_within_the_tolerance_of_the_exact_value(node, function):
    kinds = [A, B][: len(node.inputs)]
    first, second = codes(A).repeat_interleave(256)[None], codes(B).repeat(256)[None]
    inputs = [first, second][: len(kinds)]
    got = node.execute(inputs, kinds, ROUNDINGS["float"])
    tolerance = node.tolerance(kinds)
    over, undecided = excess(got, function(*map(real, inputs, kinds)), Y, tolerance)
    assert 0 < tolerance < 1e-3 and over <= tolerance
    assert undecided < 0.01 * got.numel()  # so that the tolerance excuses next to nothing


def test_what_moves_codes_has_no_tolerance():
    for node in every_operation(0).graph().nodes:
        if node.moves_codes:
            assert node.tolerance([A]) == 0.0
    assert {Concatenate, Reshape} <= {type(node) for node in every_operation(0).nodes}
    assert Quantize(name="q", inputs=("x",), type=Y).tolerance([]) == pytest.approx(8 * 2.0**-24 * 155)
