"""`python -m campaigns.powers --data PATH`: what power-of-two steps and narrow accumulators cost in accuracy.

A network is trained in full precision, and from there to low bits as an integer-only network: with free steps, with power-of-two
steps of weights, of activations, and of both, all with the same seed, data and settings. "digits" is the digits' network on
scikit-learn's digits, "resnet8" MLPerf Tiny's and "resnet20" on CIFAR-10-JPEG. With accumulators of a given width all layers have the same bits,
first and last ones too. Every cell is written to docs/results/powers.jsonl, and one that is
there already is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from benchmarks import harness
from lowbit import models
from lowbit.data import loaders
from lowbit.data.config import DataConfig
from lowbit.quantizer.methods import SCALES
from lowbit.recipes import get_recipe

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "powers.jsonl"
NETWORKS = {"digits": "digits-cnn", "resnet8": "resnet8", "resnet20": "cifar-resnet20"}
FULL_PRECISION, LOW_BITS = 0.1, 0.02  # learning rates


def data(name: str, path: Path | None, images: int | None) -> DataConfig:
    if name == "digits":
        return get_recipe("digits-cnn")().data
    return DataConfig(path=str(path), batch_size=128, augment="cifar", limit=images)


def trained(model: nn.Module, batches: Iterable, lr: float, epochs: int, device: str) -> nn.Module:
    optimizer = torch.optim.SGD(lowbit.parameter_groups(model, weight_decay=1e-4), lr=lr, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(batches))  # pyrefly: ignore[bad-argument-type]
    model.train()
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(device)), y.to(device)).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], device: str) -> float:
    right = sum(int((model(x.to(device)).argmax(1).cpu() == y.cpu()).sum()) for x, y in batches)
    return 100 * right / sum(len(y) for _, y in batches)


def cells(options: argparse.Namespace, done: set[tuple]) -> Iterable[dict]:
    for seed in options.seeds:
        network = None
        for bits in options.bits:
            for scales, accumulator in itertools.product(options.scales, options.accumulator_bits or [None]):
                if (options.network, seed, bits, scales, options.granularity, accumulator) in done:
                    continue
                train, test = loaders(data(options.network, options.data, options.images), seed=seed)
                test = list(test)[: options.test_batches]
                if network is None:
                    torch.manual_seed(seed)
                    network = models.create(NETWORKS[options.network], num_classes=10).to(options.device)
                    if options.init is not None:
                        models.load_weights(network, options.init)
                        network.eval()
                    else:
                        trained(network, train, FULL_PRECISION, options.full_epochs, options.device)
                    full = accuracy(network, test, options.device)
                torch.manual_seed(seed)
                start = time.perf_counter()
                prepared = lowbit.prepare(
                    network, weights=bits, activations=bits, scales=scales, granularity=options.granularity, integer_only=True,
                    accumulator_bits=accumulator or None, first_last=8 if accumulator is None else bits,
                )  # fmt: skip
                lowbit.calibrate(prepared, [batch for _, batch in zip(range(4), train)])
                trained(prepared, train, LOW_BITS, options.epochs, options.device)
                found = accuracy(prepared, test, options.device)
                yield {
                    "network": options.network, "seed": seed, "bits": bits, "scales": scales, "granularity": options.granularity,
                    "accumulator bits": accumulator, "top1": round(found, 2), "full precision": round(full, 2), "epochs": [0 if options.init else options.full_epochs, options.epochs],
                    "images": options.images, "tested": sum(len(y) for _, y in test), "seconds": round(time.perf_counter() - start, 1), "machine": harness.machine(),
                }  # fmt: skip


def table(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Mean (and span) of top-1 over the seeds, a line per network, granularity, width and accumulator."""
    names, found = ("network", "granularity", "bits", "accumulator bits"), []
    for kind in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        of = [row for row in rows if tuple(row[name] for name in names) == kind]
        network, granularity, bits, accumulator = kind
        width = {None: "-", 0: "free"}.get(accumulator, str(accumulator))
        line = {"network": network, "steps per": granularity, "bits": f"W{bits}A{bits}", "accumulator": width}
        line["seeds"] = str(len({row["seed"] for row in of}))
        line["full precision"] = f"{statistics.mean({row['seed']: row['full precision'] for row in of}.values()):.2f}"
        for scales in SCALES:
            values = [row["top1"] for row in of if row["scales"] == scales]
            span = f" ({min(values):.2f} … {max(values):.2f})" if len(values) > 1 else ""
            line[scales] = f"{statistics.mean(values):.2f}{span}" if values else "-"
        found.append(line)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.powers", description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="digits")
    parser.add_argument("--data", type=Path, help="the folder of CIFAR-10-JPEG")
    parser.add_argument(
        "--init", type=Path, help="trained weights to start from, instead of training in full precision"
    )
    parser.add_argument("--images", type=int, help="that are trained on; all of them where it is not given")
    parser.add_argument(
        "--test-batches", type=int, help="of 256 images that are tested on; all of them where it is not given"
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--granularity", default="tensor")
    parser.add_argument("--scales", nargs="+", default=list(SCALES), choices=SCALES)
    parser.add_argument("--accumulator-bits", type=int, nargs="+", help="0: the same network without a bound")
    parser.add_argument("--full-epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    path = options.results
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    key = ("network", "seed", "bits", "scales", "granularity", "accumulator bits")
    done = {tuple(row[name] for name in key) for row in rows}
    for row in cells(options, done):
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    harness.print_table(table(rows))


if __name__ == "__main__":
    main()
