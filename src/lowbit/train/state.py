"""How far a run has come, what it goes on from, and what it ended with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.train.checkpoint import Checkpoints


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


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint."""

    epochs_done: int = 0
    accuracy: float = math.nan
    best_accuracy: float = -math.inf
    reestimated_accuracy: float | None = None
    test_accuracy: float | None = None
    finished: bool = False
    held_out: str | None = None
    """Which training images are held out for validation, as a hash."""

    def result(self, folder: Path) -> Result:
        return Result(folder, self.accuracy, self.best_accuracy, self.reestimated_accuracy, self.test_accuracy)

    def outcome(self) -> str:
        """The accuracy on the test images, for the reader."""
        if self.test_accuracy is None:
            return f"test accuracy {self.accuracy:.2f} %, best {self.best_accuracy:.2f} %"
        return (
            f"test accuracy {self.test_accuracy:.2f} % of the checkpoint with the best validation accuracy, "
            f"{self.best_accuracy:.2f} %"
        )


@dataclass(frozen=True)
class Saved:
    """The checkpoint that a run goes on from."""

    weights: Path
    progress: Progress
    trainer: dict[str, Any]
    """What `Trainer.state_dict` gave."""

    @classmethod
    def last(cls, checkpoints: Checkpoints, about: dict[str, str]) -> Saved:
        """The last one of a run.

        Raises:
            LowbitError: it is broken, or of something other than `about`.
        """
        weights = checkpoints.weights("last", about)
        training = checkpoints.training_state()
        return cls(weights, Progress(**training["progress"]), training["trainer"])
