"""Table 0: where steps are initialized, and how fast they learn.

A row is the rule for activations, a plus, and the rule for weights. LSQ's own is `lsq+lsq`; LSQ+'s, without its offset,
is `least-squares+three-sigma`. Behind a comma stands "balanced" where the gradient of every step is held at the pace of
its layer's weight (`lowbit.Balance`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables.full_precision import RESNET8, RESNET20
from campaigns.accuracy.tables.table import Table

RULES = (
    # LSQ's, and the one that promised most; then one rule at a time; then the corners.
    "lsq+lsq", "least-squares+lsq",
    "least-squares+least-squares", "three-sigma+lsq", "least-squares+three-sigma",
    "lsq+least-squares", "lsq+three-sigma",
    "three-sigma+three-sigma", "three-sigma+least-squares",
)  # fmt: skip
BALANCED = tuple(f"{rules},balanced" for rules in ("lsq+lsq", "least-squares+lsq", "lsq+three-sigma"))
ROWS = (*RULES[:2], *BALANCED[:2], *RULES[2:], *BALANCED[2:])
BITS = (2, 3, 4)
STAGES = (
    # (stage, network, what it starts from, epochs, seeds, rows)
    (1, RESNET8, 3, (0,), ROWS),
    (2, RESNET8, 3, (1,), ROWS),
    (3, RESNET8, 3, (2,), ROWS),
    (4, RESNET8, 10, (0,), ROWS),
    (5, RESNET8, 3, (3, 4), ROWS),
    (6, RESNET8, 10, (1, 2), ROWS),
    (8, RESNET8, 40, (0, 1, 2), ROWS[:4]),
    (10, RESNET20, 3, (0, 1, 2), ROWS[:4]),
    (11, RESNET20, 10, (0, 1, 2), ROWS[:4]),
)


def options(row: str) -> tuple[tuple[str, Any], ...]:
    """What a row changes of LSQ's quantization."""
    rules, *balanced = row.split(",")
    activations, weights = rules.split("+")
    changes = (("init_activations", activations), ("init_weights", weights))
    return (*changes, ("balance", 1.0)) if balanced else changes


def _cells() -> Iterator[tuple[int, Cell]]:
    for stage, origin, epochs, seeds, rows in STAGES:
        common = dict(table="init", network=origin.network, epochs=epochs, start=origin.name)
        for seed in seeds:
            yield stage, Cell(row="fp", bits=None, seed=seed, **common)
            for row in rows:
                for bits in BITS:
                    yield stage, Cell(row=row, bits=bits, seed=seed, options=options(row), **common)


TABLE = Table(
    "init",
    "Where steps are initialized (the rule for activations + the rule for weights), and how fast they learn",
    tuple(_cells()),
    reference="lsq+lsq",
)
