"""The networks that everything else starts from, trained from random weights."""

from __future__ import annotations

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.networks import EFFICIENTNET, MOBILENETV2
from campaigns.accuracy.tables.table import Table


def start(network: str, epochs: int) -> Cell:
    """A network in full precision whose weights are kept."""
    return Cell("fp", network, "fp", bits=None, epochs=epochs, seed=0, ships=True)


RESNET8 = start("resnet8", 30)
RESNET20 = start("cifar-resnet20", 40)
EFFICIENTNET_FP = start(EFFICIENTNET, 30)
MOBILENETV2_FP = start(MOBILENETV2, 30)

TABLE = Table(
    "fp",
    "Full precision, from random weights",
    tuple((0, cell) for cell in (RESNET8, RESNET20, EFFICIENTNET_FP, MOBILENETV2_FP)),
    note="`efficientnet` and `mobilenetv2` are small networks of their blocks, for images of 32×32 "
    "(`campaigns/accuracy/networks.py`).",
)
