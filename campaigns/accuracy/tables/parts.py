"""Table 2: what the parts of LG-LSQ and the remedies for oscillation buy over LSQ, each alone, at two learning rates.

A gradient estimator's gain over a learning rate that does not suit LSQ proves nothing (arXiv 2405.05171), so every row is
there at both rates. Which of the two is a row's is chosen by validation accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.table import Table
from lowbit import METHODS, Balance, Method
from lowbit.quantizer.methods import lg_lsq
from lowbit.quantizer.rounding import asr
from lowbit.quantizer.step import StepGradient, soft_value_inside

_LSQ = METHODS["lsq"]
_SOFT = StepGradient(inside=soft_value_inside(2.0))

ROWS: dict[str, Method] = {
    "lsq": _LSQ,
    "asr-weights": lg_lsq(ssg=False, mde_delta=None),
    "asr-activations": replace(_LSQ, activations=replace(_LSQ, surrogate_gradient=asr(2.0))),
    "asr-both": replace(_LSQ, surrogate_gradient=asr(2.0)),
    "asr5-weights": lg_lsq(ssg=False, asr_k=5.0, mde_delta=None),
    "mde": lg_lsq(ssg=False, asr_k=None),
    "ssg-slope": lg_lsq(mde_delta=None),
    "ssg-value": replace(_LSQ, step_gradient=_SOFT),
    "ssg-magnitude": _LSQ.varied(balance=Balance()),
    "ssg-magnitude-own": _LSQ.varied(balance=Balance(against="own")),
    "ssg-magnitude-annealed": _LSQ.varied(balance=Balance(final=0.1)),
    "lg-lsq": METHODS["lg-lsq"],
    "lg-lsq-magnitude": lg_lsq(balance=Balance()),
}
"""What a row quantizes with."""
REMEDIES: dict[str, tuple[tuple[str, Any], ...]] = {
    "dampening": (("dampening", 1e-3),),
    "freezing": (("freezing", 0.02),),
    "trs": (("transition_rate", 5e-3),),
}
"""LSQ with fields of `QuantizationConfig`."""
RATES = (0.02, 0.05)
STAGES = ((12, 3, (0, 1, 2)), (13, 3, (3, 4)), (14, 10, (0, 1, 2)))
"""(stage, epochs, seeds)"""


def _cells() -> Iterator[tuple[int, Cell]]:
    for stage, epochs, seeds in STAGES:
        for seed in seeds:
            common = dict(table="parts", network=RESNET8.network, epochs=epochs, seed=seed, start=RESNET8.name)
            for lr in RATES:
                yield stage, Cell(row=f"fp@{lr}", bits=None, lr=lr, **common)
                for bits in (2, 3):
                    for row, method in ROWS.items():
                        named = replace(method, name=f"campaign:{row}")
                        yield stage, Cell(row=f"{row}@{lr}", bits=bits, lr=lr, method=named, **common)
                    for row, options in REMEDIES.items():
                        yield stage, Cell(row=f"{row}@{lr}", bits=bits, lr=lr, options=options, **common)


TABLE = Table(
    "parts",
    "What the parts of LG-LSQ (reconstructed) and the remedies for oscillation buy, by learning rate",
    tuple(_cells()),
    reference=f"lsq@{RATES[0]}",
)
