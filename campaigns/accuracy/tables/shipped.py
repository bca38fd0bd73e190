"""The networks that ship with lowbit as integer networks: trained in that form, so that no tensor stays a float."""

from __future__ import annotations

from collections.abc import Iterator

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables import initialization_resnet20 as resnet20
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.table import Table

EPOCHS = ((0, 3), (9, 40))
"""(stage, epochs)"""
OPTIONS = (("integer_only", True), ("init_activations", "least-squares"))
ROWS = {"integer-only": (), "integer-only, distilled": (("task", "distill"),)}


def _cells() -> Iterator[tuple[int, Cell]]:
    for stage, epochs in EPOCHS:
        for network, start in ((resnet20.NETWORK, resnet20.START), (RESNET8.network, RESNET8.name)):
            common = dict(table="ship", network=network, epochs=epochs, seed=0, start=start)
            for row, changes in ROWS.items():
                for bits in (2, 4, 3):
                    yield stage, Cell(row=row, bits=bits, options=OPTIONS, changes=changes, **common)
            yield stage, Cell(row="fp", bits=None, **common)


TABLE = Table(
    "ship",
    "The networks that ship",
    tuple(_cells()),
    note="`lowbit.models.load` has them by name. They take few epochs yet: the recipes train for 90. "
    "ResNet-20 starts from the weights of the table above, with what is said there of its validation accuracy.",
)
