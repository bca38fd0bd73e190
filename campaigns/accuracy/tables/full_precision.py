"""The networks that everything else starts from, trained from random weights."""

from __future__ import annotations

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables.table import Table


def start(network: str, epochs: int) -> Cell:
    """A network in full precision whose weights are kept."""
    return Cell("fp", network, "fp", bits=None, epochs=epochs, seed=0, ships=True)


RESNET8 = start("resnet8", 30)
RESNET20 = start("cifar-resnet20", 60)

TABLE = Table("fp", "Full precision, from random weights", ((0, RESNET8), (9, RESNET20)))
