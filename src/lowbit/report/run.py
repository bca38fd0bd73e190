"""A run folder as data."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.errors import LowbitError


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        path: the folder.
        config: the resolved config of the run.
        versions: of the libraries it ran with; empty if the file is not there.
        epochs: one dict per finished epoch, in order: epoch, train_loss, train_accuracy, test_loss, test_accuracy (in
            percent; validation_loss and validation_accuracy instead where images are held out for validation), lr,
            seconds, and steps (mean step by quantizer). A number that was not finite is None.
        start_steps: the mean step by quantizer before the first epoch; empty where the log does not have it.
        final: the last event of a finished run, or None: its test_accuracy is that of the weights at the end, or of
            the checkpoint with the best validation accuracy.
    """

    path: Path
    config: dict[str, Any]
    versions: dict[str, Any]
    epochs: list[dict[str, Any]]
    start_steps: dict[str, float | None]
    final: dict[str, Any] | None


def read_run(path: str | os.PathLike) -> Run:
    """Read `config.json`, `metrics.jsonl` and `versions.json` of a run folder.

    Half a line at the end of the log, as a killed run leaves it, is ignored; so are events of other kinds. An epoch
    that was logged twice (the run was resumed before it) counts as it was logged last.

    Raises:
        LowbitError: no run is there, or a file in it is broken.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise LowbitError(f"{path}: no run is there (it has no config.json); give a folder that training wrote")
    epochs: dict[int, dict[str, Any]] = {}
    start_steps: dict[str, float | None] = {}
    final = None
    for event in _events(path / "metrics.jsonl"):
        if event.get("event") == "epoch":
            epochs[event["epoch"]] = event
            final = None  # the end of training comes after its last epoch
        elif event.get("event") == "start":
            start_steps = event.get("steps") or {}
        elif event.get("event") == "final":
            final = event
    versions = path / "versions.json"
    return Run(
        path=path,
        config=_read_object(path / "config.json"),
        versions=_read_object(versions) if versions.is_file() else {},
        epochs=[epochs[number] for number in sorted(epochs)],
        start_steps=start_steps,
        final=final,
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LowbitError(f"{path}: not readable JSON ({error}); the run folder is damaged") from error
    if not isinstance(value, dict):
        raise LowbitError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _events(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").splitlines()
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or (event.get("event") == "epoch" and not isinstance(event["epoch"], int)):
                raise ValueError("not an event")
        except (ValueError, KeyError) as error:
            if number == len(lines):
                break
            raise LowbitError(f"{path} line {number}: {error}; the log is damaged") from error
        events.append(event)
    return events
