"""The memory of a training step against the full-precision one.

"saved": bytes that autograd keeps for the backward pass, each storage once, without parameters, buffers and the batch.
"held": the same by the allocator, at the end of the forward pass: it also sees what is hidden from autograd, and the loss.
"peak": the most that was allocated at any time of forward and backward, above what was there before.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks import harness
from benchmarks.result import Bars, Table
from benchmarks.saved import held_bytes
from benchmarks.step import add_networks, steps
from benchmarks.workload import FULL_PRECISION, TrainingStep
from lowbit.saved import saved_bytes


def add_options(parser: argparse.ArgumentParser) -> None:
    add_networks(parser)


def measure(step: TrainingStep) -> dict[str, int]:
    """Bytes saved, held and at the peak of one step."""
    step()  # compiles, and allocates the optimizer's state
    step.clear()
    saved = saved_bytes(step.forward, step.given())
    step.clear()
    held, peak = held_bytes(step.forward, step.x.device.type)
    step.clear()
    return {"saved": saved, "held": held, "peak": peak}


def columns(measured: dict[str, int], base: dict[str, int]) -> dict[str, str]:
    """Megabytes (10^6) and ratios to the base, as a table shows them."""
    found: dict[str, str] = {}
    for kind, size in measured.items():
        found[f"{kind} MB"] = f"{size / 1e6:.2f}"
        found["ratio" if kind == "saved" else f"{kind} ratio"] = f"{size / base[kind]:.3f}"
    return found


def run(options: argparse.Namespace) -> Iterator[Table]:
    device = "cuda" if options.gpu else "cpu"
    for name, subject, contestants in steps(options):
        found = {label: measure(step) for label, step in contestants.items()}
        rows = [
            {"step": label, **columns(sizes, found[f"{label.split()[0]} {FULL_PRECISION}"])}
            for label, sizes in found.items()
        ]
        yield Table(
            f"memory-{name}-{device}", f"Memory of a step: {subject}", harness.machine(device), rows, Bars("ratio")
        )
