"""Tasks of cells that learn from another network than the one they start from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from campaigns.accuracy import results
from lowbit import models
from lowbit.inputs import Inputs, call
from lowbit.train import TrainConfig
from lowbit.train.machine import move
from lowbit.train.tasks import Distill

RESNET20 = "fp/cifar-resnet20-fp-40ep-s0"
"""The cell that has trained the teacher: 85.67 % on the test images, without the images that are held out."""
TEMPERATURE = 4.0
SHARE = 0.9
"""Of the teacher's part in the loss."""


class Taught(Distill):
    """0.1·CE(labels) + 0.9·T²·KL(teacher ‖ student) at the temperature T = 4 (Hinton et al. 2015, arXiv 1503.02531)."""

    def __call__(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            wanted = (call(self.teacher, inputs).float() / TEMPERATURE).softmax(1)
        logits = call(model, inputs)
        given = (logits.float() / TEMPERATURE).log_softmax(1)
        distance = TEMPERATURE**2 * F.kl_div(given, wanted, reduction="batchmean")
        return (1 - SHARE) * F.cross_entropy(logits, targets) + SHARE * distance, logits


def resnet20(config: TrainConfig, device: torch.device) -> Taught:
    """ResNet-20 teaches."""
    teacher = models.create("cifar-resnet20", num_classes=10, weights=results.weights_file(results.FOLDER, RESNET20))
    return Taught(move(teacher, device, config.memory_format))
