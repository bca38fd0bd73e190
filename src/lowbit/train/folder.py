"""The run folder: what may be there before training, and what stays of a run that fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lowbit.errors import LowbitError
from lowbit.files import check_place
from lowbit.processes import agreed, lost, rank
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.config import MAY_CHANGE, TrainConfig, differences
from lowbit.train.lock import LOCK, locked
from lowbit.train.tracking import save_versions, writable


def run_folder(config: TrainConfig, resume: bool) -> Path:
    """The run folder, after a look at what is in it."""
    if config.output is None:
        raise LowbitError("output: no run folder is given; name one (--output)")
    if not config.data.path:
        raise LowbitError("data.path: no data is given; name the folder of the data set (--data)")
    folder = Path(config.output)
    check_place(folder / "config.json")
    if folder.exists() and not folder.is_dir():
        raise LowbitError(f"{folder}: is a file; give a folder for the run (--output)")
    exists = (folder / "config.json").exists()
    if exists and not resume:
        if (folder / LOCK).exists() and rank() == 0:
            with writable(folder), locked(folder):  # names the process that trains there, if one does
                pass
        raise _taken(folder)
    if not resume and (folder / "checkpoints").exists():
        raise LowbitError(f"{folder / 'checkpoints'}: exists already and belongs to no run; choose another --output")
    if resume and not exists:
        raise LowbitError(f"{folder}: no run to resume; leave out --resume, or name its folder with --output")
    return folder


def _taken(folder: Path) -> LowbitError:
    return LowbitError(f"{folder}: holds a run already; continue it with --resume, or choose another --output")


def check_same(before: TrainConfig, now: TrainConfig, folder: Path) -> None:
    """Refuse to continue a run with other settings: its result would be neither the one nor the other."""
    changed = [line for name, line in differences(before, now) if name not in MAY_CHANGE]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise LowbitError(
            f"{folder}: the run was started with other settings ({'; '.join(changed[:3])}{more}); "
            f"`lowbit train --resume --output {folder}` goes on with those"
        )


def absent_files(folder: Path) -> list[Path]:
    """What is not there yet of all that training writes before its first checkpoint is complete, the folder last."""
    names = ("config.json", "versions.json", "metrics.jsonl", "tensorboard", "checkpoints", LOCK)
    return [path for path in (*(folder / name for name in names), folder) if not path.exists()]


@contextmanager
def started(config: TrainConfig, folder: Path, absent: list[Path], *, main: bool, fresh: bool) -> Iterator[None]:
    """The run folder, made by the first process; if a fresh run fails before a checkpoint, what was `absent` is again.

    The first process holds the folder's lock within. A run that is resumed has it already.

    Raises:
        LowbitError: the folder can't be written, or another run has begun in it; on every process.
    """
    with ExitStack() as held:
        with agreed():
            if main:
                _enter(folder, absent, held, fresh=fresh)
        with _removed_on_failure(folder, absent if fresh else []):
            with agreed():
                if main:
                    _write_first(config, folder, fresh=fresh)
            yield


def _enter(folder: Path, absent: list[Path], held: ExitStack, *, fresh: bool) -> None:
    """Make the folder and lock it; what is in it then is this run's."""
    try:
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if fresh:
                held.enter_context(locked(folder))
    except LowbitError:
        if folder in absent:
            with suppress(OSError):  # not empty: another run's
                folder.rmdir()
        raise
    if fresh and (folder / "config.json").exists():  # since this process has looked
        raise _taken(folder)


def _write_first(config: TrainConfig, folder: Path, *, fresh: bool) -> None:
    with writable(folder):
        (folder / "metrics.jsonl").touch()
        if fresh:
            config.save(folder / "config.json")
        if fresh or not Checkpoints(folder).exists:  # a run that was killed in its first epoch starts again
            save_versions(folder / "versions.json")


@contextmanager
def _removed_on_failure(folder: Path, absent: list[Path]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # After Ctrl-C, and where another process has died, the run resumes from its start.
        goes_on = (not isinstance(error, Exception) or lost(error)) and (folder / "config.json").exists()
        if not goes_on and not Checkpoints(folder).exists:
            for path in absent:
                if path == folder:
                    with suppress(OSError):  # not empty: something else is there by now
                        folder.rmdir()
                elif path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        raise
