"""Table 3: what an offset buys where activations go negative (LSQ+'s claim), on EfficientNet's blocks with SiLU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables.full_precision import EFFICIENTNET_FP as ORIGIN
from campaigns.accuracy.tables.table import EPOCHS, Table
from lowbit import METHODS, Method

_LSQ = METHODS["lsq"]
ROWS: dict[str, str | Method] = {
    "lsq, unsigned": replace(_LSQ, name="campaign:lsq-unsigned", activations=replace(_LSQ, signed=False)),
    "lsq": "lsq",
    "lsq, least-squares": "lsq",
    "lsq+1": "lsq+1",
    "lsq+2": "lsq+2",
    "lsq+3": "lsq+3",
    "lsq+4": "lsq+4",
    "lsq+": "lsq+",
}


def _cells() -> Iterator[tuple[int, Cell]]:
    common = dict(table="signed", network=ORIGIN.network, epochs=EPOCHS, start=ORIGIN.name)
    for seed in (0, 1, 2):
        for bits in (2, 4):
            for row, method in ROWS.items():
                options = (("init_activations", "least-squares"),) if row.endswith("least-squares") else ()
                yield 3, Cell(row=row, bits=bits, seed=seed, method=method, options=options, **common)
        yield 3, Cell(row="fp", bits=None, seed=seed, **common)


TABLE = Table(
    "signed",
    "Activations that go negative: LSQ and LSQ+ on SiLU",
    tuple(_cells()),
    reference="lsq, unsigned",
    note="`lsq` takes a signed grid where a layer's input goes negative; `lsq, unsigned` never does, and cuts negative values off: "
    "the tail of SiLU, and half of what a block without an activation at its end hands to the next.",
)
