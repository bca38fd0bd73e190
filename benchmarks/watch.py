"""What the log of quantizers costs in training: the time of a look (`lowbit.diagnosis.watch`) over that of the steps between two.

A look is timed by itself, beside the steps it belongs to; what else the machine does falls on both alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

from benchmarks import harness
from benchmarks.result import Bars, Table
from benchmarks.workload import TrainingStep, images
from lowbit import calibrate, models, prepare
from lowbit.diagnosis.watch import APART, WINDOW, Watch

# Network, batch, size of images: from a step of tiny tensors, where fixed costs count most, to one of large weights.
WORK = {"digits-cnn": (64, 8), "cifar-resnet20": (128, 32), "resnet8": (128, 32), "resnet18": (8, 64)}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", nargs="+", choices=tuple(WORK), default=tuple(WORK))


def run(options: argparse.Namespace) -> Iterator[Table]:
    device = "cuda" if options.gpu else "cpu"
    rows = []
    for name in options.networks:
        batch, size = WORK[name]
        x = images(batch, size, device)[:, : 1 if name == "digits-cnn" else 3].contiguous()
        model = calibrate(prepare(models.create(name).to(device), weights=3, activations=3), [x])
        step = TrainingStep(model, x, compiled=False)
        look, plain = measure(step, looks=2 if options.quick else 6, device=device)
        share = look / (APART * plain)
        rows.append(
            {
                "step": f"{name}, batch {batch}",
                "step ms": f"{1e3 * plain:.3g}",
                "look ms": f"{1e3 * look:.3g}",
                "share of training, %": f"{100 * share:.3f}",
            }
        )
    subject = f"The log of quantizers: a look of {WINDOW} steps at every {APART}th, W3A3, eager"
    yield Table(f"watch-{device}", subject, harness.machine(device), rows, Bars("share of training, %"))


def measure(step: TrainingStep, *, looks: int, device: str) -> tuple[float, float]:
    """Median seconds of a whole look, and of a step without one."""
    watch = Watch(step.model, step.optimizer)
    before, after = watch._before, watch._after
    spent = 0.0

    def timed(function) -> None:
        nonlocal spent
        harness.synchronise(device)
        began = time.perf_counter()
        function()
        harness.synchronise(device)
        spent += time.perf_counter() - began

    watch._before, watch._after = (lambda: timed(before)), (lambda: timed(after))
    found, steps = [], []
    for _ in range(looks + 1):
        watch.begin(0, WINDOW, 1)
        spent = 0.0
        began = time.perf_counter()
        for _ in range(WINDOW):
            step()
        harness.synchronise(device)
        steps.append((time.perf_counter() - began - spent) / WINDOW)
        found.append(spent)
    watch.remove()
    return statistics.median(found[1:]), statistics.median(steps[1:])  # the first makes kernels
