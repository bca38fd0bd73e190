"""How far training images are padded before they are cropped, which a training can be too short for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from campaigns.accuracy.cell import CIFAR10, Cell
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.longer import LONGER
from campaigns.accuracy.tables.methods import ROWS, TAUGHT
from campaigns.accuracy.tables.table import EPOCHS, FASTER, Table, at_rate

PADDED = "padded by 4"
DATA = {
    PADDED: CIFAR10,
    "padded by 2": replace(CIFAR10, crop_padding=2),
    "not padded": replace(CIFAR10, crop_padding=0),
}
LESSONS = {EPOCHS: {"": {}}, LONGER: {"": {}, ", taught by ResNet-20": TAUGHT}}
"""What else rows change, and what they are called beside how images are padded, by epochs."""


def _cells() -> Iterator[tuple[int, Cell]]:
    for stage, epochs in ((1, EPOCHS), (2, LONGER)):
        common = dict(table="augmentation", network=RESNET8.network, epochs=epochs, start=RESNET8.name)
        for seed in (0, 1, 2):
            for padded, data in DATA.items():
                for lesson, taught in LESSONS[epochs].items():
                    changed = {"data": data, **taught}
                    for bits in (2, 3, 4):
                        low_bit = at_rate(FASTER, {**ROWS["least-squares"], **changed})
                        yield stage, Cell(row=padded + lesson, bits=bits, seed=seed, **low_bit, **common)
                    in_full = f"fp{lesson}" if padded == PADDED else f"fp, {padded}{lesson}"
                    yield stage, Cell(row=in_full, bits=None, seed=seed, **at_rate(FASTER, changed), **common)


TABLE = Table(
    "augmentation",
    f"How training images are augmented, at the learning rate {FASTER}",
    tuple(_cells()),
    reference=PADDED,
    note="An image is flipped or not, and a part of its own size is cut out at random from the image with so many black pixels on each "
    "side (`data.crop_padding`). In the other tables it is padded by 4, as is usual.",
)
