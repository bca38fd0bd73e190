"""The networks that ship with lowbit as integer networks: trained in that form, so that no tensor stays a float."""

from __future__ import annotations

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.table import Table

EPOCHS = 3
OPTIONS = (("integer_only", True), ("init_activations", "least-squares"))

TABLE = Table(
    "ship",
    "The networks that ship",
    tuple(
        (8, Cell("ship", RESNET8.network, "integer-only", bits, EPOCHS, 0, options=OPTIONS, start=RESNET8.name))
        for bits in (2, 4, 3)
    ),
    note="`lowbit.models.load` has them by name. They take few epochs yet: the recipes train for 90.",
)
