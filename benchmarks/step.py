"""`python -m benchmarks.step`: the training step of a prepared network against the full-precision one.

Forward, loss, backward and optimizer step on one batch, compiled and eager, all variants in turn in one process; the
figure is the ratio of medians to the full-precision step of the same mode, with the quartiles of the ratios repetition by
repetition beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

import lowbit
from benchmarks import harness
from lowbit import models


def training_step(
    name: str, method: str | None, bits: int, batch: int, size: int, *, compiled: bool, device: str
) -> Callable[[], object]:
    """One step of network `name` at `bits` by `method` (None: full precision) on random data."""
    torch.manual_seed(0)
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    model = models.create(name, num_classes=10).to(device, memory_format=torch.channels_last)
    if method is not None:
        model = lowbit.calibrate(lowbit.prepare(model, weights=bits, activations=bits, method=method), [x])
    groups = lowbit.parameter_groups(model, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9)
    lowbit.attach(model, optimizer)
    labels = torch.randint(0, 10, (batch,), device=device)

    def loss() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return F.cross_entropy(model(x), labels)

    run = torch.compile(loss, fullgraph=True) if compiled else loss

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        run().backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--network", default="cifar-resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=["lsq", "lsq+", "lg-lsq"])
    parser.add_argument("--modes", nargs="+", default=["compiled", "eager"], choices=["compiled", "eager"])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--csv", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()

    variants: list[str | None] = [None, *options.methods]
    contestants = {}
    for mode in options.modes:
        for method in variants:
            contestants[f"{mode} {method or 'full precision'}"] = training_step(
                options.network, method, options.bits, options.batch, options.size,
                compiled=mode == "compiled", device=options.device,
            )  # fmt: skip
    times = harness.interleave(contestants, repetitions=options.repetitions, device=options.device)
    rows = []
    for mode in options.modes:
        base = times[f"{mode} full precision"]
        for method in variants:
            timing = times[f"{mode} {method or 'full precision'}"]
            low, _, high = timing.ratio_to(base)
            rows.append(
                {
                    "step": f"{mode} {method or 'full precision'}",
                    "median ms": f"{timing.median * 1e3:.1f}",
                    "ratio of medians": f"{timing.median / base.median:.3f}",
                    "quartiles of ratios": f"{low:.3f}-{high:.3f}",
                }
            )
    print(f"{options.network}, batch {options.batch}, {options.size}x{options.size}, W{options.bits}A{options.bits}")
    print(harness.machine(options.device))
    harness.print_table(rows)
    if options.csv is not None:
        harness.write_csv(rows, options.csv)


if __name__ == "__main__":
    main()
