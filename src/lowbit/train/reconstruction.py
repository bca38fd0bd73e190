"""What `--task reconstruct` takes beside the rest of a config."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.errors import LowbitError


@dataclass(frozen=True)
class ReconstructionConfig:
    """Low bits without labels: how `lowbit.reconstruct` is called where that is the task."""

    images: int = 1024
    """Training images that the network learns from; all are held in memory."""
    steps: int = 1000
    """Of learning, for each block."""
    batch_size: int = 32
    """Images in each of these."""

    def __post_init__(self) -> None:
        for name in ("images", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise LowbitError(f"reconstruction.{name} must be at least 1, got {getattr(self, name)}")
