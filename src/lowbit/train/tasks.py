"""What a network is trained for, as an object, so that the loop never asks; `TASKS` holds them by name."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.errors import LowbitError, did_you_mean
from lowbit.inputs import Inputs, call
from lowbit.qat.oscillation import dampening_loss
from lowbit.references import called, imported, is_reference
from lowbit.train.build import build_teacher
from lowbit.train.config import TrainConfig
from lowbit.train.machine import move


class Task:
    """Computes the loss of a batch, in training and in evaluation.

    Inputs are a tensor [B, …] or tensors by the names of `forward`'s arguments; targets are what the data gives beside them,
    or None. A subclass has `loss`; what it doesn't say is as for a classifier.

    Attributes:
        teacher: the network that it learns from; a run resumes only with the same.
    """

    teacher: nn.Module | None = None

    def __call__(self, model: nn.Module, inputs: Inputs, targets: Any) -> tuple[Tensor, Any]:
        """(loss, outputs): the mean over the batch, and what the network returned."""
        outputs = call(model, inputs)
        return self.loss(outputs, inputs, targets), outputs

    def loss(self, outputs: Any, inputs: Inputs, targets: Any) -> Tensor:
        """The loss that is reported: the mean over the samples of a batch."""
        raise NotImplementedError

    def right(self, outputs: Any, targets: Any) -> Tensor | None:
        """How many answers of a batch are right: of [B, classes] for class numbers [B] the largest; None where that has no meaning.

        Without it there is no accuracy, and the loss decides which checkpoint is best.
        """
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            return None
        if outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
            return None
        return (outputs.argmax(1) == targets).sum()

    def set_progress(self, fraction: float) -> None:
        """Told before every step how much of training is done, 0…1; a task that anneals nothing ignores it."""


class Classify(Task):
    """Cross-entropy with the labels, mean over the batch."""

    def loss(self, outputs: Tensor, inputs: Inputs, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)


class Autoencode(Task):
    """Mean squared error between the network's output and its input; targets are not looked at."""

    def loss(self, outputs: Tensor, inputs: Inputs, targets: Any) -> Tensor:
        if not isinstance(inputs, Tensor) or outputs.shape != inputs.shape:
            raise LowbitError(
                f"task autoencode: the network's output {tuple(outputs.shape)} must be of the shape of its one input"
            )
        return F.mse_loss(outputs, inputs)

    def right(self, outputs: Any, targets: Any) -> None:
        return None


class WithLoss(Task):
    """A loss function of a user's own, or of torch's: `loss(outputs, targets)`, the mean over the batch."""

    def __init__(self, function: Callable[[Any, Any], Tensor]) -> None:
        self.function = function

    def loss(self, outputs: Any, inputs: Inputs, targets: Any) -> Tensor:
        return self.function(outputs, targets)


class Distill(Classify):
    """(1 − α)·CE(labels) + α·T²·CE(teacher) at the temperature T (Hinton et al. 2015, arXiv 1503.02531).

    The second term is −Σ p·log q over classes, mean over the batch; p are the probabilities of `teacher`, q the
    student's, both of logits divided by T. With the defaults, and the full-precision network of the same architecture
    for a teacher, it is LSQ's (Esser et al. 2020, section 3.7). The teacher runs in evaluation mode and gets no
    gradient. What is reported in evaluation is the cross-entropy with the labels.

    Args:
        teacher: whose outputs are logits of the same classes.
        temperature: T.
        share: α.
    """

    def __init__(self, teacher: nn.Module, *, temperature: float = 1.0, share: float = 0.5) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.share = temperature, share

    def __call__(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> tuple[Tensor, Tensor]:
        assert self.teacher is not None
        with torch.no_grad():
            target = (call(self.teacher, inputs).float() / self.temperature).softmax(dim=1)
        logits = call(model, inputs)
        soft = F.cross_entropy(logits.float() / self.temperature, target)
        share = self.share * self.temperature**2
        return (1 - self.share) * F.cross_entropy(logits, targets) + share * soft, logits


class Dampen(Task):
    """Another task plus λ·`lowbit.dampening_loss` (Nagel et al. 2022, section 4.1).

    λ rises from 0 to `factor` along a half cosine, so that weights move freely early in training and settle late.
    """

    def __init__(self, task: Task, factor: float, device: torch.device) -> None:
        self.task = task
        self.teacher = task.teacher
        self.factor = factor
        # A tensor that changes in place: a number would be compiled in, and compiled again at every step.
        self.current = torch.zeros((), device=device)

    def __call__(self, model: nn.Module, inputs: Inputs, targets: Any) -> tuple[Tensor, Any]:
        loss, outputs = self.task(model, inputs, targets)
        return loss + self.current * dampening_loss(model), outputs

    def loss(self, outputs: Any, inputs: Inputs, targets: Any) -> Tensor:
        return self.task.loss(outputs, inputs, targets)

    def right(self, outputs: Any, targets: Any) -> Tensor | None:
        return self.task.right(outputs, targets)

    def set_progress(self, fraction: float) -> None:
        self.task.set_progress(fraction)
        self.current.fill_(self.factor * 0.5 * (1 - math.cos(math.pi * fraction)))


@dataclass(frozen=True)
class TaskKind:
    """How a task is made, and what it asks of a run.

    Attributes:
        make: the task, from the config, the full-precision network with the weights that training starts from, and the device.
        takes_classes: the network is built for the data's number of classes.
        gives_classes: its output is [B, classes]; another one is refused before work.
        has_teacher: a full-precision network runs beside the trained one, and a run resumes only with the same.
        blockwise: one pass without labels, block by block, takes the place of the epochs (`lowbit.reconstruct`).
        evaluated_by: the task whose loss a trained network is evaluated by; None: its own.
    """

    make: Callable[[TrainConfig, nn.Module, torch.device], Task]
    takes_classes: bool = True
    gives_classes: bool = False
    has_teacher: bool = False
    blockwise: bool = False
    evaluated_by: str | None = None

    @property
    def passes(self) -> int:
        """How many times a forward pass's multiply-accumulates a step takes: for outputs, both gradients, and the teacher."""
        return 4 if self.has_teacher else 3


def _distill(config: TrainConfig, original: nn.Module, device: torch.device) -> Task:
    teacher = build_teacher(config)
    if teacher is None and not config.model.trained:
        raise LowbitError(
            "task distill: the teacher needs trained weights; give model.init (--init), or another teacher "
            "(--distillation.teacher)"
        )
    teacher = move(copy.deepcopy(original) if teacher is None else teacher, device, config.memory_format)
    return Distill(teacher, temperature=config.distillation.temperature, share=config.distillation.share)


def _reconstruct(config: TrainConfig, original: nn.Module, device: torch.device) -> Task:
    if config.quantization is None:
        raise LowbitError("task reconstruct: nothing is quantized here whose rounding could be learned; give --bits")
    if not config.model.trained:
        raise LowbitError(
            "task reconstruct: what is to be reconstructed needs trained weights; give model.init (--init)"
        )
    if config.ema is not None:
        raise LowbitError("task reconstruct: it has no training over which weights could be averaged; leave out ema")
    return Classify()


TASKS: dict[str, TaskKind | Callable[[TrainConfig, nn.Module, torch.device], Task]] = {
    "classify": TaskKind(lambda config, original, device: Classify(), gives_classes=True),
    "distill": TaskKind(_distill, gives_classes=True, has_teacher=True, evaluated_by="classify"),
    "autoencode": TaskKind(lambda config, original, device: Autoencode(), takes_classes=False),
    "reconstruct": TaskKind(_reconstruct, gives_classes=True, blockwise=True, evaluated_by="classify"),
}
"""Every task by the name that a config has. One of your own is an entry here, made before training: a `TaskKind`, or only the
function that makes the task; or it is named as `package.module:name` without any."""


def kind_of(task: str) -> TaskKind:
    """What a task asks of a run, by its name or the reference to it.

    Raises:
        LowbitError: no such task.
    """
    if task in TASKS:
        found = TASKS[task]
        return found if isinstance(found, TaskKind) else TaskKind(found)
    if is_reference(task):
        return TaskKind(lambda config, original, device: _own(task, config=config, original=original, device=device))
    raise LowbitError(
        f"task: no task {task!r}.{did_you_mean(task, TASKS)} Known are {', '.join(TASKS)}; your own loss "
        "or task is package.module:name"
    )


def make_task(config: TrainConfig, original: nn.Module, device: torch.device) -> Task:
    """The task a config names; `original` is the full-precision network, with the weights training starts from.

    Raises:
        LowbitError: no such task, or distillation from a network that has no trained weights.
    """
    task = kind_of(config.task).make(config, original, device)
    if config.quantization is not None and config.quantization.dampening:
        task = Dampen(task, config.quantization.dampening, device)
    return task


def evaluation_task(config: TrainConfig) -> Task:
    """What a trained network is evaluated by, for which no teacher is needed."""
    plain = replace(config, quantization=None, task=kind_of(config.task).evaluated_by or config.task)
    return make_task(plain, nn.Identity(), torch.device("cpu"))


def _own(reference: str, **offered: Any) -> Task:
    """A task or a loss by the reference to it: a `Task`, a function of (outputs, targets), or what makes one of the two."""
    found = imported(reference, "task")
    if not isinstance(found, Task) and (isinstance(found, type) or not _needs_arguments(found, offered)):
        found = called(found, reference, "task", **offered)
    if isinstance(found, Task):
        return found
    if not callable(found):
        raise LowbitError(
            f"task {reference!r} is a {type(found).__name__}: give a loss of (outputs, targets), or a Task"
        )
    return WithLoss(found)


def _needs_arguments(function: Any, offered: dict[str, Any]) -> bool:
    """Whether a function takes more than what is offered: then it is a loss, else it makes one."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(each.default is each.empty and each.name not in offered for each in parameters)
