"""Runs side by side, as rows and as text."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from lowbit._table import padded
from lowbit.report.run import Run, read_run


def table(runs: Iterable[str | os.PathLike | Run]) -> list[dict[str, Any]]:
    """One row per run, as a dictionary by columns.

    The columns are run (folder name), model, bits ("W4A4", "FP"), method ("-" in full precision), seed, accuracy (test,
    percent, of the weights at the end, or of those with the best validation accuracy; of the last epoch where the run
    is not finished), best (test accuracy of the best epoch or the end), epochs ("3/90" where not finished), seconds (of
    all epochs), seconds_per_epoch (median).

    What a run does not have (no epoch finished) is None.

    Raises:
        LowbitError: a folder holds no run; see `read_run`.
    """
    return [_row(run if isinstance(run, Run) else read_run(run)) for run in runs]


def _row(run: Run) -> dict[str, Any]:
    config = run.config
    quantization = config.get("quantization")
    accuracies = [_number(epoch.get("test_accuracy")) for epoch in run.epochs]
    if run.final is not None:
        accuracies.append(_number(run.final.get("test_accuracy")))
    seconds = [s for epoch in run.epochs if (s := _number(epoch.get("seconds"))) is not None]
    planned = config.get("epochs")
    return {
        "run": run.path.resolve().name,
        "model": (config.get("model") or {}).get("name"),
        "bits": _bits(quantization),
        "method": quantization.get("method") if quantization else "-",
        "seed": config.get("seed"),
        "accuracy": accuracies[-1] if accuracies else None,
        "best": max((a for a in accuracies if a is not None), default=None),
        "epochs": f"{len(run.epochs)}" if planned in (None, len(run.epochs)) else f"{len(run.epochs)}/{planned}",
        "seconds": sum(seconds) if seconds else None,
        "seconds_per_epoch": statistics.median(seconds) if seconds else None,
    }


def _bits(quantization: dict[str, Any] | None) -> str:
    if not quantization:
        return "FP"
    weights, activations = quantization.get("weights"), quantization.get("activations")
    return f"W{weights or 32}A{activations or 32}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def render(rows: Sequence[dict[str, Any]], *, markdown: bool = False) -> str:
    """Rows of equal keys as text: aligned columns, or a Markdown table. Numbers stand to the right.

    Floats have two decimals (seconds one); None is a dash. Ends with a newline; no rows give an empty string.
    """
    if not rows:
        return ""
    columns = list(rows[0])
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    if markdown:
        cells = [[text.replace("|", "\\|") for text in row] for row in cells]
    left = [i for i, c in enumerate(columns) if not all(isinstance(row.get(c), int | float | None) for row in rows)]
    heads, *body = padded([[column.replace("_", " ") for column in columns], *cells], left)
    if not markdown:
        return "".join(f"{'  '.join(line).rstrip()}\n" for line in (heads, ["-" * len(h) for h in heads], *body))
    rule = ["-" * len(head) if i in left else "-" * (len(head) - 1) + ":" for i, head in enumerate(heads)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, rule, *body))


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if column.startswith("seconds") else f"{value:.2f}"
    return str(value)
