"""What a run leaves behind and what it says: the metrics log, TensorBoard events, versions, progress."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

import lowbit
from lowbit.data import Splits
from lowbit.errors import LowbitError
from lowbit.files import atomic_write
from lowbit.report.run import read_events
from lowbit.train.config import TrainConfig
from lowbit.train.trackers import finish, log, start_trackers


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Within: what keeps the run's files from being written is a LowbitError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LowbitError(
            f"{folder}: can't be written ({reason}); give another run folder (--output), or make room"
        ) from error


def save_versions(path: Path) -> None:
    """Write `versions()` as JSON."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(versions(), indent=2) + "\n")


def versions() -> dict[str, str]:
    """Versions of what computes, and the machine's processor and accelerator."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "platform": platform.platform(), "processor": _processor()}
    for package in ("lowbit", "torch", "torchvision", "accelerate", "timm", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found |= {"accelerator": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    found["threads"] = str(torch.get_num_threads())
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def mean_steps(model: torch.nn.Module) -> dict[str, float]:
    """The mean step of every quantizer, by name; empty for a network in full precision."""
    found = {name: quantizer.step.mean() for name, quantizer in lowbit.quantizers(model)}
    return dict(zip(found, torch.stack(list(found.values())).tolist())) if found else {}


class Metrics:
    """`metrics.jsonl` and the TensorBoard events of a run folder, and the services that a config names (`track`).

    Every line of the log is an object with "event": "start", "resume", "look" (of `lowbit.diagnosis.watch`), "epoch" or
    "final". Where it is not active
    (every process but the first) it writes nothing.
    """

    def __init__(self, folder: Path, *, epochs_done: int, active: bool, config: TrainConfig | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self.path = folder / "metrics.jsonl"
        self.active = active
        self.trackers = start_trackers(config, folder) if active and config is not None else []
        if active:
            with writable(folder):
                _forget(self.path, epochs_done)
                self.board = SummaryWriter(folder / "tensorboard", purge_step=epochs_done)

    def write(self, event: str, **values: Any) -> None:
        """Append one line; numbers that are not finite become null, which is what JSON has."""
        if self.active:
            with writable(self.folder), open(self.path, "a") as file:
                file.write(json.dumps({"event": event, **_finite(values)}, allow_nan=False) + "\n")

    def epoch(self, epoch: int, *, steps: dict[str, float], **values: float) -> None:
        """Log one epoch: its numbers, and the mean step of every quantizer."""
        self.write("epoch", epoch=epoch, **values, steps=steps)
        if self.active:
            with writable(self.folder):
                for name, value in values.items():
                    self.board.add_scalar(name.replace("_", "/", 1), value, epoch)
                for name, value in steps.items():
                    self.board.add_scalar(f"steps/{name}", value, epoch)
                self.board.flush()
            log(self.trackers, {**values, **{f"steps/{name}": value for name, value in steps.items()}}, epoch)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            with writable(self.folder):
                self.board.close()
            finish(self.trackers)


def _forget(path: Path, epochs_done: int) -> None:
    """Drop the lines of epochs that no checkpoint has, and half a line that a killed process may have left."""
    if not path.exists():
        return
    kept = [row for row in read_events(path) if row.get("event") != "final" and row.get("epoch", -1) < epochs_done]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{json.dumps(row)}\n" for row in kept))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Plain:
    """Progress as plain lines: what is said, and once a minute where an epoch has come to."""

    every = 60.0

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.spoke = time.monotonic()

    def say(self, line: str) -> None:
        print(line, flush=True)

    def update(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        """Told now and then during an epoch; `step` of `steps` are done, accuracy is in percent."""
        if time.monotonic() - self.spoke >= self.every:
            self.spoke = time.monotonic()
            self.say(f"epoch {epoch + 1}/{self.epochs}  step {step}/{steps}  {_numbers(loss, accuracy)}")

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Silent(Plain):
    """No progress: every process but the first."""

    def say(self, line: str) -> None:
        pass


class Bar(Plain):
    """Progress on a terminal: a bar over the whole training with time left, current loss and accuracy."""

    def __init__(self, epochs: int, epochs_done: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__(epochs)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[state]}"),
        )
        self.progress = Progress(*columns, transient=True)
        self.task = self.progress.add_task("starting", total=epochs, completed=epochs_done, state="")

    def say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def update(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        self.progress.update(
            self.task,
            description=f"epoch {epoch + 1}/{self.epochs}",
            completed=epoch + step / steps,
            state=_numbers(loss, accuracy),
        )

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


def _numbers(loss: float, accuracy: float | None) -> str:
    known = accuracy is not None and not math.isnan(accuracy)
    return f"loss {loss:.4f}" + (f" accuracy {accuracy:.2f} %" if known else "")


def progress(epochs: int, epochs_done: int, *, speak: bool) -> Plain:
    """A bar where standard output is a terminal, plain lines elsewhere, nothing where `speak` is false."""
    if not speak:
        return Silent(epochs)
    return Bar(epochs, epochs_done) if sys.stdout.isatty() else Plain(epochs)


def opening(config: TrainConfig, splits: Splits, accelerator: Accelerator) -> str:
    """Two lines on what is trained, on what, and how."""
    q = config.quantization
    kind = "full precision" if q is None else f"W{q.weights or 32}A{q.activations or 32} by {q.method}"
    start = config.model.init or ("timm's weights" if config.model.pretrained else "random weights")
    ranks = accelerator.num_processes
    validation = "" if splits.validation is None else f", {splits.validation.num_images:,} validation"
    held = ", sharded" if config.shard and torch.distributed.is_initialized() else ""
    return (
        f"{config.recipe}: {config.model.name}, {kind}, from {start}; "
        f"{splits.train.num_images:,} training{validation} and {splits.test.num_images:,} test images\n"
        f"on {accelerator.device}{f' with {ranks} processes' if ranks > 1 else ''}{held}, "
        f"{'channels-last' if config.channels_last else 'contiguous'}, precision {config.precision}, "
        f"{'compiled step' if config.compile and not held else 'eager step'}; {config.output}"
    )


def epoch_line(epoch: int, epochs: int, chosen_by: str, numbers: dict[str, float]) -> str:
    """One line on an epoch; `chosen_by` is what the images are called that choices are made by."""
    train, chosen = (
        f"{name} {_numbers(numbers[f'{name}_loss'], numbers.get(f'{name}_accuracy'))}" for name in ("train", chosen_by)
    )
    lr = f"  lr {numbers['lr']:.4g}" if "lr" in numbers else ""
    return f"epoch {epoch + 1}/{epochs}  {train}  {chosen}{lr}  {numbers['seconds']:.1f} s" + (
        f"  {numbers['skipped']} images that cannot be read so far" if numbers.get("skipped") else ""
    )
