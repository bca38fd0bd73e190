"""Table 2: what the parts of LG-LSQ and the remedies for oscillation buy over LSQ, each alone, at two learning rates.

A gradient estimator's gain over a learning rate that does not suit LSQ proves nothing (arXiv 2405.05171), so every row is
there at both rates. Which of the two is a row's is chosen by validation accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.table import EPOCHS, Table
from lowbit import METHODS, Balance, Method
from lowbit.quantizer import methods
from lowbit.quantizer.initialization import least_squares_init
from lowbit.quantizer.rounding import asr
from lowbit.quantizer.step import StepGradient, soft_value_inside

_LSQ = METHODS["lsq"]
lg_lsq = partial(methods.lg_lsq, balance=None)
_SOFT = StepGradient(inside=soft_value_inside(2.0))

_LEAST_SQUARES = {"init_activations": least_squares_init}

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
    "lg-lsq, no magnitude": lg_lsq(),
    "lg-lsq": METHODS["lg-lsq"],
    "least-squares": _LSQ.varied(**_LEAST_SQUARES),
    "least-squares, asr-activations": replace(
        _LSQ.varied(**_LEAST_SQUARES), activations=replace(_LSQ, init=least_squares_init, surrogate_gradient=asr(2.0))
    ),
    "least-squares, mde": lg_lsq(ssg=False, asr_k=None).varied(**_LEAST_SQUARES),
    "least-squares, ssg-value": replace(_LSQ, step_gradient=_SOFT).varied(**_LEAST_SQUARES),
    "least-squares, ssg-magnitude": _LSQ.varied(balance=Balance(), **_LEAST_SQUARES),
    "least-squares, lg-lsq, no magnitude": lg_lsq().varied(**_LEAST_SQUARES),
    "least-squares, lg-lsq": METHODS["lg-lsq"].varied(**_LEAST_SQUARES),
}
"""What a row quantizes with."""
REMEDIES: dict[str, tuple[tuple[str, Any], ...]] = {
    "dampening": (("dampening", 1e-3),),
    "freezing": (("freezing", 0.02),),
    "trs": (("transition_rate", 5e-3),),
}
"""LSQ with fields of `QuantizationConfig`."""
ADAM = ("lsq", "asr-weights", "asr-activations", "mde", "ssg-value", "ssg-magnitude", "lg-lsq", "least-squares")
"""Rows that are there with Adam too."""
STAGES = ((2, "sgd", 0.02), (6, "adam", 0.0005), (7, "sgd", 0.05))
"""(stage, optimizer, learning rate)"""


def _cells() -> Iterator[tuple[int, Cell]]:
    common = dict(table="parts", network=RESNET8.network, epochs=EPOCHS, start=RESNET8.name)
    for stage, optimizer, lr in STAGES:
        changes = (("optimizer.name", optimizer), ("optimizer.lr", lr))
        suffix = f"@{lr}" if optimizer == "sgd" else f"@{optimizer}"
        for bits in (2, 3):
            for row, method in ROWS.items():
                named = replace(method, name=f"campaign:{row}")
                for seed in (0, 1, 2) if optimizer == "sgd" or row in ADAM else ():
                    yield stage, Cell(row=row + suffix, bits=bits, seed=seed, changes=changes, method=named, **common)
            for row, options in REMEDIES.items() if optimizer == "sgd" else ():
                for seed in (0, 1, 2):
                    yield (
                        stage,
                        Cell(row=row + suffix, bits=bits, seed=seed, changes=changes, options=options, **common),
                    )
        for seed in (0, 1, 2):
            yield stage, Cell(row="fp" + suffix, bits=None, seed=seed, changes=changes, **common)


TABLE = Table(
    "parts",
    "What the parts of LG-LSQ (reconstructed) and the remedies for oscillation buy, by learning rate",
    tuple(_cells()),
    reference="lsq@0.02",
    note="The error of weights is ‖ŵ − w‖/‖w‖ in the last epoch, the codes that change are the share that a step of the optimizer changes, over all "
    "of training; both are means over tensors, of the runs that recorded them. Results of `ssg-magnitude` and its variants, and "
    "of `lg-lsq` at W3A3 and 0.02, are from when steps of 8 bits were balanced too.",
    of_weights=True,
)
