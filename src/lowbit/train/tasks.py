"""The loss as an object: what a network is trained for, so that the loop never asks."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.errors import LowbitError
from lowbit.qat.oscillation import dampening_loss
from lowbit.train.config import TrainConfig
from lowbit.train.machine import move


class Task:
    """Computes the loss of one batch.

    A call takes the network, images (batch, channels, height, width) and labels (batch,) and returns
    (loss, logits): a scalar, and (batch, classes).
    """

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def set_progress(self, fraction: float) -> None:
        """Told before every step how much of training is done, 0…1; a task that anneals nothing ignores it."""


class Classify(Task):
    """Cross-entropy with the labels, mean over the batch."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return F.cross_entropy(logits, labels), logits


class Distill(Task):
    """½·CE(labels) + ½·CE(teacher): distillation at temperature 1 as in LSQ (Esser et al. 2020, section 3.7).

    The second term is −Σ p·log q over classes, mean over the batch; p are the probabilities of `teacher`, the
    full-precision network of the same architecture, q the student's. The teacher runs in evaluation mode and gets
    no gradient.
    """

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher.eval().requires_grad_(False)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = self.teacher(images).float().softmax(dim=1)
        logits = model(images)
        return 0.5 * F.cross_entropy(logits, labels) + 0.5 * F.cross_entropy(logits.float(), target), logits


class Dampen(Task):
    """Another task plus λ·`lowbit.dampening_loss` (Nagel et al. 2022, section 4.1).

    λ rises from 0 to `factor` along a half cosine, so that weights move freely early in training and settle late.
    """

    def __init__(self, task: Task, factor: float, device: torch.device) -> None:
        self.task = task
        self.factor = factor
        # A tensor that changes in place: a number would be compiled in, and compiled again at every step.
        self.current = torch.zeros((), device=device)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = self.task(model, images, labels)
        return loss + self.current * dampening_loss(model), logits

    def set_progress(self, fraction: float) -> None:
        self.task.set_progress(fraction)
        self.current.fill_(self.factor * 0.5 * (1 - math.cos(math.pi * fraction)))


def make_task(config: TrainConfig, original: nn.Module, device: torch.device) -> Task:
    """The task a config names; `original` is the full-precision network, with the weights training starts from.

    Raises:
        LowbitError: distillation from a network that has no trained weights.
    """
    task: Task = Classify()
    if config.task == "distill":
        if config.model.init is None and not config.model.pretrained:
            raise LowbitError("task distill: the teacher needs trained weights; give model.init (--init)")
        task = Distill(move(copy.deepcopy(original), device, config.memory_format))
    if config.quantization is not None and config.quantization.dampening:
        task = Dampen(task, config.quantization.dampening, device)
    return task
