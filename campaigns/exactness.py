"""`python -m campaigns.exactness --data PATH --init FILE`: exported networks against the integer reference, on real images.

ResNet-20 at W2A2, W3A3, W4A4 and W8A8, integer-only, trained a little on CIFAR-10-JPEG from trained weights, compared over the
whole test set; then ResNet-18, MobileNetV2 and ShuffleNetV2 at 224x224 with random weights, batch-norm statistics and steps
from a few of the same images, enlarged. Every code of every quantized tensor is compared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from benchmarks import harness
from lowbit import models, train
from lowbit._torchvision import import_torchvision
from lowbit.data import eval_loader
from lowbit.recipes import get_recipe
from lowbit.verification.compare import Report


def float_kernels(path: Path) -> list[str]:
    """The convolutions, products and additions that ONNX Runtime's optimized graph computes in floats."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimized)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(optimized).graph.node
    return [node.op_type for node in nodes if node.op_type in ("Conv", "FusedConv", "Gemm", "MatMul", "Add", "Mul")]


def row(name: str, report: Report, path: Path, seconds: float) -> dict[str, object]:
    """What one comparison found, for the table."""
    codes = [r for r in report.rows if not r.is_float]
    trained = [r for r in codes if r.trained_differ is not None]
    top1 = {column: f"{100 * n / report.samples:.2f}" for column, n in (report.top1 or {}).items()}
    return {
        "network": name,
        "images": report.samples,
        "tensors": len(codes),
        "codes": f"{sum(r.compared for r in codes):,}",
        "file differs": sum(r.file_differ for r in report.rows),
        "trained differs": f"{100 * sum(r.trained_differ for r in trained) / sum(r.compared for r in trained):.4f} %",
        "top-1 reference/file/trained/fixed": "/".join(
            top1.get(c, "-") for c in ("reference", "file", "trained", "fixed")
        ),
        "float kernels": len(float_kernels(path)),
        "file kB": f"{path.stat().st_size / 1000:.0f}",
        "seconds": f"{seconds:.0f}",
    }


def resnet20(bits: int, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Train a little at `bits`, export, compare over the test set; also the sizes of the packed files."""
    config = get_recipe("cifar10-resnet20")(weights=bits, activations=bits, method="lsq")
    config = replace(
        config,
        model=replace(config.model, init=str(options.init)),
        data=replace(config.data, path=str(options.data), limit=options.train_images, eval_batch_size=32),
        quantization=replace(config.quantization, integer_only=True),
        epochs=1, compile=False, output=str(folder / f"w{bits}"),
    )  # fmt: skip
    train.run(config)
    model, config = train.load(config.output, "last")
    batches = list(eval_loader(config.data))[: options.batches]
    path = folder / f"w{bits}.onnx"
    network = lowbit.to_integer(model, batches[0][0])
    lowbit.export(network, path)
    began = time.perf_counter()
    report = lowbit.verify(model, path, batches)
    result = row(f"ResNet-20 W{bits}A{bits}", report, path, time.perf_counter() - began)
    lowbit.export(network, folder / f"w{bits}.packed.onnx", "onnx-packed")
    network.save(folder / f"w{bits}.safetensors")
    sizes = ((folder / f"w{bits}{suffix}").stat().st_size / 1000 for suffix in (".packed.onnx", ".safetensors"))
    return result | dict(zip(("packed kB", "own kB"), (f"{size:.0f}" for size in sizes)))


def calibrated(name: str, model: nn.Module, images: Tensor, folder: Path) -> dict[str, object]:
    """Batch-norm statistics and steps of a network with random weights from the images; export, compare."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not bool(module.weight.any()):
            nn.init.ones_(module.weight)  # a residual branch that starts at zero has no step
    lowbit.reestimate_batchnorm(model, images.split(8))
    prepared = lowbit.calibrate(lowbit.prepare(model.eval(), integer_only=True), images.split(8)).eval()
    path = folder / f"{name}.onnx"
    lowbit.export(lowbit.to_integer(prepared, images[:1]), path, batches=[images[:1]])
    began = time.perf_counter()
    report = lowbit.verify(prepared, path, images.split(4))
    return row(f"{name} W4A4 224x224", report, path, time.perf_counter() - began) | {"packed kB": "-", "own kB": "-"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.exactness", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of CIFAR-10-JPEG")
    parser.add_argument("--init", type=Path, required=True, help="trained weights of the CIFAR ResNet-20")
    parser.add_argument("--train-images", type=int, default=6400)
    parser.add_argument("--batches", type=int, default=None, help="test batches of 32; default: all")
    parser.add_argument("--csv", type=Path, default=None, metavar="FILE")
    options = parser.parse_args(arguments)

    print(harness.machine(), f"; onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}", sep="")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for bits in (2, 3, 4, 8):
            rows.append(resnet20(bits, options, folder))
        config = get_recipe("cifar10-resnet20")()
        few = next(iter(eval_loader(replace(config.data, path=str(options.data), eval_batch_size=16))))[0]
        images = F.interpolate(few, size=(224, 224), mode="bilinear")
        torchvision = import_torchvision()
        torch.manual_seed(0)
        rows.append(calibrated("ResNet-18", models.create("resnet18"), images, folder))
        rows.append(calibrated("MobileNetV2", models.create("mobilenetv2_100"), images, folder))
        rows.append(calibrated("ShuffleNetV2", torchvision.models.shufflenet_v2_x1_0(weights=None), images, folder))
    harness.print_table(rows)
    if options.csv is not None:
        harness.write_csv(rows, options.csv)


if __name__ == "__main__":
    main()
