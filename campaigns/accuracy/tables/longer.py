"""How close low bits come to full precision when both train three times as long as where rows are compared."""

from __future__ import annotations

from collections.abc import Iterator

from campaigns.accuracy.cell import RATE, Cell
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.methods import ROWS, TAUGHT
from campaigns.accuracy.tables.table import EPOCHS, FASTER, Table, at_rate

LONGER = 3 * EPOCHS
"""Epochs."""


def _cells() -> Iterator[tuple[int, Cell]]:
    common = dict(table="longer", network=RESNET8.network, epochs=LONGER, start=RESNET8.name)
    rows = {
        "least-squares": at_rate(FASTER, ROWS["least-squares"]),
        "distilled": at_rate(FASTER, ROWS["distilled"]),
        "taught by ResNet-20": at_rate(FASTER, TAUGHT),
        f"least-squares@{RATE}": at_rate(RATE, ROWS["least-squares"]),
    }
    for seed in (0, 1, 2):
        for bits in (2, 3, 4):
            for row, changed in rows.items():
                yield 1, Cell(row=row, bits=bits, seed=seed, **changed, **common)
        yield 1, Cell(row="fp", bits=None, seed=seed, **at_rate(FASTER), **common)
        yield 1, Cell(row="fp, taught by ResNet-20", bits=None, seed=seed, **at_rate(FASTER, TAUGHT), **common)


TABLE = Table(
    "longer",
    f"{LONGER} epochs, at the learning rate {FASTER} or as the row says",
    tuple(_cells()),
    reference="least-squares",
)
