"""Table 1: the methods, each as published, in one loop from the same weights.

"lg-lsq" has SSG's measured magnitude, which table 2 has settled; without it is what the row was before. "least-squares" is LSQ whose steps of activations start at the least squared error, and "distilled" that with half of the loss
from the network in full precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from campaigns.accuracy.cell import RATE, Cell
from campaigns.accuracy.tables.full_precision import RESNET8, RESNET20
from campaigns.accuracy.tables.table import EPOCHS, FASTER, Table, at_rate
from lowbit.quantizer.methods import lg_lsq
from lowbit.train import DistillationConfig

_LEAST_SQUARES = (("init_activations", "least-squares"),)
ROWS: dict[str, dict[str, Any]] = {
    "lsq": {},
    "lsq+": {"method": "lsq+"},
    "lg-lsq": {"method": "lg-lsq"},
    "lg-lsq, no magnitude": {"method": replace(lg_lsq(balance=None), name="campaign:lg-lsq-no-magnitude")},
    "least-squares": {"options": _LEAST_SQUARES},
    "distilled": {"options": _LEAST_SQUARES, "changes": (("task", "distill"),)},
    "minmax": {"method": "minmax"},
    "dorefa": {"method": "dorefa"},
    "pact": {"method": "pact"},
    "ewgs": {"method": "ewgs"},
    "dsq": {"method": "dsq"},
    "lsq, dampening": {"options": (("dampening", 1e-3),)},
    "lsq, freezing": {"options": (("freezing", 0.02),)},
    "lsq, trs": {"options": (("transition_rate", 5e-3),)},
}
"""What a row changes of the recipe."""
_TEACHER = DistillationConfig(RESNET20.network, RESNET20.name, temperature=4.0, share=0.9)
"""85.67 % on the test images, and it has not seen the images that are held out."""
TAUGHT = {"options": _LEAST_SQUARES, "changes": (("task", "distill"), ("distillation", _TEACHER))}
"""A row that distils from a larger network."""
FOREMOST = ("lsq", "lsq+", "lg-lsq", "least-squares", "distilled")
"""Rows that are there on ResNet-20 too, and with 4 bits at the faster rate."""
STAGES = (
    (1, RESNET8, (0, 1, 2), tuple(ROWS)),
    (5, RESNET20, (0, 1, 2), FOREMOST),
    (8, RESNET8, (3, 4), tuple(ROWS)),
)
"""(stage, where from, seeds, rows)"""


def _cells() -> Iterator[tuple[int, Cell]]:
    for stage, origin, seeds, rows in STAGES:
        common = dict(table="methods", network=origin.network, epochs=EPOCHS, start=origin.name)
        for bits in (2, 4, 3):
            for row in rows:
                for seed in seeds:
                    yield stage, Cell(row=row, bits=bits, seed=seed, **ROWS[row], **common)
        for seed in seeds:
            yield stage, Cell(row="fp", bits=None, seed=seed, **common)


def _faster_cells() -> Iterator[tuple[int, Cell]]:
    common = dict(table="faster", network=RESNET8.network, epochs=EPOCHS, start=RESNET8.name)
    for seed in (0, 1, 2):
        for bits in (2, 3, 4):
            for row, changed in ROWS.items():
                if bits < 4 or row in FOREMOST:
                    yield 1, Cell(row=row, bits=bits, seed=seed, **at_rate(FASTER, changed), **common)
        yield 1, Cell(row="taught by ResNet-20", bits=2, seed=seed, **at_rate(FASTER, TAUGHT), **common)
        yield 1, Cell(row="fp", bits=None, seed=seed, **at_rate(FASTER), **common)


TABLE = Table(
    "methods",
    "Methods",
    tuple(_cells()),
    reference="lsq",
    note="Results of `lg-lsq` at 3 and 4 bits are from when steps of 8 bits were balanced too. `minmax`, `dorefa` and `pact` have weights on the library's signed grid, whose step reaches max|w|: at 2 bits it has the "
    "levels −2, −1, 0 and 1, where the papers' four lie symmetrically without a zero. Their figures at 2 bits are those of that grid.",
)

AT_FASTER_RATE = Table(
    "faster",
    f"Methods at the learning rate {FASTER} instead of {RATE}",
    tuple(_faster_cells()),
    reference="lsq",
    note="A method's gain at a learning rate that does not suit LSQ proves nothing.",
)
