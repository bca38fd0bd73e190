"""`python -m benchmarks.inference`: exported integer networks in ONNX Runtime, against the float network there and in PyTorch.

The same network in every contestant: PyTorch float32 (eager), ONNX Runtime float32, ONNX Runtime on lowbit's exported file
and on the packed one. Random weights: speed means something here, accuracy does not. All contestants in turn, one process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import lowbit
from benchmarks import harness
from lowbit import models


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--csv", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = models.create(options.network)
    for module in model.modules():  # some networks start residual branches at zero, which has no step
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    model.eval()
    x = torch.randn(options.batch, 3, options.size, options.size)
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
        times = harness.interleave(contestants, repetitions=options.repetitions, warmup=3)

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
                "quartiles": f"{low:.2f}-{high:.2f}",
                "file, kB": f"{sizes[name] / 1000:,.0f}" if name in sizes else "-",
            }
        )
    print(f"{options.network}, batch {options.batch}, {options.size}x{options.size}, {options.threads} thread(s)")
    print(harness.machine())
    harness.print_table(rows)
    if options.csv is not None:
        harness.write_csv(rows, options.csv)


if __name__ == "__main__":
    main()
