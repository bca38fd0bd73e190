"""What bits chosen within a budget (`lowbit.allocate`) reach by training, beside the same bits for all layers.

Inputs of layers have 4 bits in every row. A row "uniform-N" has N-bit weights; any other row has at most the bytes that its
name says, by rules of `python -m campaigns.allocation`: "allocated-…" by gradients, "measured-…" and "learned-…" by the
sensitivities of these names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from torch import nn

import lowbit
from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.initialization_resnet20 import NETWORK as RESNET20
from campaigns.accuracy.tables.initialization_resnet20 import START
from campaigns.accuracy.tables.table import EPOCHS, Table
from lowbit import models

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"
FOLDER = RESULTS / "allocation"
CHOICES = (2, 3, 4, 5, 6, 8)
ROWS = {"gradients": "allocated", "measured": "measured", "learned": "learned"}
"""What rows are called, by the sensitivity of their rules."""
NETWORKS: dict[str, Callable[[Path], Path]] = {
    RESNET8.network: lambda _: RESULTS / "accuracy" / "weights" / f"{RESNET8.name.replace('/', '-')}.safetensors",
    RESNET20: lambda given: given / START.file,
}
"""The networks, and where their weights in full precision lie, by the folder of those that are given."""


@cache
def weight_bytes(network: str, bits: int) -> int:
    """Bytes of the weights at one width, the first and the last layer at 8 bits."""
    return bytes_of(lowbit.prepare(models.create(network), weights=bits, activations=4))


def bytes_of(model: nn.Module) -> int:
    """Bytes of a prepared network's quantized weights."""
    return sum(-(-row.size_bits // 8) for row in lowbit.layer_table(model))


def budgets(network: str) -> dict[str, float]:
    """Bytes of weights, by the name of the row."""
    return {
        "as-w2.5": (weight_bytes(network, 2) + weight_bytes(network, 3)) / 2,
        "as-w3": weight_bytes(network, 3),
        "80-of-w4": 0.8 * weight_bytes(network, 4),
    }


def rules_file(network: str, row: str) -> Path:
    """Where the rules of a row lie."""
    return FOLDER / f"{network}-{row}.json"


def _cells() -> Iterator[tuple[int, Cell]]:
    for seed in (0, 1, 2):
        for stage, network, start in ((6, RESNET8.network, RESNET8.name), (7, RESNET20, START)):
            common = dict(table="bits", network=network, bits=4, epochs=EPOCHS, seed=seed, start=start)
            for bits in (3, 4, 2):
                yield stage, Cell(row=f"uniform-{bits}", options=(("weights", bits),), **common)
            for row in (f"{kind}-{budget}" for budget in ("as-w3", "80-of-w4", "as-w2.5") for kind in ROWS.values()):
                file = rules_file(network, row)
                rules = tuple(json.loads(file.read_text())) if file.exists() else ()
                waiting = None if rules else "python -m campaigns.allocation has not been run"
                yield stage, Cell(row=row, options=(("rules", rules),), waiting=waiting, **common)


TABLE = Table(
    "bits",
    "Bits of weights within a budget (activations have 4 bits)",
    tuple(_cells()),
    reference="uniform-4",
    note="Rules and expected losses: [allocation/](allocation/allocation.csv).",
)
