"""Table 0 on ResNet-20, its corners alone, from weights that are given."""

from __future__ import annotations

from collections.abc import Iterator

from campaigns.accuracy.cell import Cell, Given
from campaigns.accuracy.tables.initialization import options
from campaigns.accuracy.tables.table import Table

NETWORK = "cifar-resnet20"
START = Given("resnet20-jpeg.safetensors", "513972532a4f55ac91f4c7a38ef4d028f5488e7d8e50bb960e9c61f6a218bbcf")
ROWS = ("lsq+lsq", "least-squares+lsq", "lsq+lsq,balanced", "least-squares+lsq,balanced")
FULL_PRECISION = 87.87
"""Top-1 of those weights on the test images, in percent."""
NOTE = (
    f"From `{START.file}` (SHA-256 {START.sha256[:12]}…), {FULL_PRECISION} % in full precision on the test images. All 50,000 "
    "training images took part in its training, and with them the 5,000 held out here: validation accuracy is higher than "
    "on images the network has not seen, and tells little between rows. No test image took part in any training."
)


def _cells() -> Iterator[tuple[int, Cell]]:
    for stage, seed in ((0, 0), (1, 1), (3, 2)):
        common = dict(table="init20", network=NETWORK, epochs=3, seed=seed, start=START)
        for row in ROWS:
            yield stage, Cell(row=row, bits=2, options=options(row), **common)
        yield stage, Cell(row="fp", bits=None, **common)


TABLE = Table(
    "init20",
    "Where steps are initialized, and how fast they learn, on ResNet-20",
    tuple(_cells()),
    reference="lsq+lsq",
    note=NOTE,
)
