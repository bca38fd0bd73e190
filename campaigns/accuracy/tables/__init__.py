"""The tables, in the order in which they are printed, and the order in which their cells are run."""

from __future__ import annotations

from campaigns.accuracy.cell import Cell
from campaigns.accuracy.tables import (
    ablations,
    augmentation,
    bits,
    full_precision,
    initialization,
    initialization_resnet20,
    longer,
    methods,
    oscillation,
    parts,
    peers,
    rates,
    shipped,
    signed,
    widths,
)
from campaigns.accuracy.tables.table import Table

TABLES: tuple[Table, ...] = (
    full_precision.TABLE,
    initialization.TABLE,
    initialization_resnet20.TABLE,
    shipped.TABLE,
    rates.TABLE,
    methods.TABLE,
    methods.AT_FASTER_RATE,
    longer.TABLE,
    augmentation.TABLE,
    parts.TABLE,
    signed.TABLE,
    ablations.TABLE,
    oscillation.TABLE,
    peers.TABLE,
    widths.TABLE,
    bits.TABLE,
)


def plan(tables: tuple[Table, ...] = TABLES) -> list[Cell]:
    """Every cell, those first that cost least and tell most."""
    return [cell for _, cell in sorted(((s, c) for t in tables for s, c in t.cells), key=lambda entry: entry[0])]
