"""From a cell to its result."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from campaigns.accuracy import results
from campaigns.accuracy.cell import Cell, Given, in_methods
from campaigns.accuracy.twins import Twins
from lowbit import train
from lowbit.errors import LowbitError
from lowbit.report import read_run
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.trainer import CALMER


@dataclass(frozen=True)
class Places:
    """Where a campaign reads and writes; `given` is the folder of the weights that no cell trains."""

    data: str
    runs: Path
    results: Path
    given: Path | None = None


def state(cell: Cell, done: dict[str, results.Line], runs: Path) -> str:
    """What is there of a cell, for the reader."""
    if cell.name in done:
        line = done[cell.name]
        return "diverged" if line["test"] is None else f"test {line['test']:.2f} %"
    if cell.waiting is not None:
        return f"waits: {cell.waiting}"
    folder = runs / cell.name
    if Checkpoints(folder).exists:
        return f"{len(read_run(folder).epochs)} of {cell.epochs} epochs"
    return "missing"


def run(cells: Sequence[Cell], places: Places, twins: Twins) -> None:
    """Run the cells that have no result, nor a twin that has one, in their order; record each as soon as it is finished.

    Raises:
        LowbitError: a cell can't be run; those before it are recorded.
    """
    twins.record(cells, places.results)
    for number, cell in enumerate(cells, 1):
        if cell.name in results.read(places.results) or cell.waiting is not None:
            continue
        print(f"\n{cell.name} ({number} of {len(cells)})", flush=True)
        line = run_cell(cell, places, places.runs / cell.name)
        results.append(places.results, line)
        twins.record([cell], places.results)


def run_again(cells: Sequence[Cell], places: Places) -> None:
    """Run the cells from scratch and print what they gave beside what is recorded; record nothing.

    Raises:
        LowbitError: a cell can't be run.
    """
    recorded = results.read(places.results)
    for cell in cells:
        if cell.waiting is not None:
            raise LowbitError(f"{cell.name}: waits: {cell.waiting}")
        folder = places.runs / "again" / cell.name
        shutil.rmtree(folder, ignore_errors=True)
        now = run_cell(cell, places, folder, keep=False)
        before = recorded.get(cell.name, {})
        for what in ("validation", "test"):
            print(f"{cell.name}: {what} accuracy {_percent(now[what])}, recorded {_percent(before.get(what))}")


def run_cell(cell: Cell, places: Places, folder: Path, *, keep: bool = True, compile: bool = True) -> results.Line:
    """Train a cell, or what is missing of it, and return its result.

    Args:
        keep: put the weights of a cell that ships them beside the results.
        compile: the step, as the recipe does.

    Raises:
        LowbitError: the cell it starts from is not finished, or its weights are not those of its result; or training
            refuses, for another reason than a loss that is not finite.
    """
    start, init = _start(cell, places)
    after = None if cell.after is None else places.runs / cell.after
    if after is not None and not Checkpoints(after).exists:
        raise LowbitError(
            f"{cell.name}: goes on from {cell.after}, of which there is no run in {places.runs}: run that first"
        )
    teacher = None if cell.teacher is None else str(_weights_of(cell, cell.teacher, places)[1])
    config = cell.config(data=places.data, init=init, output=folder, after=after, teacher=teacher)
    config = config if compile else replace(config, compile=False)
    try:
        with in_methods(cell.method):
            train.run(config, resume=(folder / "config.json").exists())
    except LowbitError as error:
        if CALMER not in str(error):
            raise
        return results.diverged_line(cell, config, start=start, error=str(error))
    weights = Checkpoints(folder).weights("best") if cell.ships else None
    if weights is not None and keep:
        kept = results.weights_file(places.results, cell.name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(weights, kept)
    return results.line_of(cell, read_run(folder), start=start, weights=weights)


def _start(cell: Cell, places: Places) -> tuple[results.Start | None, str | None]:
    """What the result says of the weights that this cell starts from, and their file."""
    if cell.start is None:
        return None, None
    if isinstance(cell.start, Given):
        if places.given is None:
            raise LowbitError(f"{cell.name}: starts from {cell.start.file}: name its folder with --given")
        file = places.given / cell.start.file
        _check(file, cell.start.sha256, f"{cell.start.file} that the results are of")
        return {"cell": None, "weights": cell.start.sha256}, str(file)
    sha256, file = _weights_of(cell, cell.start, places)
    return {"cell": cell.start, "weights": sha256}, str(file)


def _weights_of(cell: Cell, name: str, places: Places) -> tuple[str, Path]:
    """SHA-256 and file of the weights that another cell has trained."""
    line = results.read(places.results).get(name)
    if line is None:
        raise LowbitError(f"{cell.name}: needs {name}, which has no result: run that first")
    file = results.weights_file(places.results, name)
    _check(file, line["weights"], f"weights that the result of {name} is of")
    return line["weights"], file


def _check(file: Path, sha256: str, what: str) -> None:
    if not file.exists() or results.sha256(file) != sha256:
        raise LowbitError(f"{file}: not the {what}")


def _percent(accuracy: float | None) -> str:
    return "none" if accuracy is None else f"{accuracy:.2f} %"
