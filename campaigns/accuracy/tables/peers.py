"""Table 6: the quantizers of others in the same loop, from the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from campaigns.accuracy.cell import RATE, Cell
from campaigns.accuracy.peers import LIBRARIES, START, name_of
from campaigns.accuracy.tables.full_precision import RESNET8
from campaigns.accuracy.tables.table import EPOCHS, FASTER, Table, at_rate
from lowbit.recipes.cifar10 import low_bit

assert RESNET8.name == START


def _cells() -> Iterator[tuple[int, Cell]]:
    for seed in (0, 1, 2):
        for bits in (2, 4):
            for rate in (RATE, FASTER) if bits == 2 else (RATE,):
                for cell in _rows(rate, table="peers", bits=bits, epochs=EPOCHS, seed=seed):
                    yield 4, cell


def _rows(rate: float, *, bits: int, **common: Any) -> Iterator[Cell]:
    """Each library's row and ours, at a learning rate."""
    suffix = "" if rate == RATE else f"@{rate}"
    ours = dict(network=RESNET8.network, start=RESNET8.name, bits=bits, **at_rate(rate))
    yield Cell(row=f"lsq{suffix}", **ours, **common)
    yield Cell(row=f"least-squares{suffix}", options=(("init_activations", "least-squares"),), **ours, **common)
    like = low_bit("", RESNET8.network, weights=bits, activations=bits)
    recipe = (
        ("optimizer", replace(like.optimizer, lr=rate)),
        ("schedule", like.schedule),
        ("bn_batches", like.bn_batches),
    )
    for library in LIBRARIES:
        missing = library == "brevitas" and find_spec("brevitas") is None
        yield Cell(
            row=library + suffix,
            network=name_of(library, bits),
            shown_as=RESNET8.network,
            changes=(*recipe, ("compile", False)) if library == "brevitas" else recipe,
            bits=bits,
            waiting="Brevitas is not installed" if missing else None,
            **common,
        )


TABLE = Table(
    "peers",
    "The quantizers of others, in the same loop",
    tuple(_cells()),
    reference="lsq",
    note="By which quantizers and formulas: `campaigns/accuracy/peers.py`. Brevitas' row needs Brevitas (0.13.4 here), and runs uncompiled. "
    f"Rows with @{FASTER} have that learning rate, those without {RATE}.",
)
