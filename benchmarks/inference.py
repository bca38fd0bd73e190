"""Exported integer networks in ONNX Runtime, against the float network there and in PyTorch.

The same network in every contestant: PyTorch float32 (eager), ONNX Runtime float32, ONNX Runtime on lowbit's exported file
of each width, and on the packed one where packing makes it smaller. Random weights: speed means something here, accuracy does
not. All contestants in turn, one process; with one thread (the default) in time of the processor. A second table says which
operators of ONNX Runtime take the time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import lowbit
from benchmarks import harness, operators
from benchmarks.result import Bars, Table
from benchmarks.workload import image_size, images
from lowbit import models

NETWORKS = {
    "resnet18": ["W4A4"],
    "deit-tiny": ["W4A8", "W8A8"],
    "swin_tiny_patch4_window7_224": ["W4A8", "W8A8"],
}
"""The networks of a run without `--networks`, and the widths of each."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help=f"default: {', '.join(NETWORKS)}")
    parser.add_argument("--size", type=int, help="height and width of the images; default: the network's own")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--widths",
        nargs="+",
        type=width,
        metavar="WxAy",
        help="bits of weights and activations; default: W4A8 and W8A8 for the two transformers, W4A4 for any other network",
    )
    parser.add_argument("--repetitions", type=int, help="default: 40, with --quick 10")
    parser.set_defaults(threads=1)


def width(text: str) -> str:
    """The text, where it is a width like W4A8."""
    if re.fullmatch(r"W\dA\d", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no width like W4A8")
    return text


def float_onnx(model: nn.Module, x: Tensor, path: Path) -> None:
    """The float network as ONNX, by torch's own exporter."""
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (x,), path, dynamo=True, opset_version=21, external_data=False, verbose=False)


def session(path: Path, x: Tensor, threads: int) -> Callable[[], object]:
    """A run of the file on x in ONNX Runtime, default options but for the number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    loaded = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {loaded.get_inputs()[0].name: x.numpy()}
    return lambda: loaded.run(None, feed)


def float_network(name: str) -> nn.Module:
    """The network in full precision with random weights, in evaluation mode."""
    model = models.create(name)
    for module in model.modules():  # some networks start residual branches at zero, which has no step
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def export(model: nn.Module, x: Tensor, widths: list[str], folder: Path) -> dict[str, Path]:
    """Files of the network by contestant: in float32, and in integers of each width, each proven equal on x."""
    plain = folder / "float.onnx"
    float_onnx(model, x, plain)
    paths = {"ONNX Runtime float32": plain}
    for each in widths:
        weights, activations = int(each[1]), int(each[3])
        prepared = lowbit.prepare(
            model, weights=weights, activations=activations, integer_only=True, example_input=x[:1]
        )
        network = lowbit.to_integer(lowbit.calibrate(prepared, [x]).eval(), x)
        formats = {"onnx": each, "onnx-packed": f"{each} packed"} if weights <= 4 else {"onnx": each}
        for kind, label in formats.items():
            path = paths[f"ONNX Runtime {label}"] = folder / f"{each}.{kind}.onnx"
            lowbit.export(network, path, kind, batches=[x])
    return paths


def run(options: argparse.Namespace) -> Iterator[Table]:
    torch.set_num_threads(options.threads)
    for name in options.networks:
        yield from tables(name, options)


def tables(name: str, options: argparse.Namespace) -> Iterator[Table]:
    """One network's contestants, and what their operators take."""
    import onnxruntime

    torch.manual_seed(0)
    model, size = float_network(name), options.size or image_size(name)
    x = images(options.batch, size, "cpu").contiguous()
    with tempfile.TemporaryDirectory() as folder:
        paths = export(model, x, options.widths or NETWORKS.get(name, ["W4A4"]), Path(folder))
        sizes = {label: path.stat().st_size for label, path in paths.items()}

        def pytorch() -> object:
            with torch.inference_mode():
                return model(x)

        contestants = {
            "PyTorch float32": pytorch,
            **{label: session(path, x, options.threads) for label, path in paths.items()},
        }
        repetitions = options.repetitions or (10 if options.quick else 40)
        clock = time.process_time if options.threads == 1 else time.perf_counter
        times = harness.interleave(contestants, repetitions=repetitions, warmup=3, clock=clock)
        profiles = {
            label.removeprefix("ONNX Runtime "): operators.times_of(path, x, options.threads)
            for label, path in paths.items()
            if "packed" not in label  # the same operators: weights are unpacked on loading
        }

    base = times["ONNX Runtime float32"]
    rows = []
    for label, timing in times.items():
        low, middle, high = base.ratio_to(timing)
        rows.append(
            {
                "contestant": label,
                "median ms": f"{timing.median * 1e3:.2f}",
                "images/s": f"{options.batch / timing.median:.1f}",
                "speed-up over ONNX Runtime float32": f"{middle:.2f}",
                "lower quartile": f"{low:.2f}",
                "upper quartile": f"{high:.2f}",
                "file kB": f"{sizes[label] / 1000:.0f}" if label in sizes else "-",
            }
        )
    threads = "1 thread, its time on the processor" if options.threads == 1 else f"{options.threads} threads"
    subject = f"Inference: {name}, batch {options.batch}, {size}x{size}, {threads}"
    machine = f"{harness.machine()}; onnxruntime {onnxruntime.__version__}"
    chart = Bars("speed-up over ONNX Runtime float32", "lower quartile", "upper quartile")
    slug = name.replace("_", "-")
    yield Table(f"inference-{slug}", subject, machine, rows, chart)
    subject = f"Operators of {name} in ONNX Runtime, batch {options.batch}, {size}x{size}, by its profiler"
    yield Table(f"operators-{slug}", subject, machine, operators.rows(profiles))


if __name__ == "__main__":  # `python -m benchmarks.inference` is `python -m benchmarks inference`
    import sys

    from benchmarks.command import main

    main(["inference", *sys.argv[1:]])
