"""`python -m campaigns.allocation --data PATH --given FOLDER`: bits within a budget, chosen for CIFAR's ResNet-8 and ResNet-20.

For each network, budget and sensitivity, the rules that `lowbit.allocate` finds from training images without their labels, and
the frontier over the bytes of weights (by gradients). What is there is not looked for again. Inputs of layers have 4 bits, so that
weights alone are compared. What networks of those bits reach by training is table "bits" of `campaigns.accuracy`, which reads
the rules. What they reach without, by the rules that are there and by uniform bits: with `--rounded`, every weight rounded to
its nearest level; with `--reconstructed`, after `lowbit.reconstruct`. `--table` prints all of it from the results alone.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import time
import warnings
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowbit
from benchmarks import harness
from campaigns.accuracy import results
from campaigns.accuracy.report import spread
from campaigns.accuracy.tables.bits import CHOICES, FOLDER, NETWORKS, ROWS, TABLE, budgets, bytes_of, rules_file
from campaigns.zero_points import accuracy
from lowbit import models
from lowbit.data import Loader, loaders
from lowbit.files import atomic_write
from lowbit.recipes import get_recipe
from lowbit.report import render

IMAGES = {"gradients": 256, "measured": 512, "learned": 1024}
"""That bits are chosen from, by sensitivity: in batches of 64."""
STEPS, SEEDS = 400, (0, 1, 2)
"""Of reconstruction, for each block, from 1,024 images."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.allocation", description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder of CIFAR-10-JPEG")
    parser.add_argument("--given", type=Path, help="the folder with trained weights of the CIFAR ResNet-20")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=tuple(NETWORKS))
    parser.add_argument("--sensitivities", nargs="+", choices=tuple(IMAGES), default=tuple(IMAGES))
    parser.add_argument("--rounded", action="store_true", help="evaluate the rules that are there, without training")
    parser.add_argument("--reconstructed", action="store_true", help="the same, after reconstruction")
    parser.add_argument("--table", action="store_true", help="print all that was found, by bytes; run nothing")
    options = parser.parse_args(arguments)
    if options.table:
        print(render(table(), markdown=True))
        return
    if options.data is None or options.given is None:
        parser.error("--data and --given are needed")
    config = replace(get_recipe("cifar10-resnet20")().data, path=str(options.data), batch_size=64)
    train, test = loaders(config, seed=0)
    batches = [images for _, (images, _) in zip(range(max(IMAGES.values()) // 64), train)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    networks = {name: models.create(name).eval() for name in options.networks}
    for name, network in networks.items():
        models.load_weights(network, NETWORKS[name](options.given))
    way = rounded if options.rounded else reconstructed if options.reconstructed else None
    file = FOLDER / (f"{way.__name__}.csv" if way else "allocation.csv")
    rows = harness.read_csv(file) if file.exists() else []
    print(harness.machine(), f"torch {torch.__version__}")
    for name, network in networks.items():
        done = {key(row) for row in rows}
        each = (
            [way(name, network, batches, test, done)]
            if way
            else [allocated(name, network, batches, sensitivity, done) for sensitivity in options.sensitivities]
        )
        for row in itertools.chain.from_iterable(each):
            rows.append(row)
            harness.write_csv(sorted(rows, key=order), file)
            print(*row.values(), sep="  ", flush=True)
    harness.print_table(sorted(rows, key=order))


def table() -> list[dict[str, str]]:
    """A row for each network and choice of bits: test accuracy by every way that there are results of."""
    after: dict[tuple[str, str], list[float]] = {}
    for line in harness.read_csv(FOLDER / "reconstructed.csv"):
        after.setdefault((line["network"], line["row"]), []).append(float(line["test %"]))
    trained: dict[tuple[str, str], list[float]] = {}
    for line in results.read(results.FOLDER).values():
        if line["table"] == TABLE.name and line["test"] is not None:
            trained.setdefault((line["network"], line["row"]), []).append(line["test"])
    return [
        {
            "network": line["network"],
            "weights": line["row"],
            "bytes": f"{int(line['bytes']):,}",
            "rounded": line["test %"],
            "batch-norm re-estimated": line["batch-norm again, test %"],
            "reconstructed": spread(after.get(key(line)[:2], ())),
            "trained": spread(trained.get(key(line)[:2], ())),
        }
        for line in harness.read_csv(FOLDER / "rounded.csv")
    ]


def order(row: dict[str, str]) -> tuple[str, int, str, str]:
    """By network and bytes."""
    return row["network"], int(row["bytes"]), row["row"], row.get("seed", "")


def key(row: dict[str, str]) -> tuple[str, ...]:
    """What a line is of: network, row, and the seed where something is drawn."""
    return row["network"], row["row"], row.get("seed", "")


def bits_of_rows(name: str) -> dict[str, dict[str, Any]]:
    """Arguments of `lowbit.prepare` for each choice of bits that is there, by row."""
    choices: dict[str, dict[str, Any]] = {f"uniform-{bits}": {"weights": bits} for bits in (2, 3, 4)}
    for row in (f"{kind}-{budget}" for kind in ROWS.values() for budget in budgets(name)):
        if (file := rules_file(name, row)).exists():
            choices[row] = {"rules": [lowbit.Rule(**rule) for rule in json.loads(file.read_text())]}
    return choices


def prepared(network: nn.Module, batches: Sequence[Tensor], bits: dict[str, Any]) -> nn.Module:
    """The network at a choice of bits, with steps of least squares."""
    model = lowbit.prepare(
        network, activations=4, init_weights="least-squares", init_activations="least-squares", **bits
    )
    return lowbit.calibrate(model.eval(), batches[:4])


def rounded(
    name: str, network: nn.Module, batches: Sequence[Tensor], test: Loader, done: Set[tuple[str, ...]]
) -> Iterator[dict[str, str]]:
    """A line for each choice of bits, before and after batch-norm is re-estimated."""
    for row, bits in bits_of_rows(name).items():
        found = {"network": name, "row": row}
        if key(found) in done:
            continue
        model = prepared(network, batches, bits)
        found |= {"bytes": str(bytes_of(model)), "test %": f"{accuracy(model, test):.2f}"}
        lowbit.reestimate_batchnorm(model, batches[:4])
        yield {**found, "batch-norm again, test %": f"{accuracy(model, test):.2f}"}


def reconstructed(
    name: str, network: nn.Module, batches: Sequence[Tensor], test: Loader, done: Set[tuple[str, ...]]
) -> Iterator[dict[str, str]]:
    """A line for each seed and choice of bits."""
    for seed, (row, bits) in itertools.product(SEEDS, bits_of_rows(name).items()):
        found = {"network": name, "row": row, "seed": str(seed)}
        if key(found) in done:
            continue
        model = prepared(network, batches, bits)
        began = time.process_time()
        lowbit.reconstruct(model, batches, STEPS, seed=seed)
        seconds = time.process_time() - began
        found |= {"bytes": str(bytes_of(model)), "test %": f"{accuracy(model, test):.2f}"}
        yield {**found, "processor seconds": f"{seconds:.0f}"}


def allocated(
    name: str, network: nn.Module, batches: Sequence[Tensor], sensitivity: str, done: Set[tuple[str, ...]]
) -> Iterator[dict[str, str]]:
    """A line for each budget; rules and the frontier go to their files."""
    batches = batches[: IMAGES[sensitivity] // 64]
    for budget, limit in budgets(name).items():
        row = f"{ROWS[sensitivity]}-{budget}"
        if (name, row, "") in done:
            continue
        began = {now: now() for now in (time.monotonic, time.process_time)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = lowbit.allocate(
                network, batches, {"weights": limit}, CHOICES, activation_choices=(4,), sensitivity=sensitivity
            )
        seconds, busy = (now() - start for now, start in began.items())
        found.save(rules_file(name, row))
        if sensitivity == "gradients":
            with atomic_write(FOLDER / f"frontier-{name}.csv") as path, open(path, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["bytes", "expected loss", "uniform"])
                writer.writerows([f"{p.cost:.0f}", f"{p.loss:.6g}", p.uniform or ""] for p in found.frontier(points=24))
            found.plot(FOLDER / f"frontier-{name}.png")
        yield {
            "network": name,
            "row": row,
            "images": str(IMAGES[sensitivity]),
            "bytes": f"{found.costs['weights']:.0f}",
            "average bits": f"{found.costs['average_bits']:.2f}",
            "expected loss": f"{found.loss:.3g}",
            "of uniform bits": "-" if found.uniform is None else f"{found.uniform.loss:.3g}",
            "bits": " ".join(str(w) for w, _ in found.bits.values()),
            "seconds": f"{seconds:.1f}",
            "processor seconds": f"{busy:.1f}",
        }


if __name__ == "__main__":
    main()
