"""`python -m campaigns.kills`: training runs that are killed (SIGKILL) and resumed until they end.

Two small runs on the digits, six epochs each: W3A3 by LSQ with a moving average and frozen weights, and W2A2 by LG-LSQ
with Adam, accumulation and held-out images. Every trial starts one in a process of its own, kills it, goes on with it by
--resume (or starts it again, where it had no config yet), kills that one too in half of the trials, and lets it end. The
kill comes in turn

    time         at a random moment of the run
    operation    at a random one of its file operations (open, rename, remove, make or remove a folder) in the run folder

Found is where the run was (`stage`) at the last kill, and what became of it:

    same        it ends with the weights, training state and curves of a run that was never killed, to the bit
    other       it ends with others: must not happen
    left        it ends, but a file lies in its folder that such a run does not have: must not happen
    refused     it does not go on: must not happen
    hang        it does not end within five minutes: must not happen

Outcomes are kept in --outcomes as they come; the same command goes on where it was stopped. The exit status is 1 where
something happened that must not.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg
import matplotlib.figure
import safetensors.torch
import sklearn.datasets
import sklearn.model_selection
import torch
import torch.utils.tensorboard

import lowbit.quantizer.kernels
from lowbit.errors import LowbitError
from lowbit.files import atomic_write
from lowbit.report import read_run
from lowbit.train import DataConfig, ModelConfig, OptimizerConfig, QuantizationConfig, TrainConfig, run
from lowbit.train.checkpoint import Checkpoints

HOW = ("time", "operation")
STAGES = ("before its config", "before its first checkpoint", "between two checkpoints", "after its last checkpoint")
OUTCOMES = ("same", "other", "left", "refused", "hang")
SECONDS = 300
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.scandir", "os.listdir")
MODULES_USED_LATE = (
    matplotlib.backends.backend_agg,
    matplotlib.figure,
    sklearn.datasets,
    sklearn.model_selection,
    torch.utils.tensorboard,
)
"""Imported before processes are forked, so that a run takes no longer than its work."""

_DATA = DataConfig(path="sklearn:digits", batch_size=64, limit=256, channels=1, mean=(0.3,), std=(0.35,))
_RUN = TrainConfig(
    recipe="kills", model=ModelConfig("digits-cnn", from_scratch=True), data=_DATA, epochs=6, compile=False
)
RUNS = (
    replace(
        _RUN,
        quantization=QuantizationConfig(weights=3, activations=3, freezing=0.02, calibration_batches=2),
        ema=0.9,
    ),
    replace(
        _RUN,
        data=replace(_DATA, validation=100),
        quantization=QuantizationConfig(weights=2, activations=2, method="lg-lsq", calibration_batches=2),
        optimizer=OptimizerConfig("adam", 1e-3),
        accumulate=2,
        bn_batches=2,
    ),
)


def unbroken(index: int, folder: Path) -> tuple[float, int]:
    """Let a run end; returns the seconds it took and how many file operations."""
    counted = folder.with_suffix(".operations")
    began = time.monotonic()
    process = _started(replace(RUNS[index], output=str(folder)), resume=False, count=counted)
    process.join()
    seconds = time.monotonic() - began
    if process.exitcode != 0:
        raise SystemExit(f"run {index} fails without being killed")
    return seconds, int(counted.read_text())


def trial(seed: int, number: int, whole: Path, seconds: float, operations: int, folder: Path) -> tuple[str, str, str]:
    """(stage at the last kill, outcome, message) of a trial in a new folder."""
    chooser = random.Random(f"{seed}:{number}")
    config = replace(RUNS[number // len(HOW) % len(RUNS)], output=str(folder))
    stage = ""
    for _ in range(1 + number // (len(HOW) * len(RUNS)) % 2):
        while True:
            resume = (folder / "config.json").exists()
            at = chooser.randrange(1, operations) if number % 2 else None
            process = _started(config, resume=resume, kill_at=at)
            process.join(SECONDS if number % 2 else chooser.uniform(0, seconds))
            if process.exitcode is None:
                process.kill()
                process.join()
            if process.exitcode == -signal.SIGKILL:
                break
            if process.exitcode != 0:
                return stage_of(folder), "refused", f"status {process.exitcode}"
            if stage:  # it has gone on to its end before the second kill
                return stage, *verdict(folder, whole)
            _remove(folder)  # it has ended before the first: again
        stage = stage_of(folder)
    process = _started(config, resume=(folder / "config.json").exists())
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return stage, "hang", ""
    if process.exitcode != 0:
        return stage, "refused", (folder.parent / "said").read_text()
    return stage, *verdict(folder, whole)


def stage_of(folder: Path) -> str:
    """Where a run is that was killed."""
    if not (folder / "config.json").exists():
        return STAGES[0]
    checkpoints = Checkpoints(folder)
    if not checkpoints.exists:
        return STAGES[1]
    return STAGES[3] if checkpoints.training_state()["progress"]["finished"] else STAGES[2]


def verdict(folder: Path, whole: Path) -> tuple[str, str]:
    """(outcome, message) of a run that has ended, beside one that was never killed."""
    there, wanted = (names(each) for each in (folder, whole))
    if there != wanted:
        return "left", f"more: {sorted(there - wanted)}, fewer: {sorted(wanted - there)}"
    for file in ("model.safetensors", "training.safetensors"):
        mine, theirs = (
            safetensors.torch.load_file(Checkpoints(each).weights("last").with_name(file)) for each in (folder, whole)
        )
        differs = sorted(name for name in mine.keys() | theirs.keys() if not _equal(mine.get(name), theirs.get(name)))
        if differs:
            return "other", f"{file}: {differs[0]} and {len(differs) - 1} more"
    if Checkpoints(folder).training_state()["progress"] != Checkpoints(whole).training_state()["progress"]:
        return "other", "accuracies"
    if curves(folder) != curves(whole):
        return "other", "curves"
    return "same", ""


def names(folder: Path) -> set[str]:
    """The files of a run, without TensorBoard's, of which every start makes one."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return {"tensorboard" if name.startswith("tensorboard/events") else name for name in files}


def curves(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in read_run(folder).epochs]


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b)


# ---------------------------------------------------------------- processes


def _started(
    config: TrainConfig, *, resume: bool, kill_at: int | None = None, count: Path | None = None
) -> multiprocessing.process.BaseProcess:
    """A run in a process that is forked from this one, in which everything is imported and nothing has run."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(config.as_dict(), resume, kill_at, count))
    process.start()
    return process


def train(values: dict[str, Any], resume: bool, kill_at: int | None, count: Path | None) -> None:
    """Run a config; kill this process at a file operation in the run folder, or write down how many there are."""
    config = TrainConfig.from_dict(values)
    folder = Path(str(config.output))
    torch.set_num_threads(1)
    lowbit.quantizer.kernels.smallest = sys.maxsize  # every process would compile the quantizers' kernels
    said = open(folder.parent / "said", "w")
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    done = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal done
        if event in OPERATIONS and arguments and str(arguments[0]).startswith(str(folder)):
            done += 1
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    try:
        run(config, resume=resume)
    except LowbitError as error:
        print(error, flush=True)
        os._exit(2)
    if count is not None:
        count.write_text(str(done))


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- the table


def table(rows: Sequence[tuple[int, str, str]]) -> str:
    """Counts by way of killing and stage, as Markdown."""
    counts = Counter((HOW[number % 2], stage, outcome) for number, stage, outcome in rows)
    lines = [f"| killed | the run was | trials | {' | '.join(OUTCOMES)} |", f"|---|---|{'---|' * (len(OUTCOMES) + 1)}"]
    for how in HOW:
        for stage in STAGES:
            each = [counts[how, stage, outcome] for outcome in OUTCOMES]
            if sum(each):
                lines.append(f"| at a random {how} | {stage} | {sum(each)} | {' | '.join(map(str, each))} |")
    total = [sum(outcome == name for _, _, outcome in rows) for name in OUTCOMES]
    lines.append(f"| all | | {len(rows)} | {' | '.join(map(str, total))} |")
    return "\n".join(lines)


def campaign(numbers: Sequence[int], seed: int, keep: Callable[[int, str, str, str], None]) -> None:
    """Make the trials, and hand on what becomes of each."""
    if not numbers:
        return
    with tempfile.TemporaryDirectory() as parent:
        wholes = [Path(parent) / f"whole-{index}" / "run" for index in range(len(RUNS))]
        for whole in wholes:
            whole.parent.mkdir()
        spans = [unbroken(index, whole) for index, whole in enumerate(wholes)]
        for number in numbers:
            index = number // len(HOW) % len(RUNS)
            with tempfile.TemporaryDirectory(dir=parent) as folder:
                keep(number, *trial(seed, number, wholes[index], *spans[index], Path(folder) / "run"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m campaigns.kills", description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outcomes", type=Path, default=Path("kills.csv"), help="kept as they come")
    parser.add_argument("--report", type=Path, default=None, metavar="FILE", help="write the table as Markdown")
    options = parser.parse_args(arguments)

    rows: dict[int, tuple[str, str]] = {}
    if options.outcomes.exists():
        with open(options.outcomes, newline="") as stored:
            for seed, number, stage, outcome, _ in csv.reader(stored):
                if int(seed) == options.seed and int(number) < options.trials:
                    rows[int(number)] = stage, outcome
    with open(options.outcomes, "a", newline="") as stored:
        writer = csv.writer(stored)

        def keep(number: int, stage: str, outcome: str, message: str) -> None:
            rows[number] = stage, outcome
            writer.writerow((options.seed, number, stage, outcome, json.dumps(message[:300])))
            stored.flush()
            print(number, HOW[number % 2], stage, outcome, message[:300], flush=True)

        campaign([number for number in range(options.trials) if number not in rows], options.seed, keep)
    counts = table([(number, *found) for number, found in sorted(rows.items())])
    print(counts)
    if options.report is not None:
        with atomic_write(options.report) as temporary:
            command = (
                f"python -m campaigns.kills --trials {options.trials} --seed {options.seed} --report {options.report}"
            )
            temporary.write_text(
                f"# Runs that are killed and resumed\n\n    {command}\n\n"
                f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}.\n\n{counts}\n\n"
                "What the columns are: `campaigns/kills.py`. All but `same` must be 0. Half of the trials are killed twice.\n"
            )
    return int(any(outcome != "same" for _, outcome in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
