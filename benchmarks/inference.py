"""Exported integer networks in ONNX Runtime, against the float network there and in PyTorch.

The same network in every contestant: PyTorch float32 (eager), ONNX Runtime float32, ONNX Runtime on lowbit's exported file
and on the packed one. Random weights: speed means something here, accuracy does not. All contestants in turn, one process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import lowbit
from benchmarks import harness
from benchmarks.result import Bars, Table
from benchmarks.workload import image_size, images
from lowbit import models


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, help="height and width of the images; default: the network's own")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--repetitions", type=int, help="default: 40, with --quick 10")
    parser.set_defaults(threads=1)


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


def run(options: argparse.Namespace) -> Iterator[Table]:
    import onnxruntime

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = models.create(options.network)
    for module in model.modules():  # some networks start residual branches at zero, which has no step
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    model.eval()
    size = options.size or image_size(options.network)
    x = images(options.batch, size, "cpu").contiguous()
    prepared = lowbit.prepare(model, weights=options.bits, activations=options.bits, integer_only=True)
    network = lowbit.to_integer(lowbit.calibrate(prepared, [x]).eval(), x)

    width = f"W{options.bits}A{options.bits}"
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            f"ONNX Runtime {kind}": Path(folder) / f"{i}.onnx"
            for i, kind in enumerate(("float32", width, f"{width} packed"))
        }
        plain, integer, packed = paths.values()
        float_onnx(model, x, plain)
        lowbit.export(network, integer, "onnx", batches=[x])
        lowbit.export(network, packed, "onnx-packed", batches=[x])
        sizes = {name: path.stat().st_size for name, path in paths.items()}

        def pytorch() -> object:
            with torch.inference_mode():
                return model(x)

        contestants = {
            "PyTorch float32": pytorch,
            **{name: session(path, x, options.threads) for name, path in paths.items()},
        }
        repetitions = options.repetitions or (10 if options.quick else 40)
        times = harness.interleave(contestants, repetitions=repetitions, warmup=3)

    base = times["ONNX Runtime float32"]
    rows = []
    for name, timing in times.items():
        low, middle, high = base.ratio_to(timing)
        rows.append(
            {
                "contestant": name,
                "median ms": f"{timing.median * 1e3:.2f}",
                "images/s": f"{options.batch / timing.median:.1f}",
                "speed-up over ONNX Runtime float32": f"{middle:.2f}",
                "lower quartile": f"{low:.2f}",
                "upper quartile": f"{high:.2f}",
                "file kB": f"{sizes[name] / 1000:.0f}" if name in sizes else "-",
            }
        )
    subject = f"Inference: {options.network}, batch {options.batch}, {size}x{size}, {options.threads} thread(s)"
    machine = f"{harness.machine()}; onnxruntime {onnxruntime.__version__}"
    chart = Bars("speed-up over ONNX Runtime float32", "lower quartile", "upper quartile")
    yield Table(f"inference-{options.network}", subject, machine, rows, chart)


if __name__ == "__main__":  # `python -m benchmarks.inference` is `python -m benchmarks inference`
    import sys

    from benchmarks.command import main

    main(["inference", *sys.argv[1:]])
