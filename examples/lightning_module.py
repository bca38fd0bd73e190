"""Lightning: a network in full precision, then the same network at 3 bits, on scikit-learn's digits.

    pip install lightning scikit-learn
    python examples/lightning_module.py

Between the two trainings stand `lowbit.prepare` and `lowbit.calibrate`, and the second has a callback. The module below is as it would be without lowbit
but for `configure_optimizers`, where `parameter_groups` keeps weight decay off the learned steps.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lowbit
from lowbit.integrations.lightning import LowbitCallback

pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
pixels = pixels.float().reshape(-1, 1, 8, 8) / 16
train_data = DataLoader(TensorDataset(pixels[:1500], labels[:1500]), batch_size=50, shuffle=True)
test_data = DataLoader(TensorDataset(pixels[1500:], labels[1500:]), batch_size=100)


def network() -> nn.Module:
    """Three convolutions and a linear layer, with random weights."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    return nn.Sequential(block(1, 16, 1), block(16, 32, 2), block(32, 32, 2), nn.Flatten(), nn.Linear(128, 10))


class Classifier(lightning.LightningModule):
    def __init__(self, network: nn.Module, lr: float) -> None:
        super().__init__()
        self.network, self.lr = network, lr

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.network(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = lowbit.parameter_groups(self, weight_decay=1e-4)  # of a float network: all parameters
        return torch.optim.SGD(groups, self.lr, momentum=0.9)


def trainer(folder: Path, *, epochs: int, callbacks: Sequence[lightning.Callback] = ()) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs, default_root_dir=folder, logger=False, enable_progress_bar=False, callbacks=[*callbacks]
    )


def main(folder: Path) -> dict[str, float]:
    """Train twice; returns the accuracies."""
    lightning.seed_everything(0)
    in_full = Classifier(network(), lr=0.05)
    first = trainer(folder / "full-precision", epochs=3)
    first.fit(in_full, train_data, test_data)

    quantized = lowbit.prepare(in_full.network, weights=3, activations=3)
    lowbit.calibrate(quantized, islice(train_data, 4))

    second = trainer(folder / "low-bit", epochs=3, callbacks=[LowbitCallback(quantized)])
    low_bit = Classifier(quantized, lr=0.02)
    (calibrated,) = second.validate(low_bit, test_data, verbose=False)
    second.fit(low_bit, train_data, test_data)
    # Once more, and saved, with the statistics of batch-norm that the callback re-estimated.
    (trained,) = second.validate(low_bit, test_data, verbose=False)
    second.save_checkpoint(folder / "low-bit" / "final.ckpt")
    return {
        "full precision": float(first.callback_metrics["accuracy"]),
        "3 bits, calibrated": calibrated["accuracy"],
        "3 bits, trained": trained["accuracy"],
    }


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/lightning")))
