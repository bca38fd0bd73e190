"""The tables, from recorded results alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from campaigns.accuracy.results import Line
from campaigns.accuracy.tables.table import Table
from lowbit.report import render

FULL_PRECISION = "fp"


def report(tables: Iterable[Table], done: dict[str, Line]) -> str:
    """Every table that has results, as Markdown."""
    parts = []
    for table in tables:
        lines = [done[cell.name] for _, cell in table.cells if cell.name in done]
        if lines:
            note = f"{table.note}\n\n" if table.note else ""
            there = f"{len(lines)} of {len(table.cells)} cells are there."
            parts.append(f"## {table.title}\n\n{note}{there}\n\n{_body(table, lines)}")
    return "\n".join(parts)


def _body(table: Table, lines: Sequence[Line]) -> str:
    """One block for each network and number of epochs, in each the rows of every width."""
    blocks = []
    keys = [(line["network"], line["epochs"] if table.by_epochs else None) for line in lines]
    for network, epochs in dict.fromkeys(keys):
        block = [line for line, key in zip(lines, keys) if key == (network, epochs)]
        groups: dict[tuple[int, str], list[Line]] = {}
        for line in block:
            groups.setdefault((line["bits"] or 32, line["row"]), []).append(line)
        rows = [row(table, key, groups) for key in sorted(groups, key=lambda key: -key[0])]
        budget = f", {epochs} epochs" if table.by_epochs else ""
        blocks.append(f"{network.rpartition(':')[2]}{budget}\n\n{render(rows, markdown=True)}")
    return "\n".join(blocks)


def row(table: Table, key: tuple[int, str], groups: dict[tuple[int, str], list[Line]]) -> dict[str, Any]:
    """What is said of one row at one width.

    Args:
        key: (bits, row).
        groups: the results of all rows by such keys, one for each seed.
    """
    bits, name = key
    mine = groups[key]
    finished = [line for line in mine if line["test"] is not None]
    diverged = len(mine) - len(finished)
    columns = {
        "bits": "FP" if bits == 32 else f"W{bits}A{bits}",
        "row": name,
        "seeds": f"{len(mine)}, {diverged} diverged" if diverged else str(len(mine)),
        "validation %": spread([line["validation"] for line in finished]),
        "test %": spread([line["test"] for line in finished]),
        "test − full precision": difference(mine, groups.get((32, FULL_PRECISION), ())),
    }
    if table.reference is not None:
        columns[f"test − {table.reference}"] = difference(mine, groups.get((bits, table.reference), ()))
    if table.of_weights:
        seen = [line for line in finished if line.get("error_by_epoch")]
        columns["error of weights"] = (
            f"{statistics.mean(line['error_by_epoch'][-1] for line in seen):.3f}" if seen else "-"
        )
        changed = [statistics.mean(line["changed_by_epoch"]) for line in seen]
        columns["codes that change, %"] = f"{100 * statistics.mean(changed):.2f}" if seen else "-"
    if table.of_statistics:
        columns["batch-norm re-estimated − as trained, validation"] = spread(
            [
                line["validation_reestimated"] - line["validation_by_epoch"][-1]
                for line in finished
                if line["validation_reestimated"] is not None
            ],
            sign="+",
        )
    return columns


def spread(values: Sequence[float], *, sign: Literal["+", ""] = "") -> str:
    """Mean and standard deviation; of one value the value."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):{sign}.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def difference(mine: Iterable[Line], others: Iterable[Line]) -> str:
    """The mean difference in test accuracy between runs of the same seeds, with its standard error.

    It is called a difference only where it is larger than its standard error, for which it takes two seeds.
    """
    mine, others = list(mine), list(others)
    pairs = paired(mine, others)
    if not pairs or all(any(line is other for other in others) for line in mine):
        return "-"
    mean = statistics.mean(pairs)
    if len(pairs) == 1:
        return f"{mean:+.2f} (one seed)"
    error = statistics.stdev(pairs) / math.sqrt(len(pairs))
    verdict = "" if abs(mean) > error else ", none"
    return f"{mean:+.2f} ± {error:.2f}{verdict}"


def paired(mine: Iterable[Line], others: Iterable[Line]) -> list[float]:
    """Differences in test accuracy between runs of the same seeds, without those that diverged."""
    other = {line["seed"]: line["test"] for line in others}
    return [
        line["test"] - other[line["seed"]]
        for line in mine
        if line["test"] is not None and other.get(line["seed"]) is not None
    ]
