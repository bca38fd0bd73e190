"""The networks that ship with lowbit as integer networks: trained in that form, so that no tensor stays a float."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables import initialization_resnet20 as resnet20
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.longer import LONGER
from campaigns.accuracy.tables.methods import TAUGHT
from campaigns.accuracy.tables.table import FASTER, Table, at_rate
from lowbit.models import SHIPPED

OPTIONS = (("integer_only", True), ("init_activations", "least-squares"))
_TAUGHT = "integer-only, taught by ResNet-20"
ROWS = {
    "integer-only": (),
    "integer-only, distilled": (("task", "distill"),),
    _TAUGHT: TAUGHT["changes"],
}
_OF_BOTH = ("integer-only", "integer-only, distilled")
BUDGETS: tuple[tuple[int, int, str, tuple[tuple[str, Any], ...], tuple[str, ...]], ...] = (
    (0, 3, "", (), _OF_BOTH),
    # Mixed precision takes three quarters of the time on a processor that computes with bfloat16.
    (9, 40, "", (("precision", "bf16"),), _OF_BOTH),
    # The rate that suits longer trainings better, and the epochs of table "longer".
    (9, LONGER, f"@{FASTER}", at_rate(FASTER)["changes"], ("integer-only", _TAUGHT)),
)
"""(stage, epochs, what rows are called beside their name, what all of them change of the recipe, rows)"""


def _cells() -> Iterator[tuple[int, Cell]]:
    for stage, epochs, suffix, common_changes, rows in BUDGETS:
        for network, start in ((resnet20.NETWORK, resnet20.START), (RESNET8.network, RESNET8.name)):
            common = dict(table="ship", network=network, epochs=epochs, seed=0, start=start)
            for row in rows:
                if row == _TAUGHT and network == resnet20.NETWORK:
                    continue
                for bits in (2, 4, 3):
                    changes = common_changes + ROWS[row]
                    yield stage, Cell(row=row + suffix, bits=bits, options=OPTIONS, changes=changes, **common)
            yield stage, Cell(row=f"fp{suffix}", bits=None, changes=common_changes, **common)


TABLE = Table(
    "ship",
    "The networks that ship",
    tuple(_cells()),
    note="`lowbit.models.load` has them by name, as integer networks: "
    + ", ".join(f"`{name}` {shipped.test:.2f} %" for name, shipped in SHIPPED.items())
    + ". Those of 40 epochs are trained in mixed precision (bfloat16). "
    "ResNet-20 starts from the weights of the table above, with what is said there of its validation accuracy.",
)
