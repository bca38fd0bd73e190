"""`python -m campaigns.scaling`: what a run on ImageNet costs on 1, 8 and 64 GPUs, from numbers that it is given.

Counted from the network and the schedule: steps, bytes of a gradient, bytes that an all-reduce moves. Computed where their
inputs are given: hours (`--step-ms` or `--step-csv`), communication (`--inside`, `--between`), cores that decode (`--decode`, or
`--measure-decode` here and now). A column whose inputs are not given is left out: nothing is guessed.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copy

import torch

import lowbit
from benchmarks import harness
from lowbit import models
from lowbit.data import DataConfig, ImageSource, open_dataset
from lowbit.data.decode import read_image
from lowbit.data.stream import image_transform, seeded

IMAGENET_IMAGES = 1_281_167
IMAGENET_BYTES = 147_897_477_120  # ILSVRC2012_img_train.tar


@dataclass(frozen=True)
class Plan:
    """A run and the rates of the machines it is planned for; a rate that is None is not known."""

    parameters: int
    images: int
    epochs: int
    batch: int
    """Of each GPU."""
    step: float | None = None
    """Seconds of one GPU's step, without communication."""
    inside: float | None = None
    """Bytes per second that a GPU sends to others of its machine."""
    between: float | None = None
    """Bytes per second that a machine sends to others, over all its links; a ring crosses from each machine once."""
    decode: float | None = None
    """Images per second that a core decodes and augments."""
    cores: int | None = None
    """For each GPU."""
    gpus_per_machine: int = 8

    def steps(self, gpus: int) -> int:
        """Of the whole run."""
        return self.images // (self.batch * gpus) * self.epochs

    def moved(self, gpus: int, bytes_each: int = 4) -> float:
        """Bytes that each GPU sends, and receives, in a step: a ring's all-reduce of all gradients, 2(n - 1)/n of them."""
        return 2 * (gpus - 1) / gpus * self.parameters * bytes_each

    def communication(self, gpus: int, bytes_each: int = 4) -> float | None:
        """Seconds of a step's all-reduce at the rate of the slowest link it crosses; latency is not in it."""
        if gpus == 1:
            return 0.0
        rate = self.inside if gpus <= self.gpus_per_machine else self.between
        return None if rate is None else self.moved(gpus, bytes_each) / rate

    def input_step(self) -> float | None:
        """Seconds in which a GPU's cores decode its part of a batch."""
        return None if self.decode is None or self.cores is None else self.batch / (self.decode * self.cores)

    def seconds(self, gpus: int, *, hidden: bool) -> float | None:
        """Of the run: input is prepared meanwhile, communication too if `hidden`."""
        if self.step is None:
            return None
        communication = self.communication(gpus)
        if communication is None:
            return None
        busy = max(self.step, communication) if hidden else self.step + communication
        return self.steps(gpus) * max(busy, self.input_step() or 0.0)

    def slowest(self, gpus: int) -> str | None:
        """What takes longest in a step, where all three are known."""
        parts = {"computation": self.step, "communication": self.communication(gpus), "input": self.input_step()}
        return None if None in parts.values() else max(parts, key=parts.__getitem__)

    def row(self, gpus: int) -> dict[str, object]:
        """A line of the table."""
        per_second = None if self.step is None else self.batch * gpus / self.step
        seconds = {hidden: self.seconds(gpus, hidden=hidden) for hidden in (True, False)}
        communication = self.communication(gpus)
        cells = {
            "GPUs": gpus,
            "batch": self.batch * gpus,
            "steps": f"{self.steps(gpus):,}",
            "sent MB/step, float32": f"{self.moved(gpus) / 1e6:.1f}",
            "bf16": f"{self.moved(gpus, 2) / 1e6:.1f}",
            "all-reduce ms": None if communication is None else f"{1e3 * communication:.2f}",
            "hours, hidden": None if seconds[True] is None else f"{seconds[True] / 3600:.1f}",
            "not hidden": None if seconds[False] is None else f"{seconds[False] / 3600:.1f}",
            "images/s": None if per_second is None else f"{per_second:,.0f}",
            "read MB/s": None if per_second is None else f"{per_second * IMAGENET_BYTES / IMAGENET_IMAGES / 1e6:,.0f}",
            "cores to decode": None if per_second is None or self.decode is None else f"{per_second / self.decode:.1f}",
            "slowest": self.slowest(gpus),
        }
        return {name: "?" if value is None else value for name, value in cells.items()}


def gradient_size(name: str, bits: int) -> tuple[int, int]:
    """(parameters that training moves, how many of them are steps) of a prepared network with 1000 classes."""
    prepared = lowbit.prepare(models.create(name, num_classes=1000), weights=bits, activations=bits)
    steps = sum(quantizer.raw_step.numel() for _, quantizer in lowbit.quantizers(prepared))
    return sum(p.numel() for p in prepared.parameters() if p.requires_grad), steps


def step_from_csv(file: Path, row: str, batch: int | None) -> tuple[float, int]:
    """(seconds, batch) of a row that `python -m benchmarks step` wrote; a batch that is given overrides the file's."""
    rows = {entry["step"]: entry for entry in harness.read_csv(file)}
    if row not in rows:
        raise SystemExit(f"{file}: no row {row!r}; there are {', '.join(rows)}")
    said = re.search(r"\bbatch (\d+)\b", rows[row].get("subject", ""))
    if batch is None and said is None:
        raise SystemExit(f"{file}: does not say the batch of {row!r}: give --batch")
    return float(rows[row]["median ms"]) / 1e3, batch or int(said[1])


def decode_rate(source: ImageSource, images: int) -> float:
    """Images per second of processor time that one core reads, decodes, crops (imagenet's crop to 224) and flips.

    Processor time, not the clock's: other work on the machine does not count, though it slows caches.
    """
    transform = image_transform(DataConfig("", augment="imagenet"), train=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(count: int) -> float:
        began = time.process_time()
        for number in range(count):
            seeded(transform, read_image(source, number % len(source), channels=3), seed=number)
        return time.process_time() - began

    try:
        run(8)  # libraries are loaded
        return images / run(images)
    finally:
        torch.set_num_threads(threads)


def photographs(folder: Path) -> ImageSource:
    """scikit-learn's two photographs, 640x427 JPEGs, as a data set."""
    import sklearn.datasets

    target = folder / "train" / "photographs"
    target.mkdir(parents=True)
    for file in sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg")):
        copy(file, target)
    return open_dataset(folder, "train")


def measured_decode(options: argparse.Namespace) -> float:
    with tempfile.TemporaryDirectory() as folder:
        source = open_dataset(options.data, "train") if options.data else photographs(Path(folder))
        rate = decode_rate(source, options.decode_images)
    print(
        f"measured: {rate:.1f} images/s of one core, on {options.data or 'two photographs of 640x427'}; {harness.machine()}"
    )
    return rate


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.scaling", description=__doc__)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--images", type=int, default=IMAGENET_IMAGES)
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--gpus-per-machine", type=int, default=8)
    parser.add_argument("--batch", type=int, help="of each GPU; default: the CSV's, else 32")
    parser.add_argument("--step-ms", type=float, help="a GPU's step with this batch")
    parser.add_argument("--step-csv", type=Path, metavar="FILE", help="what python -m benchmarks step wrote")
    parser.add_argument("--step-row", default="compiled lsq", metavar="NAME", help="row of the CSV")
    parser.add_argument("--inside", type=float, metavar="GB/S", help="that a GPU sends within its machine")
    parser.add_argument("--between", type=float, metavar="GB/S", help="that a machine sends to others")
    parser.add_argument("--decode", type=float, metavar="IMAGES/S", help="that a core decodes")
    parser.add_argument("--measure-decode", action="store_true", help="measure it here")
    parser.add_argument("--data", type=Path, help="images to measure with; default: scikit-learn's two photographs")
    parser.add_argument("--decode-images", type=int, default=300, help="how many to measure with")
    parser.add_argument("--cores-per-gpu", type=int)
    parser.add_argument("--csv", type=Path, default=None, metavar="FILE")
    options = parser.parse_args(arguments)

    parameters, steps = gradient_size(options.network, options.bits)
    print(f"{options.network} at W{options.bits}A{options.bits}: {parameters:,} parameters, {steps} of them steps")
    step, batch = None if options.step_ms is None else options.step_ms / 1e3, options.batch or 32
    if options.step_csv is not None:
        step, batch = step_from_csv(options.step_csv, options.step_row, options.batch)
    plan = Plan(
        parameters, options.images, options.epochs, batch, step,
        inside=options.inside and options.inside * 1e9,
        between=options.between and options.between * 1e9,
        decode=measured_decode(options) if options.measure_decode else options.decode,
        cores=options.cores_per_gpu,
        gpus_per_machine=options.gpus_per_machine,
    )  # fmt: skip
    rows = [plan.row(gpus) for gpus in options.gpus]
    known = [name for name in rows[0] if any(row[name] != "?" for row in rows)]
    rows = [{name: row[name] for name in known} for row in rows]
    harness.print_table(rows)
    if options.csv is not None:
        harness.write_csv(rows, options.csv)


if __name__ == "__main__":
    main()
