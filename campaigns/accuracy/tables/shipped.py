"""The networks that ship with lowbit as integer networks: trained in that form, so that no tensor stays a float."""

from __future__ import annotations

from collections.abc import Iterator

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables.full_precision import RESNET8, RESNET20
from campaigns.accuracy.tables.table import Table

EPOCHS = 40
OPTIONS = (("integer_only", True), ("init_activations", "least-squares"))
ROWS = {"integer-only": (), "integer-only, distilled": (("task", "distill"),)}


def _cells() -> Iterator[tuple[int, Cell]]:
    for origin in (RESNET20, RESNET8):
        common = dict(table="ship", network=origin.network, epochs=EPOCHS, seed=0, start=origin.name)
        for row, changes in reversed(ROWS.items()):
            for bits in (2, 4, 3):
                yield 0, Cell(row=row, bits=bits, options=OPTIONS, changes=changes, ships=True, **common)
        yield 0, Cell(row="fp", bits=None, **common)


TABLE = Table(
    "ship",
    "The networks that ship",
    tuple(_cells()),
    note="`lowbit.models.load` has them by name: of each width the row with the higher validation accuracy.",
)
