"""How far a run has come, what it resumes from, and what it ended with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowbit.errors import LowbitError
from lowbit.train.build import check_record
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.config import TrainConfig, from_plain


@dataclass(frozen=True)
class Result:
    """What a run ended with; accuracies are in percent.

    The first three are on the images that choices are made by: those for validation, or the test images where the
    config has none for validation.
    """

    folder: Path
    accuracy: float
    """Of the last checkpoint."""
    best_accuracy: float
    """Of the best checkpoint."""
    reestimated_accuracy: float | None
    """With batch-norm re-estimated after training, kept or not; None if that was not tried."""
    test_accuracy: float | None = None
    """Of the best checkpoint on the test images, where choices are made by others; else None."""
    loss: float = math.nan
    """Of the last checkpoint, on the images that choices are made by. It decides where the task has no accuracy; accuracies are
    not numbers then."""
    best_loss: float = math.nan
    """Of the best checkpoint."""


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint."""

    epochs_done: int = 0
    batches_done: int = 0
    """Of the epoch in progress."""
    accuracy: float = math.nan
    best_accuracy: float = -math.inf
    reestimated_accuracy: float | None = None
    test_accuracy: float | None = None
    finished: bool = False
    loss: float = math.nan
    best_loss: float = math.nan
    test_loss: float | None = None

    def is_best(self, loss: float, accuracy: float) -> bool:
        """Whether a checkpoint with these numbers is better than all before: by accuracy, or by loss where there is none."""
        if math.isnan(accuracy):
            return math.isnan(self.best_loss) or loss < self.best_loss
        return accuracy > self.best_accuracy

    def after(self, loss: float, accuracy: float, **changes: Any) -> Progress:
        """Progress with one more checkpoint of these numbers, and other changes."""
        better = self.is_best(loss, accuracy)
        return replace(
            self,
            loss=loss,
            accuracy=accuracy,
            best_loss=loss if better else self.best_loss,
            best_accuracy=accuracy if better else self.best_accuracy,
            **changes,
        )

    def result(self, folder: Path) -> Result:
        return Result(
            folder,
            self.accuracy,
            self.best_accuracy,
            self.reestimated_accuracy,
            self.test_accuracy,
            self.loss,
            self.best_loss,
        )

    def outcome(self) -> str:
        """The accuracy on the test images, for the reader; the loss where there is none."""
        if math.isnan(self.accuracy):
            if self.test_loss is None:
                return f"test loss {self.loss:.4g}, best {self.best_loss:.4g}"
            return (
                f"test loss {self.test_loss:.4g} of the checkpoint with the best validation loss, {self.best_loss:.4g}"
            )
        if self.test_accuracy is None:
            return f"test accuracy {self.accuracy:.2f} %, best {self.best_accuracy:.2f} %"
        return (
            f"test accuracy {self.test_accuracy:.2f} % of the checkpoint with the best validation accuracy, "
            f"{self.best_accuracy:.2f} %"
        )


@dataclass(frozen=True)
class Origin:
    """What else than its config decides what a run computes; saved in every checkpoint."""

    data: dict[str, str]
    """A hash of each split, as `lowbit.data.Splits` has it."""
    teacher: str | None
    """For distillation: the checksum of the teacher's weights."""
    versions: dict[str, str]
    """Of what computes, as `tracking.versions` gives them, and the number of processes."""
    settings: dict[str, str]
    """The fields of the config that may change, as JSON by dotted name."""

    def check(self, now: Origin, where: str) -> None:
        """Refuse to resume with other images, another teacher or another version of lowbit.

        Raises:
            LowbitError: one of them differs; the message names it.
        """
        for split, digest in self.data.items():
            if now.data.get(split) != digest:
                raise LowbitError(
                    f"{where}: the {split} images are not those that the run was started with (other files, sizes or "
                    "labels); continue it with those, or start a new run"
                )
        if self.teacher != now.teacher:
            raise LowbitError(
                f"{where}: the teacher's weights (model.init, or distillation.init) are not those that the run was started "
                "with; continue it with those, or start a new run"
            )
        before, after = (origin.versions.get("lowbit") for origin in (self, now))
        if before != after:
            raise LowbitError(
                f"{where}: the run was trained by lowbit {before}, and this is {after}, which may compute something "
                f"else: install lowbit {before} to continue it, or start a new run"
            )

    def changes(self, now: Origin) -> list[str]:
        """What may change, and has. Other versions and other numbers of processes compute the same, but round otherwise."""
        return [
            f"{name}: {before.get(name)}, now {after.get(name)}"
            for before, after in ((self.settings, now.settings), (self.versions, now.versions))
            for name in {**before, **after}
            if before.get(name) != after.get(name)
        ]


@dataclass(frozen=True)
class Saved:
    """The checkpoint that a run resumes from."""

    weights: Path
    progress: Progress
    trainer: dict[str, Any]
    """What `Trainer.state_dict` gave."""
    origin: Origin | None
    """None where an earlier version wrote the checkpoint."""

    def changed(self, now: Origin) -> list[str]:
        """What is not as it was when the checkpoint was written, and what is not known of it."""
        if self.origin is None:
            return ["an earlier version of lowbit wrote the checkpoint, without checksums and a record of the images"]
        return self.origin.changes(now)

    @classmethod
    def last(cls, checkpoints: Checkpoints, config: TrainConfig) -> Saved:
        """The last one of a run.

        Raises:
            LowbitError: it is broken, or of another config.
        """
        weights = checkpoints.weights("last")
        check_record(weights, config)
        training = checkpoints.training_state()
        try:
            origin = from_plain(Origin, training["origin"], "origin") if "origin" in training else None
            if origin is None:
                _from_earlier(training)
            progress = from_plain(Progress, training["progress"], "progress")
            if not 0 <= progress.epochs_done <= config.epochs:
                raise LowbitError(f"progress.epochs_done: {progress.epochs_done} of {config.epochs} epochs")
            return cls(weights, progress, training["trainer"], origin)
        except (LowbitError, KeyError, TypeError, AttributeError) as error:
            raise LowbitError(
                f"{weights.parent}: its training state is not what training wrote ({error}); start a new run in another folder"
            ) from error


def _from_earlier(training: dict[str, Any]) -> None:
    """Bring what a version without `Origin` saved into today's form, in place.

    Raises:
        LowbitError: it was trained by steps that are computed otherwise today.
    """
    training["progress"].pop("held_out", None)  # a hash of the images for validation
    attached = training["trainer"]["attached"]
    balance = [state["running"] for state in attached if "running" in state]  # of SSG's magnitude, lg-lsq's
    if any(running.numel() for running in balance):
        raise LowbitError("it balances step gradients as earlier versions did; continue it with that version")
    training["trainer"]["attached"] = [state for state in attached if "running" not in state]
