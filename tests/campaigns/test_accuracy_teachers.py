"""Tasks that learn from another network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from campaigns.accuracy.teachers import Taught
from torch import nn


def _log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def test_the_loss_is_hintons() -> None:
    torch.manual_seed(0)
    teacher, student = nn.Linear(5, 3), nn.Linear(5, 3)
    x, labels = torch.randn(7, 5), torch.randint(3, (7,))
    loss, logits = Taught(teacher)(student, x, labels)
    z, t = logits.detach().double().numpy(), teacher(x).detach().double().numpy()
    wanted, given = _log_softmax(t / 4), _log_softmax(z / 4)
    distance = (np.exp(wanted) * (wanted - given)).sum(1).mean()
    entropy = -_log_softmax(z)[np.arange(7), labels.numpy()].mean()
    assert float(loss) == pytest.approx(0.1 * entropy + 0.9 * 16 * distance, rel=1e-5)
    loss.backward()
    assert teacher.weight.grad is None and student.weight.grad is not None
