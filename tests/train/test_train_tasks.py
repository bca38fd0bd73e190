"""The losses against their closed forms, in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import lowbit
from lowbit.errors import LowbitError
from lowbit.qat.oscillation import dampening_loss
from lowbit.recipes.recipe import training_macs
from lowbit.train import DistillationConfig, ModelConfig, TrainConfig
from lowbit.train.tasks import (
    TASKS,
    Autoencode,
    Classify,
    Dampen,
    Distill,
    TaskKind,
    evaluation_task,
    kind_of,
    make_task,
)

CPU = torch.device("cpu")


class Fixed(nn.Module):
    """A network whose logits are a parameter."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits * 1


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = RANDOM.normal(size=(5, 3)), 3 * RANDOM.normal(size=(5, 3))
LABELS = np.array([0, 2, 1, 1, 0])
HARD = -log_softmax(STUDENT)[np.arange(5), LABELS].mean()
SOFT = -(np.exp(log_softmax(TEACHER)) * log_softmax(STUDENT)).sum(axis=1).mean()
IMAGES, TARGETS = torch.zeros(5, 1), torch.tensor(LABELS)


def test_classify_is_cross_entropy() -> None:
    loss, logits = Classify()(Fixed(STUDENT), IMAGES, TARGETS)
    assert loss.item() == pytest.approx(HARD, rel=1e-6)
    assert logits.shape == (5, 3)


def test_distill_is_half_hard_and_half_soft_cross_entropy() -> None:
    student, teacher = Fixed(STUDENT), Fixed(TEACHER)
    loss, _ = Distill(teacher)(student, IMAGES, TARGETS)
    assert loss.item() == pytest.approx(0.5 * HARD + 0.5 * SOFT, rel=1e-6)
    loss.backward()
    onehot = np.eye(3)[LABELS]
    q, p = np.exp(log_softmax(STUDENT)), np.exp(log_softmax(TEACHER))
    np.testing.assert_allclose(student.logits.grad, (0.5 * (q - onehot) + 0.5 * (q - p)) / 5, atol=1e-7)
    assert teacher.logits.grad is None and not teacher.training


def test_distill_is_hintons_at_another_temperature() -> None:
    """Its gradient is that of the Kullback-Leibler divergence, and its loss greater by the teacher's entropy."""
    student, teacher = Fixed(STUDENT), Fixed(TEACHER)
    loss, _ = Distill(teacher, temperature=4.0, share=0.9)(student, IMAGES, TARGETS)
    wanted, given = log_softmax(TEACHER / 4), log_softmax(STUDENT / 4)
    assert loss.item() == pytest.approx(0.1 * HARD - 0.9 * 16 * (np.exp(wanted) * given).sum(1).mean(), rel=1e-6)
    loss.backward()
    hard, soft = np.exp(log_softmax(STUDENT)) - np.eye(3)[LABELS], 4 * (np.exp(given) - np.exp(wanted))
    np.testing.assert_allclose(student.logits.grad, (0.1 * hard + 0.9 * soft) / 5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "resnet18"}, "the teacher resnet18 needs trained weights"),
        ({"init": "a.safetensors"}, r"give distillation\.teacher"),
        ({"pretrained": True}, r"give distillation\.teacher"),
        ({"teacher": "resnet18", "init": "a", "pretrained": True}, "keep one of the two"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": math.inf}, "temperature must be positive, got inf"),
        ({"share": 0.0}, "share must be above 0"),
        ({"share": 1.5}, "at most 1, got 1.5"),
    ],
)
def test_distillation_that_makes_no_sense_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(LowbitError, match=message):
        DistillationConfig(**settings)


def test_teacher_is_the_network_training_starts_from_and_keeps_its_weights() -> None:
    original = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    config = TrainConfig(task="distill", model=ModelConfig(init="somewhere"))
    task = make_task(config, original, CPU)
    before = original[1].weight.detach().clone()
    with torch.no_grad():
        original[1].weight += 1
    assert torch.equal(task.teacher[1].weight, before)


def test_distilling_from_random_weights_is_refused() -> None:
    with pytest.raises(LowbitError, match="teacher needs trained weights"):
        make_task(TrainConfig(task="distill"), nn.Linear(2, 2), CPU)


def test_dampening_rises_along_a_half_cosine() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    model = lowbit.calibrate(lowbit.prepare(model, weights=2, activations=2), [torch.randn(16, 4)])
    images, labels = torch.randn(16, 4), torch.randint(3, (16,))
    plain, _ = Classify()(model, images, labels)
    task = Dampen(Classify(), 10.0, CPU)
    for fraction, factor in ((0, 0), (0.5, 5), (1, 10)):
        task.set_progress(fraction)
        loss, _ = task(model, images, labels)
        assert loss.item() == pytest.approx(plain.item() + factor * dampening_loss(model).item(), rel=1e-5)
    assert dampening_loss(model).item() > 0


def test_a_task_of_ones_own_says_what_it_asks_of_a_run() -> None:
    try:
        TASKS["teacherly"] = TaskKind(
            lambda config, original, device: Distill(original), has_teacher=True, evaluated_by="autoencode"
        )
        config = TrainConfig(model=ModelConfig(name="digits-cnn"), task="teacherly", epochs=2)
        assert isinstance(make_task(config, nn.Linear(2, 2), CPU), Distill)
        assert isinstance(evaluation_task(config), Autoencode)
        assert training_macs(config, 10, 7) == 4 * 7 * 10 * 2
        TASKS["plain"] = lambda config, original, device: Classify()
        assert kind_of("plain") == TaskKind(TASKS["plain"])
    finally:
        TASKS.pop("teacherly", None), TASKS.pop("plain", None)
