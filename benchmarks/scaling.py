"""Whether cost grows with work and nothing else, and what is paid once: compiling, calibrating, preparing, importing.

Step time against depth (CIFAR ResNets), and against width, batch and the number of quantized layers (a chain of equal
convolutions). For each series a straight line is fitted (R²) and a power of the quantity (the exponent): 1 is linear. "added" is the
prepared network's time less the full-precision one's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import lowbit
from benchmarks import harness
from benchmarks.result import Lines, Table
from benchmarks.workload import FULL_PRECISION, TrainingStep, float_network, images, network
from lowbit.models.cifar_resnet import CifarResNet


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--method", default="lsq")
    parser.add_argument("--modes", nargs="+", choices=["compiled", "eager"], help="default: both, with --quick eager")
    parser.add_argument("--repetitions", type=int, help="default: 15, with --quick 7")


def chain(width: int, layers: int = 8) -> nn.Module:
    """`layers` equal 3x3 convolutions with batch-norm and ReLU between one that widens and a linear layer."""

    def block(inputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

    middle = [layer for _ in range(layers) for layer in block(width)]
    return nn.Sequential(*block(3), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def prepared(model: nn.Module, x: Tensor, options: argparse.Namespace, quantized: int | None = None) -> nn.Module:
    """The model prepared and calibrated; of the chain's middle layers only the first `quantized`, where given."""
    rules = []
    if quantized is not None:
        convolutions = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
        rules = [lowbit.Rule(name, skip=True) for name in convolutions[1 + quantized :]]
    return lowbit.calibrate(
        lowbit.prepare(
            model, weights=options.bits, activations=options.bits, method=options.method, first_last=8, rules=rules
        ),
        [x],
    )


def axes(quick: bool) -> dict[str, list[int]]:
    """The quantities and their values."""
    if quick:
        return {"depth": [8, 20, 32], "width": [16, 32, 48], "batch": [32, 64, 96], "quantized layers": [0, 4, 8]}
    return {
        "depth": [8, 20, 32, 44, 56],
        "width": [16, 32, 48, 64, 96],
        "batch": [32, 64, 128, 192, 256],
        "quantized layers": [0, 2, 4, 6, 8],
    }


def pair(axis: str, value: int, options: argparse.Namespace, mode: str) -> dict[str, TrainingStep]:
    """The step in full precision and prepared, at one value of one quantity."""
    batch = value if axis == "batch" else 32
    x = images(batch, 32, "cpu")
    torch.manual_seed(0)
    base = CifarResNet(value) if axis == "depth" else chain(value if axis == "width" else 32)
    base = base.to(memory_format=torch.channels_last)
    low = prepared(base, x, options, value if axis == "quantized layers" else None)
    return {
        series: TrainingStep(model, x, compiled=mode == "compiled")
        for series, model in ((FULL_PRECISION, base), (options.method, low))
    }


def fit(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """(R² of the straight line through the points, exponent of the power law through those with positive x and y)."""
    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    residual = y - np.polyval(np.polyfit(x, y, 1), x)
    spread = ((y - y.mean()) ** 2).sum()
    positive = (x > 0) & (y > 0)
    exponent = np.polyfit(np.log(x[positive]), np.log(y[positive]), 1)[0] if positive.sum() > 1 else float("nan")
    return (1 - (residual**2).sum() / spread if spread else 1.0), float(exponent)


def growth(options: argparse.Namespace, mode: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(a row for every point, a row for every fit) of one mode."""
    points, fits = [], []
    for axis, values in axes(options.quick).items():
        steps = {}
        for value in values:
            steps |= {(series, value): step for series, step in pair(axis, value, options, mode).items()}
        times = harness.interleave(steps, repetitions=options.repetitions or (7 if options.quick else 15))
        series = {name: [times[name, value].median for value in values] for name in (FULL_PRECISION, options.method)}
        for name, seconds in series.items():
            points += [
                {"quantity": axis, "value": str(value), "series": f"{mode} {name}", "ms": f"{1e3 * taken:.2f}"}
                for value, taken in zip(values, seconds)
            ]
        series["added"] = [b - a for a, b in zip(*series.values())]
        if axis == "quantized layers":
            del series[FULL_PRECISION]  # it has none
        for name, seconds in series.items():
            r2, exponent = fit(values, seconds)
            fits.append(
                {"step time": f"{mode} {name} against {axis}", "R2": f"{r2:.4f}", "exponent": f"{exponent:.2f}"}
            )
    return points, fits


def seconds(run: Callable[[], object], repetitions: int) -> list[float]:
    """How long it takes, several times over."""
    taken = []
    for _ in range(repetitions):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return taken


def compile_times(options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Seconds of compiling forward and backward with empty caches: (full precision, prepared), in turn."""
    from torch._inductor.utils import fresh_cache

    x = images(16, 32, "cpu")
    name = "cifar-resnet20"
    models = {FULL_PRECISION: network(name, FULL_PRECISION, options.bits, x)}
    models[options.method] = network(name, options.method, options.bits, x)
    if options.quick:
        torch.manual_seed(0)
        base = CifarResNet(8).to(memory_format=torch.channels_last)
        models = {FULL_PRECISION: base, options.method: prepared(base, x, options)}

    def compile_it(model: nn.Module) -> None:
        torch._dynamo.reset()
        with fresh_cache():
            TrainingStep(model, x, compiled=True).forward().backward()

    # What the compiler does once in a process belongs to nobody.
    compile_it(nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()).to(memory_format=torch.channels_last))
    found: dict[str, list[float]] = {key: [] for key in models}
    for _ in range(1 if options.quick else 3):
        for key, model in models.items():
            found[key] += seconds(partial(compile_it, model), 1)
    return found[FULL_PRECISION], found[options.method]


def calibration_times(options: argparse.Namespace) -> tuple[list[float], list[float], str]:
    """Seconds of (inference, calibration) of a ResNet-50, five batches to four, and what was run in words."""
    size, batch, batches = (64, 4, (10, 8)) if options.quick else (224, 8, (40, 32))
    model = float_network("resnet50", "cpu").eval()
    data = [torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last) for _ in range(2)]

    def infer() -> None:
        with torch.no_grad():
            for i in range(batches[0]):
                model(data[i % 2])

    inference, calibration = [], []
    infer()
    for _ in range(1 if options.quick else 3):
        inference += seconds(infer, 1)
        fresh = lowbit.prepare(model, weights=options.bits, activations=options.bits, method=options.method)
        calibration += seconds(partial(lowbit.calibrate, fresh, [data[i % 2] for i in range(batches[1])]), 1)
    words = f"calibrate ResNet-50, {batches[1]} batches, against {batches[0]} of inference ({batch}x3x{size}x{size})"
    return inference, calibration, words


def import_times(repetitions: int) -> tuple[list[float], list[float]]:
    """Seconds of importing (torch, lowbit after torch), each time in a fresh interpreter."""
    program = (
        "import time; a = time.perf_counter(); import torch; b = time.perf_counter(); import lowbit; "
        "print(b - a, time.perf_counter() - b)"
    )
    pairs = []
    for _ in range(repetitions):
        printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
        pairs.append([float(word) for word in printed.split()])
    return [a for a, _ in pairs], [b for _, b in pairs]


def once(options: argparse.Namespace) -> list[dict[str, str]]:
    """A row for each cost that is paid once."""
    rows = []

    def add(what: str, found: list[float], against: list[float] | None, limit: str) -> None:
        middle = statistics.median(found)
        rows.append(
            {
                "once": what,
                "seconds": f"{middle:.3f}",
                "spread": f"{min(found):.3f}-{max(found):.3f}",
                "against": "-" if against is None else f"{statistics.median(against):.3f}",
                "ratio": "-" if against is None else f"{middle / statistics.median(against):.3f}",
                "goal": limit,
            }
        )

    base, low = compile_times(options)
    add(f"compile ResNet-{8 if options.quick else 20}'s step, against full precision's", low, base, "ratio 1.5")
    base, low, words = calibration_times(options)
    add(words, low, base, "ratio 1")
    model = float_network("resnet152", "cpu")
    add("prepare ResNet-152", seconds(lambda: lowbit.prepare(model), 1 if options.quick else 5), None, "2 s")
    base, low = import_times(3 if options.quick else 9)
    add("import lowbit, after torch's own", low, base, "0.3 s")
    return rows


def run(options: argparse.Namespace) -> Iterator[Table]:
    machine = harness.machine()
    points, fits = [], []
    for mode in options.modes or (["eager"] if options.quick else ["compiled", "eager"]):
        more_points, more_fits = growth(options, mode)
        points += more_points
        fits += more_fits
    subject = (
        f"Step time against depth, width, batch and quantized layers, {options.method}, W{options.bits}A{options.bits}"
    )
    yield Table("scaling-points", subject, machine, points, Lines("value", "ms", "series", "quantity"))
    yield Table("scaling-fits", "Fits: " + subject[0].lower() + subject[1:], machine, fits)
    yield Table("scaling-once", "Costs that are paid once", machine, once(options))
