"""`python -m campaigns.post_training --data PATH --init FILE`: low bits without labels, and what they are worth as a start.

The CIFAR ResNet-20 on CIFAR-10-JPEG, from trained weights in full precision. Rows "rounded": steps by least squares, every weight
rounded to its nearest level. Rows "reconstructed": the same network after `lowbit.reconstruct`, on training images without
their labels. Rows "trained": after epochs of training with labels, from either of the two. All on the 10,000 test images. A
row that is there is not run again; `--table` prints the table from the rows alone. Minutes are the whole row's, with reading
the images and the test, on the machine that the row names.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from benchmarks import harness
from campaigns.accuracy.report import spread
from campaigns.zero_points import accuracy
from lowbit import models
from lowbit.data import Loader, loaders
from lowbit.files import atomic_write
from lowbit.recipes import get_recipe

IMAGES, STEPS, LR, MEAN_SQUARES = 1024, (400, 1000), 0.02, "least-squares"
RESULTS = Path("docs/results/post-training.csv")


@dataclass(frozen=True)
class Cell:
    """What is measured.

    Attributes:
        bits: of weights and activations; the first and the last layer have 8.
        steps: of reconstruction, for each block; 0: every weight is rounded to its nearest level.
        epochs: of training with labels that follow.
        seed: of the choice of images, and of what is random in reconstruction and training.
    """

    bits: int
    steps: int
    epochs: int
    seed: int


def cells() -> Iterator[Cell]:
    """In the order in which they are run."""
    for seed in (0, 1, 2):
        for bits in (3, 4, 2):
            for steps in (0, *STEPS):
                yield Cell(bits, steps, 0, seed)
        if seed == 0:
            yield from (Cell(bits, 0, 3, seed) for bits in (4, 3))
            for epochs in (1, 2, 4):
                yield from (Cell(2, steps, epochs, seed) for steps in (0, STEPS[0]))


@dataclass
class Campaign:
    """Where data, weights and results are."""

    data: Path
    init: Path
    results: Path
    work: Path
    device: str = "cpu"

    def run(self, wanted: Sequence[Cell]) -> None:
        for cell in wanted:
            if cell in {each for each, _ in read(self.results)}:
                continue
            print(f"{cell} …", flush=True)
            began = {now: now() for now in (time.monotonic, time.process_time)}
            model, test = self._started(cell)
            if cell.epochs:
                self._train(model, cell)
            found = accuracy(model, test)
            minutes, busy = ((now() - start) / 60 for now, start in began.items())
            numbers = {"test": f"{found:.2f}", "minutes": f"{minutes:.1f}", "processor minutes": f"{busy:.1f}"}
            numbers["machine"] = harness.machine(self.device)
            append(self.results, cell, numbers)
            print(f"{cell}: {found:.2f} %", flush=True)

    def _loaders(self, seed: int, batch_size: int) -> tuple[Loader, Loader]:
        config = replace(get_recipe("cifar10-resnet20")().data, path=str(self.data), batch_size=batch_size)
        return loaders(config, seed=seed, device=torch.device(self.device))

    def _started(self, cell: Cell) -> tuple[nn.Module, Loader]:
        train, test = self._loaders(cell.seed, 64)
        batches = [images for _, (images, _) in zip(range(IMAGES // 64), train)]
        network = models.create("cifar-resnet20")
        models.load_weights(network, self.init)
        rules = {"init_weights": MEAN_SQUARES, "init_activations": MEAN_SQUARES}
        model = lowbit.prepare(network, weights=cell.bits, activations=cell.bits, **rules).to(self.device)
        lowbit.calibrate(model, batches[:8])
        if cell.steps:
            file = self.work / f"resnet20-w{cell.bits}a{cell.bits}-{cell.steps}-s{cell.seed}.pt"
            file.parent.mkdir(parents=True, exist_ok=True)
            lowbit.reconstruct(model, batches, cell.steps, seed=cell.seed, checkpoint=file, on_block=_show)
        return model.eval(), test

    def _train(self, model: nn.Module, cell: Cell) -> None:
        train, _ = self._loaders(cell.seed, 128)
        optimizer = torch.optim.SGD(lowbit.parameter_groups(model, weight_decay=1e-4), lr=LR, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=cell.epochs * len(train))
        model.train()
        for epoch in range(cell.epochs):
            train.set_epoch(epoch)
            for images, labels in train:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
                schedule.step()
        model.eval()


def _show(done: int, blocks: int, block: lowbit.Reconstructed) -> None:
    print(f"  block {done} of {blocks}, {block.layers[0]}: {block.before:.4f} → {block.after:.4f}", flush=True)


def read(path: Path) -> list[tuple[Cell, dict[str, str]]]:
    """The cells that are there, and what was found."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    types: dict[str, Any] = {"bits": int, "steps": int, "epochs": int, "seed": int}
    return [(Cell(**{name: types[name](row.pop(name)) for name in types}), row) for row in rows]


def append(path: Path, cell: Cell, found: dict[str, str]) -> None:
    """Put a row behind those that are there."""
    rows = [*read(path), (cell, {**found, "lowbit": lowbit.__version__})]
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        names = [field.name for field in fields(Cell)]
        writer = csv.DictWriter(file, [*names, *rows[-1][1]], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**{name: getattr(each, name) for name in names}, **row} for each, row in rows)


def table(path: Path) -> list[dict[str, str]]:
    """A row for each width and way, with the mean over seeds."""
    groups: dict[tuple[int, int, int], list[float]] = {}
    for cell, row in read(path):
        groups.setdefault((cell.bits, cell.steps, cell.epochs), []).append(float(row["test"]))
    return [
        {
            "bits": f"W{bits}A{bits}",
            "start": f"reconstructed, {steps} steps" if steps else "rounded",
            "epochs with labels": str(epochs),
            "seeds": str(len(found)),
            "test %": spread(found),
        }
        for (bits, steps, epochs), found in sorted(
            groups.items(), key=lambda each: (-each[0][0], each[0][2], each[0][1])
        )
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.post_training", description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder of CIFAR-10-JPEG")
    parser.add_argument("--init", type=Path, help="trained weights of the CIFAR ResNet-20")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs/post-training"), help="for unfinished reconstructions")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--cells", type=int, default=None, help="run this many and stop")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    options = parser.parse_args(arguments)
    if not options.table:
        if options.data is None or options.init is None:
            parser.error("--data and --init are needed to run cells")
        Campaign(options.data, options.init, options.results, options.work, options.device).run(
            list(cells())[: options.cells]
        )
    harness.print_table(table(options.results))


if __name__ == "__main__":
    main()
