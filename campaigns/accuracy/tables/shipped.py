"""The networks that ship with lowbit as integer networks: trained in that form, so that no tensor stays a float."""

from __future__ import annotations

from collections.abc import Iterator

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables import initialization_resnet20 as resnet20
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.table import Table

EPOCHS = 3
OPTIONS = (("integer_only", True), ("init_activations", "least-squares"))


def _cells() -> Iterator[tuple[int, Cell]]:
    for stage, network, start in ((8, RESNET8.network, RESNET8.name), (0, resnet20.NETWORK, resnet20.START)):
        for bits in (2, 4, 3):
            yield stage, Cell("ship", network, "integer-only", bits, EPOCHS, 0, options=OPTIONS, start=start)


TABLE = Table(
    "ship",
    "The networks that ship",
    tuple(_cells()),
    note="`lowbit.models.load` has them by name. They take few epochs yet: the recipes train for 90. "
    "ResNet-20 starts from the weights of the table above, with what is said there of its validation accuracy.",
)
