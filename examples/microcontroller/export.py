"""Train a small network on scikit-learn's digits at W4A4, and write it as C: digits.c, digits.h, and one digit as image.h.

`make` calls this. With arguments: the folder to write to, epochs of training, and which test image becomes image.h.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit import models

TRAINING_IMAGES = 1500


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float) -> None:
    """SGD on batches of 50."""
    groups = lowbit.parameter_groups(network, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    network.train()
    for _ in range(epochs):
        for x, y in zip(images.split(50), labels.split(50)):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()


def main(folder: Path, epochs: int = 8, which: int = 0) -> lowbit.IntegerNetwork:
    """Train, export to `folder`, and return the integer network."""
    torch.manual_seed(0)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = images.float().reshape(-1, 1, 8, 8) / 16
    seen, test = images[:TRAINING_IMAGES], images[TRAINING_IMAGES:]

    network = models.create("digits-cnn")
    train(network, seen, labels[:TRAINING_IMAGES], epochs, 0.05)
    prepared = lowbit.prepare(network, weights=4, activations=4, integer_only=True)
    lowbit.calibrate(prepared, seen.split(50)[:4])
    train(prepared, seen, labels[:TRAINING_IMAGES], epochs, 0.01)

    integer = lowbit.to_integer(prepared.eval(), test[:1])
    report = lowbit.export(integer, folder / "digits.c", "c", batches=[test])
    print(f"digits.c: 0 of {report.compared:,} codes differ on {report.samples} images")

    codes = integer.codes(test[which : which + 1])
    first = next(iter(codes.values())).flatten().tolist()
    lines = [f"static const digits_input_t image[DIGITS_INPUT_SIZE] = {{{', '.join(map(str, first))}}};"]
    lines.append(f"enum {{ LABEL = {int(labels[TRAINING_IMAGES + which])} }};")
    (folder / "image.h").write_text("\n".join(lines) + "\n")
    return integer


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0] if given else "."), *map(int, given[1:]))
