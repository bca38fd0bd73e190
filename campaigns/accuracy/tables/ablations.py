"""Table 4: the choices that LSQ is made of, one changed at a time, at W2A2 and the learning rate that suits LSQ there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.table import EPOCHS, FASTER, Table, at_rate
from lowbit import METHODS, Method
from lowbit.quantizer.step import StepGradient, lsq_scale, size_scale, unit_scale


def times_ten(sharing: int, qp: int) -> float:
    """g = 10/√(N·Qp)."""
    return 10 * lsq_scale(sharing, qp)


def tenth(sharing: int, qp: int) -> float:
    """g = 0.1/√(N·Qp)."""
    return 0.1 * lsq_scale(sharing, qp)


def _scaled(scale: Callable[[int, int], float]) -> Method:
    return replace(METHODS["lsq"], name=f"campaign:g-{scale.__name__}", step_gradient=StepGradient(scale=scale))


ROWS: dict[str, dict[str, Any]] = {
    "lsq": {},
    "g = 1/√N": {"method": _scaled(size_scale)},
    "g = 1": {"method": _scaled(unit_scale)},
    "g × 10": {"method": _scaled(times_ten)},
    "g ÷ 10": {"method": _scaled(tenth)},
    "step decay": {"changes": (("schedule.kind", "step"), ("schedule.step_epochs", -(-EPOCHS // 3)))},
    "weight decay 1e-4": {"changes": (("optimizer.weight_decay", 1e-4),)},
    "no weight decay": {"changes": (("optimizer.weight_decay", 0.0),)},
    "distilled": {"changes": (("task", "distill"),)},
    "per channel": {"options": (("granularity", "channel"),)},
    "least-squares": {"options": (("init_activations", "least-squares"),)},
}


def _cells() -> Iterator[tuple[int, Cell]]:
    common = dict(table="ablations", network=RESNET8.network, bits=2, epochs=EPOCHS, start=RESNET8.name)
    for row, changed in ROWS.items():
        for seed in (0, 1, 2):
            yield 4, Cell(row=row, seed=seed, **at_rate(FASTER, changed), **common)


TABLE = Table(
    "ablations",
    f"What LSQ is made of, one choice changed at a time, at the learning rate {FASTER}",
    tuple(_cells()),
    reference="lsq",
)
