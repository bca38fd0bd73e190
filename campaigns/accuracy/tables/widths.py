"""Whether widths one after the other, each going on from the one before, end better than the last alone for as long."""

from __future__ import annotations

from collections.abc import Iterator

from campaigns.accuracy.cell import RATE, Cell
from campaigns.accuracy.tables.full_precision import RESNET8, RESNET20
from campaigns.accuracy.tables.table import EPOCHS, FASTER, Table, at_rate

ORDER = (4, 3, 2)
"""Each takes a third of the epochs."""


def _cells() -> Iterator[tuple[int, Cell]]:
    for stage, origin in ((6, RESNET8), (9, RESNET20)):
        options = (("init_activations", "least-squares"),)
        common = dict(table="widths", network=origin.network, start=origin.name, options=options)
        for seed in (0, 1, 2):
            yield stage, Cell(row="at once", bits=2, epochs=len(ORDER) * EPOCHS, seed=seed, **at_rate(FASTER), **common)
            after = None
            for number, bits in enumerate(ORDER, 1):
                last = number == len(ORDER)
                row = "the last of 4, 3, 2" if last else f"number {number} of 4, 3, 2"
                rate = at_rate(FASTER if bits == 2 else RATE)
                cell = Cell(row=row, bits=bits, epochs=EPOCHS, seed=seed, after=after, **rate, **common)
                yield stage, cell
                after = cell.name


TABLE = Table(
    "widths",
    "Widths one after the other (4, 3 and 2 bits, six epochs each) or the last at once (18 epochs)",
    tuple(_cells()),
    reference="at once",
    by_epochs=False,
    note=f"At the learning rate {RATE}, at 2 bits {FASTER}.",
)
