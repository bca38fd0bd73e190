"""The networks that ship with lowbit as integer networks: trained in that form, so that no tensor stays a float."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables import initialization_resnet20 as resnet20
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.longer import LONGER
from campaigns.accuracy.tables.table import FASTER, Table, at_rate
from lowbit.models import SHIPPED

OPTIONS = (("integer_only", True), ("init_activations", "least-squares"))
ROWS = {"integer-only": (), "integer-only, distilled": (("task", "distill"),)}
MIXED = ("precision", "bf16")
"""What rows of 40 epochs change: it takes three quarters of the time on a processor that computes with bfloat16."""


def _cells() -> Iterator[tuple[int, Cell]]:
    for network, start in ((resnet20.NETWORK, resnet20.START), (RESNET8.network, RESNET8.name)):
        common = dict(table="ship", network=network, seed=0, start=start)
        for epochs, changes in ((3, ()), (40, (MIXED,))):
            stage = 0 if epochs == 3 else 9
            for row, bits in product(ROWS, (2, 4, 3)):
                yield (
                    stage,
                    Cell(row=row, bits=bits, epochs=epochs, options=OPTIONS, changes=changes + ROWS[row], **common),
                )
            yield stage, Cell(row="fp", bits=None, epochs=epochs, changes=changes, **common)
        # The rate that suits longer trainings better, and the epochs of table "longer".
        for bits in (2, 4, 3):
            cell = Cell(
                row=f"integer-only@{FASTER}", bits=bits, epochs=LONGER, options=OPTIONS, **at_rate(FASTER), **common
            )
            yield 9, cell
        yield 9, Cell(row=f"fp@{FASTER}", bits=None, epochs=LONGER, **at_rate(FASTER), **common)


TABLE = Table(
    "ship",
    "The networks that ship",
    tuple(_cells()),
    note="`lowbit.models.load` has them by name, as integer networks: "
    + ", ".join(f"`{name}` {shipped.test:.2f} %" for name, shipped in SHIPPED.items())
    + ". Those of 40 epochs are trained in mixed precision (bfloat16). "
    "ResNet-20 starts from the weights of the table above, with what is said there of its validation accuracy.",
)
