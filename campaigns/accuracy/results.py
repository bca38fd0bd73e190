"""What the cells gave: a file of JSON lines for each table, a line for each finished cell."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

from campaigns.accuracy.cell import Cell, Given
from lowbit.errors import LowbitError
from lowbit.files import atomic_write, sha256
from lowbit.report import Run
from lowbit.train import TrainConfig
from lowbit.train.tracking import versions

Line = dict[str, Any]

Start = dict[str, str | None]
"""The weights that a cell starts from: `cell`, or None where no cell trained them, and `weights`, their SHA-256."""

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "results" / "accuracy"


def read(folder: Path) -> dict[str, Line]:
    """The results in a folder by the names of their cells.

    Raises:
        LowbitError: a line is not a result, or a cell has two.
    """
    found: dict[str, Line] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for number, text in enumerate(file.read_text().splitlines(), 1):
            try:
                line = json.loads(text)
                name = line["cell"]
            except (ValueError, KeyError, TypeError) as error:
                raise LowbitError(f"{file} line {number}: not a result ({error!r})") from error
            if name in found:
                raise LowbitError(f"{file} line {number}: a second result of {name}; keep one of the two")
            found[name] = line
    return found


def append(folder: Path, line: Line) -> None:
    """Add a result to the file of its table: a killed process leaves the old file or the new one.

    Raises:
        LowbitError: the cell has a result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if line["cell"] in read(folder):
            raise LowbitError(f"{line['cell']}: has a result in {folder}")
        file = folder / f"{line['table']}.jsonl"
        before = file.read_text() if file.exists() else ""
        with atomic_write(file) as temporary:
            temporary.write_text(f"{before}{json.dumps(line, allow_nan=False)}\n")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Within: no other process adds a result."""
    # The folder itself is what is locked, so that no file of locks lies among the results.
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def weights_file(folder: Path, name: str) -> Path:
    """Where the weights of a cell lie that other cells start from."""
    return folder / "weights" / f"{name.replace('/', '-')}.safetensors"


def line_of(cell: Cell, run: Run, *, start: Start | None, weights: Path | None) -> Line:
    """The result of a cell, from the folder of its finished run.

    Args:
        start: the weights it starts from.
        weights: the file of its own weights, where they are kept.
    """
    final = run.final
    seconds = round(sum(epoch["seconds"] for epoch in run.epochs), 1)
    return _identity(cell, run.config, run.versions, start) | {
        "seconds": seconds,
        "test": final["test_accuracy"],
        "validation": final["best_accuracy"],
        "validation_last": final["validation_accuracy"],
        "validation_reestimated": final["reestimated_accuracy"],
        "validation_by_epoch": [epoch["validation_accuracy"] for epoch in run.epochs],
        "train_by_epoch": [epoch["train_accuracy"] for epoch in run.epochs],
        "steps": {
            name: [start_step, run.epochs[-1]["steps"][name]] for name, start_step in run.start_steps.items()
        },
        **_of_weights(run),
        "weights": None if weights is None else sha256(weights),
    }  # fmt: skip


def _of_weights(run: Run) -> Line:
    """By epoch, over all quantized weights: the mean share of codes that a step changes, and the mean error."""
    found: dict[str, list[float]] = {"changed_by_epoch": [], "error_by_epoch": []}
    for epoch in run.epochs:
        looks = [look["quantizers"].values() for look in run.looks if look["epoch"] == epoch["epoch"]]
        weights = [quantizer for look in looks for quantizer in look if "changed" in quantizer]
        if weights:
            for name, means in found.items():
                means.append(round(mean(each[name.partition("_")[0]] for each in weights), 5))
    return found


def diverged_line(cell: Cell, config: TrainConfig, *, start: Start | None, error: str) -> Line:
    """The result of a cell whose training came to NaN or infinity; of its run there may be nothing left."""
    return _identity(cell, config.as_dict(), versions(), start) | {"test": None, "validation": None, "diverged": error}


def _identity(cell: Cell, config: dict[str, Any], used: dict[str, str], start: Start | None) -> Line:
    config = json.loads(json.dumps(config))
    # Where things lay on the machine that trained is of no use to another.
    config["data"]["path"], config["data"]["workers"], config["output"] = "", None, None
    config["model"]["init"] = cell.start.file if isinstance(cell.start, Given) else cell.start
    config["distillation"]["init"] = cell.teacher
    if cell.after is not None:
        config["quantization"]["start"] = cell.after
    return about(cell) | {
        "start": start,
        "commit": commit(),
        "versions": used,
        "config": config,
    }


def about(cell: Cell) -> Line:
    """What a result says of its cell, whatever it gave."""
    return {
        "cell": cell.name,
        "table": cell.table,
        "network": cell.label,
        "row": cell.row,
        "bits": cell.bits,
        "epochs": cell.epochs,
        "seed": cell.seed,
        "command": cell.command,
    }


def commit() -> str | None:
    """The version of the code, with "-dirty" where files differ from it; None outside a repository."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
