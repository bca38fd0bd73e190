"""Table 5: the remedies for oscillation where it hurts, on MobileNetV2's depthwise blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables.full_precision import MOBILENETV2_FP as ORIGIN
from campaigns.accuracy.tables.table import EPOCHS, Table

_LEAST_SQUARES = ("init_activations", "least-squares")
ROWS: dict[str, tuple[tuple[str, Any], ...]] = {
    "lsq": (),
    "least-squares": (_LEAST_SQUARES,),
    "dampening": (("dampening", 1e-3),),
    "freezing": (("freezing", 0.02),),
    "trs": (("transition_rate", 5e-3),),
}


def _cells() -> Iterator[tuple[int, Cell]]:
    common = dict(table="oscillation", network=ORIGIN.network, epochs=EPOCHS, start=ORIGIN.name)
    for seed in (0, 1, 2):
        for bits in (4, 3):
            for row, options in ROWS.items():
                yield 3, Cell(row=row, bits=bits, seed=seed, options=options, **common)
        yield 3, Cell(row="fp", bits=None, seed=seed, **common)


TABLE = Table(
    "oscillation",
    "Where weights oscillate: depthwise convolutions",
    tuple(_cells()),
    reference="lsq",
    of_weights=True,
    of_statistics=True,
)
