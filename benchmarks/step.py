"""The training step of a prepared network against the full-precision one.

Forward, loss, backward and optimizer step on one batch, compiled and eager, all variants in turn in one process. A ratio is
to the full-precision step of the same mode: the median over the repetitions, with its quartiles.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks import harness
from benchmarks.result import Bars, Table
from benchmarks.workload import FULL_PRECISION, TrainingStep, image_size, images, network


def add_options(parser: argparse.ArgumentParser) -> None:
    add_networks(parser)
    parser.add_argument("--repetitions", type=int, help="default: 40, with --quick 7, with --gpu 10")


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Options that say which networks, variants and modes."""
    parser.add_argument("--networks", nargs="+", help="default: cifar-resnet20, with --gpu resnet18 and mobilenetv2")
    parser.add_argument("--batch", type=int, help="default: 128, with --gpu 256")
    parser.add_argument("--size", type=int, help="height and width of the images; default: the network's own")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument(
        "--methods",
        nargs="*",
        help="beside full precision; default: lsq, lsq+ and lg-lsq, with --quick or --gpu lsq and lg-lsq",
    )
    parser.add_argument("--modes", nargs="+", default=["compiled", "eager"], choices=["compiled", "eager"])


def steps(options: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, TrainingStep]]]:
    """For every network: its name, the subject in words, and the step of every variant, "MODE METHOD"."""
    device = "cuda" if options.gpu else "cpu"
    batch = options.batch or (256 if options.gpu else 128)
    for name in options.networks or (["resnet18", "mobilenetv2"] if options.gpu else ["cifar-resnet20"]):
        size = options.size or image_size(name)
        methods = options.methods
        if methods is None:
            methods = ["lsq", "lg-lsq"] if options.quick or options.gpu else ["lsq", "lsq+", "lg-lsq"]
        x = images(batch, size, device)
        subject = f"{name}, batch {batch}, {size}x{size}, W{options.bits}A{options.bits}"
        yield name, f"{subject}, bfloat16 autocast" if options.gpu else subject, {
            f"{mode} {method}": TrainingStep(network(name, method, options.bits, x), x, compiled=mode == "compiled")
            for mode in options.modes
            for method in (FULL_PRECISION, *methods)
        }  # fmt: skip


def run(options: argparse.Namespace) -> Iterator[Table]:
    device = "cuda" if options.gpu else "cpu"
    repetitions = options.repetitions or (10 if options.gpu else 7 if options.quick else 40)
    for name, subject, contestants in steps(options):
        times = harness.interleave(contestants, repetitions=repetitions, device=device)
        rows = [
            {"step": label, **timing.columns(times[f"{label.split()[0]} {FULL_PRECISION}"])}
            for label, timing in times.items()
        ]
        chart = Bars("ratio", "lower quartile", "upper quartile")
        yield Table(f"step-{name}-{device}", f"Training step: {subject}", harness.machine(device), rows, chart)
