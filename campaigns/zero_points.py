"""`python -m campaigns.zero_points --data PATH --init FILE`: what whole zero points cost LSQ+.

The CIFAR ResNet-20 with signed activations and a learned offset at every layer ("lsq+3"), trained a little on CIFAR-10-JPEG from
trained weights: test accuracy with the fractional zero points as trained, with the same rounded afterwards, and trained with integer
zero points from the beginning, over the same batches.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from benchmarks import harness
from lowbit import models
from lowbit.data import loaders
from lowbit.recipes import get_recipe


def trained(model: nn.Module, batches: Sequence, lr: float) -> nn.Module:
    optimizer = torch.optim.SGD(lowbit.parameter_groups(model, weight_decay=1e-4), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(batches))
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, batches: Sequence) -> float:
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return 100 * right / sum(len(y) for _, y in batches)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.zero_points", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of CIFAR-10-JPEG")
    parser.add_argument("--init", type=Path, required=True, help="trained weights of the CIFAR ResNet-20")
    parser.add_argument("--images", type=int, default=3200, help="that it is trained on")
    parser.add_argument("--lr", type=float, default=0.01)
    options = parser.parse_args(arguments)

    print(harness.machine())
    config = replace(get_recipe("cifar10-resnet20")().data, path=str(options.data), batch_size=64, limit=options.images)
    train, test = (list(split) for split in loaders(config, seed=0))
    network = models.create("cifar-resnet20")
    models.load_weights(network, options.init)
    rows = []
    for bits in (2, 3, 4):
        prepared = lowbit.prepare(network, weights=bits, activations=bits, method="lsq+3")
        lowbit.calibrate(prepared, train[:4])
        fractional = trained(copy.deepcopy(prepared), train, options.lr)
        row = {"bits": f"W{bits}A{bits}", "images": sum(len(y) for _, y in test)}
        row["fractional"] = f"{accuracy(fractional, test):.2f}"
        row["rounded after training"] = f"{accuracy(lowbit.round_zero_points(fractional), test):.2f}"
        row["trained with integer zero points"] = (
            f"{accuracy(trained(lowbit.round_zero_points(prepared), train, options.lr), test):.2f}"
        )
        rows.append(row)
    harness.print_table(rows)


if __name__ == "__main__":
    main()
