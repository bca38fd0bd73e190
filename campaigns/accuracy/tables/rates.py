"""The learning rate, by width: what every comparison of methods stands on."""

from __future__ import annotations

from collections.abc import Iterator

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables import initialization_resnet20 as resnet20
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.initialization import options
from campaigns.accuracy.tables.table import EPOCHS, Table, at_rate

RATES = (0.02, 0.05, 0.1, 0.2)


def _cells() -> Iterator[tuple[int, Cell]]:
    common = dict(table="rates", network=RESNET8.network, epochs=EPOCHS, start=RESNET8.name)
    for seed in (0, 1, 2):
        for bits in (2, 3, 4, None):
            for rate in RATES:
                row = f"lr {rate}" if bits else f"fp, lr {rate}"
                yield 1, Cell(row=row, bits=bits, seed=seed, **at_rate(rate), **common)
    start = options("least-squares+lsq")
    common = dict(table="rates", network=resnet20.NETWORK, epochs=3, seed=0, start=resnet20.START, options=start)
    for bits in (2, 3, 4):
        for rate in RATES:
            yield 1, Cell(row=f"lr {rate}", bits=bits, **at_rate(rate), **common)


TABLE = Table(
    "rates",
    "The learning rate, by width (LSQ; on ResNet-20 activations' steps start by least squares)",
    tuple(_cells()),
    reference="lr 0.02",
    note="From trained weights: in full precision too (`fp`), each rate tells what so long a training at it costs or brings.",
)
