"""Table 0: where steps are initialized, and how fast they learn.

A row is the rule for activations, a plus, and the rule for weights. LSQ's own is `lsq+lsq`; LSQ+'s, without its offset,
is `least-squares+three-sigma`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables.full_precision import RESNET8, RESNET20
from campaigns.accuracy.tables.table import Table
from lowbit import METHODS
from lowbit.grid import Grid
from lowbit.quantizer.initialization import Statistics, least_squares_init, lsq_init


def three_sigma_init(statistics: Statistics, grid: Grid, offset: bool) -> tuple[Tensor, Tensor]:
    """max(|μ − 3σ|, |μ + 3σ|) at the end of the grid, from the sample.

    For weights it is LSQ+'s rule. On an unsigned grid it puts μ + 3σ at the largest code, where LSQ+'s formula, which
    is for signed weights, would put it in the middle.
    """
    sample = statistics.sample
    mean, std = sample.mean(1), sample.std(1, correction=0)
    step = torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / max(grid.qp, -grid.qn)
    return step, torch.zeros_like(step)


RULES = {"lsq": lsq_init, "least-squares": least_squares_init, "three-sigma": three_sigma_init}
ROWS = (
    # LSQ's, and the one that promised most; then one rule at a time; then the corners.
    ("lsq", "lsq"), ("least-squares", "lsq"),
    ("least-squares", "least-squares"), ("three-sigma", "lsq"), ("least-squares", "three-sigma"),
    ("lsq", "least-squares"), ("lsq", "three-sigma"),
    ("three-sigma", "three-sigma"), ("three-sigma", "least-squares"),
)  # fmt: skip
BITS = (2, 3, 4)
STAGES = (
    # (stage, network, what it starts from, epochs, seeds, rows)
    (1, RESNET8, 3, (0,), ROWS),
    (2, RESNET8, 3, (1,), ROWS),
    (3, RESNET8, 3, (2,), ROWS),
    (4, RESNET8, 10, (0,), ROWS),
    (5, RESNET8, 3, (3, 4), ROWS),
    (6, RESNET8, 10, (1, 2), ROWS),
    (8, RESNET8, 40, (0, 1, 2), ROWS[:3]),
    (10, RESNET20, 3, (0, 1, 2), ROWS[:3]),
    (11, RESNET20, 10, (0, 1, 2), ROWS[:3]),
)
_NOT_BUILT = "the balanced magnitude of SSG does not reach activations yet"


def register() -> None:
    """Put the rows into `lowbit.METHODS`: LSQ with other rules."""
    for activations, weights in ROWS:
        name = method(activations, weights)
        METHODS[name] = replace(
            METHODS["lsq"],
            name=name,
            init=RULES[weights],
            activations=replace(METHODS["lsq"], name=name, init=RULES[activations]),
        )


def method(activations: str, weights: str) -> str:
    """The name in `lowbit.METHODS`."""
    return f"lsq initialized by {activations}+{weights}"


def _cells() -> Iterator[tuple[int, Cell]]:
    for stage, origin, epochs, seeds, rows in STAGES:
        common = dict(table="init", network=origin.network, epochs=epochs, start=origin.name)
        for seed in seeds:
            yield stage, Cell(row="fp", bits=None, seed=seed, **common)
            # LSQ's own rule and the first challenger at every width, then the other rows.
            for part in (rows[:2], rows[2:]):
                for activations, weights in part:
                    for bits in BITS:
                        row = f"{activations}+{weights}"
                        named = method(activations, weights)
                        yield stage, Cell(row=row, bits=bits, seed=seed, method=named, **common)
    for activations, weights in ROWS[:3]:
        for bits in BITS:
            row = f"{activations}+{weights},balanced"
            common = dict(table="init", network=RESNET8.network, epochs=3, seed=0, start=RESNET8.name)
            yield 7, Cell(row=row, bits=bits, waiting=_NOT_BUILT, **common)


register()
TABLE = Table(
    "init",
    "Where steps are initialized: the rule for activations + the rule for weights",
    tuple(_cells()),
    reference="lsq+lsq",
)
