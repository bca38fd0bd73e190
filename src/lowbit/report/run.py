"""A run folder as data."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.errors import LowbitError
from lowbit.files import check_readable, read_json

_KINDS = ("start", "resume", "look", "epoch", "final")


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
        looks: what was seen of quantizers during training, in order: epoch, step (of the optimizer, over all epochs)
            and quantizers, by name (see docs/diagnosis.md); empty in full precision and in logs of earlier versions.
        start_steps: the mean step by quantizer before the first epoch; empty where the log does not have it.
        final: the last event of a finished run, or None: its test_accuracy is that of the weights at the end, or of
            the checkpoint with the best validation accuracy.
    """

    path: Path
    config: dict[str, Any]
    versions: dict[str, Any]
    epochs: list[dict[str, Any]]
    looks: list[dict[str, Any]]
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
    looks: dict[int, dict[str, Any]] = {}
    final = None
    for event in read_events(path / "metrics.jsonl"):
        if event.get("event") == "epoch":
            epochs[event["epoch"]] = event
            final = None  # the end of training comes after its last epoch
        elif event.get("event") == "look":
            looks[event["step"]] = event
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
        looks=[looks[step] for step in sorted(looks)],
        start_steps=start_steps,
        final=final,
    )


def read_events(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's log (`metrics.jsonl`); none where there is no such file.

    Half a line at the end, as a killed run leaves it, is ignored.

    Raises:
        LowbitError: a line is not what training writes.
    """
    path = Path(path)
    if not path.exists():
        return []
    check_readable(path)
    lines = path.read_text(errors="replace").splitlines()
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            problem = _problem(event)
        except (ValueError, RecursionError) as error:
            event, problem = {}, error
        if problem is None:
            events.append(event)
        elif number < len(lines):
            raise LowbitError(f"{path} line {number}: {problem}; the log is damaged")
    return events


def _problem(event: Any) -> str | None:
    """What keeps a value from being a line of the log, or None."""
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return "not an event"
    if event["event"] not in _KINDS:
        return None
    if event["event"] == "look":
        return _problem_of_look(event)
    steps = event.get("steps") or {}
    numbers = {name: value for name, value in event.items() if name not in ("event", "steps", "epoch", "changed")}
    if event["event"] == "epoch" and type(event.get("epoch")) is not int:
        return "an event of no epoch"
    if not isinstance(steps, dict):
        return "its steps are not numbers by name"
    strange = next((name for name, value in (numbers | steps).items() if not _number(value)), None)
    return None if strange is None else f"its {strange} is not a number"


def _problem_of_look(event: dict[str, Any]) -> str | None:
    if type(event.get("epoch")) is not int or type(event.get("step")) is not int:
        return "a look at no step"
    found = event.get("quantizers")
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        return "its quantizers are not numbers by name"
    strange = next((name for name, each in found.items() if not all(map(_number, each.values()))), None)
    return None if strange is None else f"what it has of {strange} are not numbers"


def _number(value: Any) -> bool:
    return value is None or (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except LowbitError as error:
        raise LowbitError(f"{error}; the run folder is damaged") from error
    if not isinstance(value, dict):
        raise LowbitError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
