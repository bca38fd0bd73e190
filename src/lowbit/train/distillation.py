"""What `--task distill` takes beside the rest of a config."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.errors import LowbitError


@dataclass(frozen=True)
class DistillationConfig:
    """From which network task distill learns, and how much.

    The default is LSQ's distillation, from the network itself in full precision. A larger teacher can bring a network
    beyond its own full precision: table "longer" of docs/results/accuracy.md.
    """

    teacher: str | None = None
    """The teacher, by the names that `model.name` takes; none: the network itself."""
    init: str | None = None
    """The teacher's weights: a safetensors file, or the folder of a run in full precision. The network itself has those of `model`."""
    pretrained: bool = False
    """The teacher's weights are those that timm or torchvision publishes under its name."""
    temperature: float = 1.0
    """T, by which the logits of both are divided; the teacher's part of the loss is multiplied by T²."""
    share: float = 0.5
    """The teacher's part in the loss; labels have the rest."""

    def __post_init__(self) -> None:
        if self.init and self.pretrained:
            raise LowbitError("distillation.init and distillation.pretrained are both given: keep one of the two")
        if self.teacher is None and (self.init or self.pretrained):
            raise LowbitError(
                "distillation.init and distillation.pretrained are of another teacher: give distillation.teacher"
            )
        if self.teacher is not None and not (self.init or self.pretrained):
            raise LowbitError(
                f"the teacher {self.teacher} needs trained weights: give distillation.init (--distillation.init), or "
                "distillation.pretrained where its library has them"
            )
        if not 0 < self.temperature < float("inf"):
            raise LowbitError(f"distillation.temperature must be positive, got {self.temperature}")
        if not 0 < self.share <= 1:
            raise LowbitError(f"distillation.share must be above 0 and at most 1, got {self.share}")
