"""accelerate's trackers (TensorBoard, Weights & Biases, MLflow, …) beside the run's own log, by name or one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from lowbit.errors import LowbitError, did_you_mean
from lowbit.references import called, imported, is_reference
from lowbit.train.config import TrainConfig

_PACKAGES = {"comet_ml": "comet-ml"}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse what is not a tracker, or is not installed, before work.

    Raises:
        LowbitError: the message says what to install.
    """
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if is_reference(name):
            imported(name, "tracker")
        elif name not in LOGGER_TYPE_TO_CLASS:
            raise LowbitError(
                f"track: no tracker {name!r}.{did_you_mean(name, LOGGER_TYPE_TO_CLASS)} Known are "
                f"{', '.join(LOGGER_TYPE_TO_CLASS)}; your own is package.module:name"
            )
        elif name not in available:
            raise LowbitError(f"track: {name} is not installed: pip install {_PACKAGES.get(name, name)}")


def start_trackers(config: TrainConfig, folder: Path) -> list[GeneralTracker]:
    """The trackers of a config, started in the run folder and told the config; on the first process alone.

    Raises:
        LowbitError: one of them can't start (no account, no server); the message has its reason.
    """
    started = []
    plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in config.flat().items()}
    for name in config.track:
        kind = imported(name, "tracker") if is_reference(name) else LOGGER_TYPE_TO_CLASS[name]
        place = {"logging_dir": str(folder)} if getattr(kind, "requires_logging_directory", False) else {}
        try:
            tracker = called(kind, name, "tracker", run_name=f"{config.recipe}-{folder.name}", **place)
            tracker.start()
            tracker.store_init_configuration(plain)
        except LowbitError:
            raise
        except Exception as error:  # each service has errors of its own
            raise LowbitError(
                f"track: {name} can't start ({type(error).__name__}: {error}); leave it out, or set it up"
            ) from error
        started.append(tracker)
    return started


def log(trackers: Sequence[GeneralTracker], values: dict[str, Any], step: int) -> None:
    """Numbers of an epoch, to all of them."""
    for tracker in trackers:
        tracker.log(values, step=step)


def finish(trackers: Sequence[GeneralTracker]) -> None:
    """The run has ended, or stopped."""
    for tracker in trackers:
        tracker.finish()
