"""`python -m campaigns.allocation --data PATH --given FOLDER`: bits within a budget, chosen for CIFAR's ResNet-8 and ResNet-20.

For each network and budget, the rules that `lowbit.allocate` finds from 256 training images without their labels, and the frontier
over the bytes of weights. Inputs of layers have 4 bits, so that weights alone are compared. What networks of those bits
reach by training is table "bits" of `campaigns.accuracy`, which reads the rules. With `--rounded`, what they reach without:
test accuracy of the rules that are there and of uniform bits, every weight rounded to its nearest level.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import lowbit
from benchmarks import harness
from campaigns.accuracy.tables.bits import CHOICES, FOLDER, NETWORKS, budgets, bytes_of, rules_file
from campaigns.zero_points import accuracy
from lowbit import models
from lowbit.data import Loader, loaders
from lowbit.files import atomic_write
from lowbit.recipes import get_recipe


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.allocation", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of CIFAR-10-JPEG")
    parser.add_argument(
        "--given", type=Path, required=True, help="the folder with trained weights of the CIFAR ResNet-20"
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounded", action="store_true", help="evaluate the rules that are there, without training")
    options = parser.parse_args(arguments)
    config = replace(get_recipe("cifar10-resnet20")().data, path=str(options.data), batch_size=64)
    train, test = loaders(config, seed=0)
    batches = [images for _, (images, _) in zip(range(options.images // 64), train)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    networks = {name: models.create(name) for name in NETWORKS}
    for name, network in networks.items():
        models.load_weights(network, NETWORKS[name](options.given))
    rows = rounded(networks, batches, test) if options.rounded else allocated(networks, batches)
    with atomic_write(FOLDER / ("rounded.csv" if options.rounded else "allocation.csv")) as path:
        harness.write_csv(rows, Path(path))
    print(harness.machine(), f"torch {torch.__version__}")
    harness.print_table(rows)


def rounded(networks: dict[str, nn.Module], batches: Sequence[Tensor], test: Loader) -> list[dict[str, str]]:
    """A row for each network and choice of bits, by steps of least squares, before and after batch-norm is re-estimated."""
    rows = []
    for name, network in networks.items():
        uniform = {f"uniform-{bits}": {"weights": bits} for bits in (2, 3, 4)}
        chosen = {
            f"allocated-{budget}": {
                "rules": [lowbit.Rule(**rule) for rule in json.loads(rules_file(name, budget).read_text())]
            }
            for budget in budgets(name)
        }
        for row, bits in {**uniform, **chosen}.items():
            model = lowbit.prepare(
                network, activations=4, init_weights="least-squares", init_activations="least-squares", **bits
            )
            lowbit.calibrate(model.eval(), batches)
            found = {
                "network": name,
                "row": row,
                "bytes": str(bytes_of(model)),
                "test %": f"{accuracy(model, test):.2f}",
            }
            lowbit.reestimate_batchnorm(model, batches)
            rows.append({**found, "batch-norm again, test %": f"{accuracy(model, test):.2f}"})
            print(rows[-1], flush=True)
    return sorted(rows, key=lambda each: (each["network"], int(each["bytes"])))


def allocated(networks: dict[str, nn.Module], batches: Sequence[Tensor]) -> list[dict[str, str]]:
    """A row for each network and budget; rules and frontiers go to their files."""
    rows = []
    for name, network in networks.items():
        for budget, limit in budgets(name).items():
            began = time.monotonic()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                found = lowbit.allocate(network.eval(), batches, {"weights": limit}, CHOICES, activation_choices=(4,))
            seconds = time.monotonic() - began
            widths = [w for w, _ in found.bits.values()]
            rules = [
                {"pattern": rule.pattern, "weights": rule.weights, "activations": rule.activations} for rule in found
            ]
            with atomic_write(rules_file(name, budget)) as path:
                Path(path).write_text(json.dumps(rules, indent=1) + "\n")
            rows.append(
                {
                    "network": name,
                    "budget": budget,
                    "bytes": f"{found.costs['weights']:.0f}",
                    "average bits": f"{found.costs['average_bits']:.2f}",
                    "expected loss": f"{found.loss:.3g}",
                    "of uniform bits": "-" if found.uniform is None else f"{found.uniform.loss:.3g}",
                    "bits": " ".join(map(str, widths)),
                    "seconds": f"{seconds:.1f}",
                }
            )
        points = found.frontier("weights", 24)
        with atomic_write(FOLDER / f"frontier-{name}.csv") as path, open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["bytes", "expected loss", "uniform"])
            writer.writerows([f"{p.cost:.0f}", f"{p.loss:.6g}", p.uniform or ""] for p in points)
    return rows


if __name__ == "__main__":
    main()
