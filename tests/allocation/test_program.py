"""Budgets and the integer program, against every choice tried one by one."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit import LowbitError
from lowbit.allocation.budget import Budget
from lowbit.allocation.program import Cost, Program, Sum, uniform


@pytest.mark.parametrize(
    "text, limits",
    [
        ("weights=64kB", {"weights": 64_000}),
        ("weights = 1.5 KiB, average_bits=3.5", {"weights": 1536, "average_bits": 3.5}),
        ("file=2MB,activations=512B,bit_operations=1.2G", {"file": 2e6, "activations": 512, "bit_operations": 1.2e9}),
    ],
)
def test_budgets_in_words(text: str, limits: dict[str, float]) -> None:
    assert Budget.of(text).limits == limits
    assert Budget.of(Budget.of(text)) == Budget.of(limits) == Budget.of(text)


@pytest.mark.parametrize(
    "given_, message",
    [
        ("weights=64k", "in bytes .* has no unit"),
        ("weights=64kb", "in bytes .* has bits"),
        ("average_bits=3B", "not in bytes"),
        ("average_bits=3k", "unknown unit"),
        ("weights", "write LIMIT=NUMBER"),
        ("weights=many", "write LIMIT=NUMBER"),
        ("weight=64kB", "unknown limit 'weight'. Did you mean"),
        ("", "needs at least one limit"),
        ({"weights": -1}, "a positive number"),
        ({"weights": float("nan")}, "a positive number"),
        ({"average_bits": 9}, "at most 8"),
    ],
)
def test_budgets_that_make_no_sense(given_: object, message: str) -> None:
    with pytest.raises(LowbitError, match=message):
        Budget.of(given_)


def random_program(seed: int) -> tuple[Program, dict[str, float]]:
    draw = random.Random(seed)
    names = [f"t{i}" for i in range(4)]
    choices = {name: draw.sample((2, 3, 4, 8), draw.choice((1, 3, 3))) for name in names}
    losses = {name: {bits: draw.random() * 2.0**-bits for bits in choices[name]} for name in names}

    def total(single: list[str], products: list[tuple[str, str]]) -> Sum:
        sizes = {name: draw.randint(1, 50) for name in single}
        return Sum(
            float(draw.randint(0, 20)),
            {name: {bits: float(size * bits) for bits in choices[name]} for name, size in sizes.items()},
            {pair: float(draw.randint(1, 9)) for pair in products},
        )

    costs = {
        "weights": Cost("weights", (total(names[:2], []),)),
        "activations": Cost("activations", (total(names[1:3], []), total(names[2:], []), total(names[:1], []))),
        "bit_operations": Cost("bit_operations", (total([names[3]], [("t0", "t2"), ("t1", "t2"), ("t0", "t3")]),)),
    }
    limits = {}
    for name, cost in costs.items():
        low = cost.of({side: min(by) for side, by in losses.items()})
        high = cost.of({side: max(by) for side, by in losses.items()})
        limits[name] = low + (high - low) * draw.random() * 0.8
    return Program(losses, costs), limits


def every_choice(program: Program) -> list[dict[str, int]]:
    sides = list(program.losses)
    return [dict(zip(sides, each)) for each in itertools.product(*(program.losses[side] for side in sides))]


@given(st.integers(0, 10_000))
def test_the_choice_is_the_best_of_all_within_the_limits(seed: int) -> None:
    program, limits = random_program(seed)
    within = [
        bits
        for bits in every_choice(program)
        if all(program.costs[name].of(bits) <= limit * (1 + 1e-9) for name, limit in limits.items())
    ]
    best = min(program.loss(bits) for bits in within)
    assert program.loss(program.solve(limits)) == pytest.approx(best, rel=1e-6, abs=1e-12)


def test_what_no_choice_meets_is_said_with_the_least() -> None:
    program, limits = random_program(1)
    least = min(program.costs["weights"].of(bits) for bits in every_choice(program))
    with pytest.raises(LowbitError, match=f"weights is at least {least:g}"):
        program.solve({**limits, "weights": least - 1})


def test_uniform_bits_are_the_most_within_the_limits() -> None:
    losses = {"a": {2: 3.0, 3: 2.0, 4: 1.0}, "b": {2: 3.0, 3: 2.0, 4: 1.0}, "fixed": {8: 0.0}}
    cost = Cost("weights", (Sum(0.0, {side: {b: float(b) for b in by} for side, by in losses.items()}, {}),))
    program = Program(losses, {"weights": cost})
    assert uniform(program, {"weights": 15.5}) == {"a": 3, "b": 3, "fixed": 8}
    assert uniform(program, {"weights": 11.0}) is None
