"""What a table is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from campaigns.accuracy.cell import Cell

EPOCHS = 6
"""The budget of every row where methods, parts and choices are compared."""
FASTER = 0.05
"""The learning rate that suits LSQ at 2 bits (table "rates"); the other is `cell.RATE`."""


def at_rate(rate: float, changed: Mapping[str, Any] = {}) -> dict[str, Any]:
    """What a row changes of the recipe, and the learning rate: fields of `Cell`."""
    return {**changed, "changes": (*changed.get("changes", ()), ("optimizer.lr", rate))}


@dataclass(frozen=True)
class Table:
    """Cells that are compared with each other.

    Attributes:
        name: of its file of results.
        title: what it shows.
        cells: (stage, cell). Cells of an earlier stage are run before those of a later one, whatever their table;
            within a stage their order here counts.
        reference: the row that others are compared with, or None.
        of_weights: the discretization error of weights, and how many codes change, are columns of it.
        of_statistics: what re-estimating the statistics of batch-norm changed of the validation accuracy is a column.
        by_epochs: runs are compared with those of as many epochs alone.
        note: what the reader has to know of it beside what the page says of all tables.
    """

    name: str
    title: str
    cells: tuple[tuple[int, Cell], ...]
    reference: str | None = None
    note: str = ""
    of_weights: bool = False
    of_statistics: bool = False
    by_epochs: bool = True
