"""Networks, data and losses as a user has them, named on the command line as `tests.own_code:NAME`."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lowbit.train.tasks import WithLoss


class Waves(nn.Module):
    """[B, 2, 32] to [B, num_classes]."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 8, 5, padding=2), nn.Conv1d(8, 8, 5, stride=2, padding=2)
        self.norm, self.last = nn.BatchNorm1d(8), nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.norm(self.second(F.relu(self.first(x))))).flatten(1))


class Pair(nn.Module):
    """Two inputs by name."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(6, 8)
        self.mix, self.last = nn.Linear(16, 16), nn.Linear(16, num_classes)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.last(F.relu(self.mix(F.relu(torch.cat([self.a(left), self.b(right)], 1)))))


def regressor() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


not_a_network = 3


def clusters(shape: tuple[int, ...], classes: int, count: int, seed: int, noise: float = 0.5) -> TensorDataset:
    """Samples around one random point for each class."""
    centres = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(count) % classes
    return TensorDataset(
        centres[labels] + noise * torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)), labels
    )


def waves() -> tuple[TensorDataset, TensorDataset]:
    return clusters((2, 32), 3, 192, 0), clusters((2, 32), 3, 33, 1)


def waves_in_loaders() -> dict[str, DataLoader]:
    train, test = waves()
    return {"train": DataLoader(train, batch_size=7), "test": DataLoader(test)}


def keywords() -> dict[str, TensorDataset]:
    """As MLPerf Tiny's keyword spotting has them: 49 frames of 10 coefficients, 12 words."""
    return {"train": clusters((1, 49, 10), 12, 240, 0), "test": clusters((1, 49, 10), 12, 36, 1)}


def machines() -> dict[str, TensorDataset]:
    """As MLPerf Tiny's anomaly detection has them: 640 numbers, which lie near a plane."""
    plane = torch.randn(4, 640, generator=torch.Generator().manual_seed(7)) / 2

    def split(count: int, seed: int) -> TensorDataset:
        return TensorDataset(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) @ plane)

    return {"train": split(1024, 0), "test": split(64, 1)}


class Named(Dataset):
    """Samples that are read one by one, with something random in them while they are trained on."""

    def __init__(self, count: int, seed: int, noise: float) -> None:
        self.x, self.targets = clusters((10,), 3, count, seed).tensors
        self.noise = noise

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
        x = self.x[index] + self.noise * torch.randn(10)
        return {"left": x[:4], "right": x[4:]}, int(self.targets[index])


def pairs() -> dict[str, Named]:
    return {"train": Named(192, 0, 0.1), "test": Named(33, 1, 0.0), "validation": Named(30, 2, 0.0)}


def lines() -> dict[str, TensorDataset]:
    """Ten numbers, and two sums of them, in double precision as NumPy has it."""
    weights = torch.randn(10, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    def split(count: int, seed: int) -> TensorDataset:
        x = torch.randn(count, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return TensorDataset(x, x @ weights)

    return {"train": split(256, 0), "test": split(40, 1)}


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean()


class Huber(WithLoss):
    """A task of one's own, which counts as right what is near."""

    def __init__(self) -> None:
        super().__init__(F.huber_loss)

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs().amax(1) < 0.5).sum()


def fails() -> None:
    raise KeyError("no such file")


def gives_nothing() -> int:
    return 3


class Tracker:
    """One of accelerate's kind, which keeps what it is told."""

    name, requires_logging_directory = "ours", False
    made: ClassVar[list[Tracker]] = []

    def __init__(self, run_name: str) -> None:
        self.run_name, self.config, self.logged, self.finished = run_name, {}, [], False
        Tracker.made.append(self)

    def start(self) -> None:
        if self.run_name.startswith("offline"):
            raise ConnectionError("no server")

    def store_init_configuration(self, values: dict) -> None:
        self.config = values

    def log(self, values: dict, step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True
