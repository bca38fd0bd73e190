"""`python -m campaigns.microcontrollers --output docs/results`: exported C on this machine and on seven cores in QEMU.

MLPerf Tiny's networks with random weights and the digits network, trained, each at W8A8, W4A8, W4A4 and W2A2 (first and last
layer 8 bits); with `--data` (CIFAR-10-JPEG) also the trained ResNet-8 that comes with lowbit, and with `--init` (trained weights in
full precision) a ResNet-20, calibrated and not trained at these bits. Every layer's codes against the integer reference, flash and
RAM, and the instructions of one inference.
What the table has already is not measured again: a stopped campaign goes on. `--again` measures all.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from benchmarks import harness
from lowbit import models
from lowbit.data import loaders
from lowbit.files import atomic_write
from lowbit.formats.c import boards, runner, writer
from lowbit.formats.c.memory import plan
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops.layer import Layer
from lowbit.recipes import get_recipe
from lowbit.verification.compare import compare

SETTINGS = ((8, 8), (4, 8), (4, 4), (2, 2))
SHIPPED, CALIBRATED = "resnet8-cifar10jpeg", "resnet20-cifar10jpeg"
NETWORKS = ("digits-cnn", "resnet8", "ds-cnn", "mobilenetv1-0.25", "autoencoder", SHIPPED, CALIBRATED)
MODELS = {SHIPPED: "resnet8", CALIBRATED: "cifar-resnet20"}
"""The architecture of the networks that are not called after it."""
HOST = "host"
INPUTS = {HOST: 256}
BOARD_INPUTS = 16
_EPOCHS = 8


@cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: images from 0 to 1, and classes."""
    from sklearn.datasets import load_digits

    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    return images.float().reshape(-1, 1, 8, 8) / 16, labels


@dataclass(frozen=True)
class Trained:
    """Where trained networks' images and weights are: the folder of CIFAR-10-JPEG, and weights of a ResNet-20 for it."""

    data: Path | None = None
    init: Path | None = None

    def settings(self, name: str) -> Sequence[tuple[int, int]]:
        """The bits at which a network can be had."""
        if name == SHIPPED:
            return ((4, 4), (3, 3), (2, 2)) if self.data else ()
        return SETTINGS if name != CALIBRATED or (self.data and self.init) else ()


@cache
def cifar(data: Path) -> tuple[Tensor, Tensor]:
    """256 images of CIFAR-10-JPEG to calibrate on, and 256 test images."""
    config = replace(get_recipe("cifar10-resnet20")().data, path=str(data), limit=256, eval_batch_size=256)
    config = replace(config, batch_size=256, augment="none")
    train, test = (next(iter(split))[0] for split in loaders(config, seed=0))
    return train, test[: INPUTS[HOST]]


def integer_network(
    name: str, weights: int, activations: int, trained: Trained = Trained()
) -> tuple[IntegerNetwork, Tensor]:
    """The network at these bits, and inputs: test images of the trained ones, for the others noise."""
    torch.manual_seed(0)
    if name == SHIPPED:
        return models.load(f"{name}-w{weights}a{activations}"), cifar(trained.data)[1]
    model = models.create(MODELS.get(name, name))
    options = {"weights": weights, "activations": activations, "integer_only": True}
    if name == "digits-cnn":
        images, labels = digits()
        _train(model, images[:1500], labels[:1500], 0.05)
        prepared = lowbit.calibrate(lowbit.prepare(model, **options), images[:1500].split(50)[:4])
        _train(prepared, images[:1500], labels[:1500], 0.01)
        x = images[1500:]
    elif name == CALIBRATED:
        models.load_weights(model, trained.init)
        images, x = cifar(trained.data)
        prepared = lowbit.calibrate(lowbit.prepare(model.eval(), **options), images.split(64))
    else:
        x = torch.randn(INPUTS[HOST], *models.NETWORKS[name].input_shape)
        lowbit.reestimate_batchnorm(model, x.split(32))
        prepared = lowbit.calibrate(lowbit.prepare(model.eval(), **options), x.split(32))
    return lowbit.to_integer(prepared.eval(), x[:1]), x


def _train(model: nn.Module, images: Tensor, labels: Tensor, rate: float) -> None:
    groups = lowbit.parameter_groups(model, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    model.train()
    for _ in range(_EPOCHS):
        for x, y in zip(images.split(50), labels.split(50)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def rows(
    name: str, weights: int, activations: int, cores: Sequence[str], trained: Trained
) -> Iterator[dict[str, object]]:
    """A row per core: differences, sizes, instructions."""
    network, x = integer_network(name, weights, activations, trained)
    graph = network.graph
    weighted = [node.weight for node in graph.nodes if isinstance(node, Layer)]
    macs = sum(cost.macs for cost in network.costs())
    needed = sum(weight.codes.numel() * weight.bits for weight in weighted) / 8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.c"
        writer.write(graph, path)
        packed = int(
            next(line for line in path.with_suffix(".h").read_text().splitlines() if "WEIGHT_BYTES" in line).split()[-1]
        )
        about = {
            "network": name, "W": weights, "A": activations, "MACs": macs, "weights": packed,
            "over bits/8": f"{100 * (packed / needed - 1):.1f} %", "arena": plan(graph).arena,
        }  # fmt: skip
        for core in cores:
            if core == HOST:
                report = compare(network, runner.CRunner(path, graph), x.split(32))
                found = {}
            else:
                report = compare(network, boards.BoardRunner(path, graph, core), [x[:BOARD_INPUTS]])
                m = boards.measure(path, graph, core, Path(folder))
                found = {
                    "other constants": m.constants - packed, "code": m.code, "flash": m.constants + m.code, "RAM": m.ram,
                    "stack": m.stack, "selftest": m.selftest, "instructions": m.instructions,
                    "per MAC": f"{m.instructions / macs:.2f}",
                }  # fmt: skip
            checked = {"core": core, "inputs": report.samples, "codes": report.compared, "differ": report.differ}
            yield about | checked | found


def page(rows: Sequence[dict[str, str]], machine: str, tflite: Sequence[dict[str, str]] = ()) -> str:
    """What was measured, as a page of the documentation: a table of sizes on Cortex-M4, one of instructions, one of differences.

    Args:
        rows: of this campaign.
        machine: versions of compilers and emulator.
        tflite: of campaigns.vela, for the bytes of the same networks in TensorFlow Lite Micro.
    """
    by = {tuple(row[column] for column in KEY): row for row in rows}
    kinds = list(dict.fromkeys((row["network"], row["W"], row["A"]) for row in rows))
    cores = [core for core in [HOST, *boards.BOARDS] if any(row["core"] == core for row in rows)]

    def table(head: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
        return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *cells])

    def named(kind: tuple[str, ...]) -> list[str]:
        return [kind[0], f"W{kind[1]}A{kind[2]}"]

    def value(kind: tuple[str, ...], core: str, column: str) -> str:
        text = by.get((*kind, core), {}).get(column, "")
        return f"{int(text):,}" if text.isdigit() else text

    def differing(kind: tuple[str, ...], core: str) -> str:
        compared = value(kind, core, "codes")
        return f"{value(kind, core, 'differ')} of {compared}" if compared else "not measured"

    sizes = ("weights", "over bits/8", "other constants", "code", "flash", "RAM", "stack", "instructions")
    size_table = table(
        ["network", "bits", "MACs", *sizes],
        (
            [*named(k), value(k, "cortex-m4", "MACs"), *(value(k, "cortex-m4", column) for column in sizes)]
            for k in kinds
        ),
    )
    real = [core for core in cores if core != HOST]
    work_table = table(
        ["network", "bits", *real], ([*named(k), *(value(k, core, "per MAC") for core in real)] for k in kinds)
    )
    differ_table = table(
        ["network", "bits", *cores],
        ([*named(k), *(differing(k, c) for c in cores)] for k in kinds),
    )
    beside_table = table(
        ["network", "bits", "C: flash", "C: RAM", "TFLM: file, int8", "TFLM: file, int4", "TFLM: arena"],
        (
            [*named(k), value(k, "cortex-m4", "flash"), value(k, "cortex-m4", "RAM")]
            + [f"{int(other[column]):,}" for column in ("int8 file", "int4 file", "int8 TFLM arena")]
            for k in kinds
            for other in tflite
            if (other["network"], other["W"], other["A"]) == k and other["int8 TFLM arena"]
        ),
    )
    goal_table = table(["goal", "found", ""], _goals(by, kinds, real))
    return _PAGE.format(
        machine=machine, sizes=size_table, work=work_table, differ=differ_table, goals=goal_table, beside=beside_table
    )


def _goals(
    by: dict[tuple[str, ...], dict[str, str]], kinds: Sequence[tuple[str, ...]], cores: Sequence[str]
) -> list[list[str]]:
    """What was aimed at beside what was found, and by how much it was missed."""

    def number(kind: tuple[str, ...], core: str, column: str) -> float:
        text = by.get((*kind, core), {}).get(column, "")
        return float(text.rstrip(" %")) if text else math.nan

    def row(goal: str, found: float, most: float, unit: str = "") -> list[str]:
        shown = f"{found:,.2f}" if most < 100 else f"{found:,.0f}"
        missed = f"missed by {100 * (found / most - 1):.0f} %" if most else "missed"
        return [goal, f"{shown}{unit}", "not measured" if math.isnan(found) else "met" if found <= most else missed]

    def measured(values: Iterable[float]) -> list[float]:
        return [each for each in values if not math.isnan(each)]

    def most_of(values: Iterable[float]) -> float:
        return max(measured(values), default=math.nan)

    def in_all(kind: tuple[str, ...]) -> float:
        """RAM with the caller's input, a byte a code, and the stack."""
        size = math.prod(models.NETWORKS[MODELS.get(kind[0], kind[0])].input_shape)
        return number(kind, "cortex-m4", "RAM") + number(kind, "cortex-m4", "stack") + size

    small, vision = ("resnet8", "4", "4"), ("mobilenetv1-0.25", "2", "2")
    low = [kind for kind in kinds if kind[1] in "42"]
    lines = [
        row("codes that differ", sum(measured(number((*k,), c, "differ") for k in kinds for c in [HOST, *cores])), 0),
        row(
            "weights of 2 and 4 bits over bits/8", most_of(number(k, "cortex-m4", "over bits/8") for k in low), 3, " %"
        ),
        row("ResNet-8 W4A4, flash in all, bytes", number(small, "cortex-m4", "flash"), 56_000),
        row("ResNet-8 W4A4, RAM in all with input and stack, bytes", in_all(small), 40_000),
        row("MobileNetV1-0.25 W2A2, flash in all, bytes", number(vision, "cortex-m4", "flash"), 96_000),
        row("MobileNetV1-0.25 W2A2, RAM in all with input and stack, bytes", in_all(vision), 48_000),
        row("code on Cortex-M4, largest, bytes", most_of(number(k, "cortex-m4", "code") for k in kinds), 12_000),
    ]
    for name in dict.fromkeys(kind[0] for kind in kinds):
        for weights, activations in (("8", "8"), ("4", "4"), ("2", "2")):
            kind, most = (name, weights, activations), 5 if weights == "2" else 3
            if kind not in kinds:
                continue
            goal = f"{name} W{weights}A{activations}, instructions a MAC on Cortex-M4"
            lines.append(row(goal, number(kind, "cortex-m4", "per MAC"), most))
        worst = most_of(number(kind, "cortex-m0", "per MAC") for kind in kinds if kind[0] == name)
        lines.append(row(f"{name}, instructions a MAC on Cortex-M0, at most", worst, 12))
    return lines


_PAGE = """# Microcontrollers

    python -m campaigns.microcontrollers --output docs/results --data CIFAR-10-JPEG --init resnet20-jpeg.safetensors

MLPerf Tiny's networks with random weights; the digits network, trained; the ResNet-8 that comes with lowbit, trained at
its bits; and a ResNet-20 with trained weights that is calibrated, not trained at these bits. First and last layer at 8
bits. Every network was exported as C99 and compiled at -O2. {machine}.

## Sizes

Bytes of net.c compiled for Cortex-M4 without floats and self-test. "Over bits/8" is what packed weights take beyond
their bits; "other constants" are biases, multipliers, shifts and layers; RAM is all static memory, without the
caller's input and output; "stack" was measured below net_run's caller. Instructions are those of one inference.

{sizes}

## Beside TensorFlow Lite Micro

The same networks as `.tflite` files of codes ([vela.md](vela.md)) in TensorFlow Lite Micro's interpreter: bytes of the file, which
lies in flash, and of the arena by the interpreter's own report, on 64 bits, where pointers take twice the bytes of a
microcontroller's. The interpreter's and the kernels' code come on top of it; C's flash has all code in it.

{beside}

Published, measured by others on boards and not here: MLPerf Tiny's logs have ResNet-8 in int8 on a Cortex-M4 at 120 MHz at
704 ms in TensorFlow Lite Micro's reference, 390 ms in microTVM with CMSIS-NN, 168 ms in Plumerai and 166 ms in X-CUBE-AI 10.2, which is 1.6
cycles a multiply-accumulate (DS-CNN 2.0, MobileNetV1-0.25 1.4, autoencoder 2.2). ST Edge AI reports for ResNet-8 in int8 on an
STM32H7 63.8 KiB of RAM, 76.9 KiB of weights and 36.1 KiB of code, for MobileNetV1-0.25 83.3 KiB of RAM and 282.7 KiB of flash.

## Instructions a multiply-accumulate

QEMU's count of executed instructions (-icount) over the network's multiply-accumulates. QEMU knows no cycles; these
are not times.

{work}

## Codes that differ

Of every layer, from the integer reference in "fixed": over 256 inputs on this machine (the digits' 297 test images),
over 16 on a core. The trained ResNets' inputs are test images of CIFAR-10 stored as JPEG.

{differ}

## Against the goals

{goals}

The goals for instructions are of convolutions; the figures are of whole networks. In MobileNet and DS-CNN every
second convolution takes every channel by itself: 9 multiply-accumulates an output, of which each output's
requantization takes as many instructions as the products. On Cortex-M4 these layers take 9 to 13 instructions a
multiply-accumulate, the others with 64 inputs and more 1.7 to 2.4, and the first ones of MobileNet, with 8 inputs an
output, 5 to 9. Tried for them: windows copied as 16-bit numbers (22 instructions), sums of four channels from the
tensor itself (14), requantization in rows of 16 outputs (9); taps in lines of three, unrolled, without a table of places (9
still, 4 to 6 % fewer on Cortex-M0, 1 % more on Cortex-M4, and not kept). Of all instructions of DS-CNN at W8A8 on Cortex-M4
about 26 % are requantization, 30 for an output, and 20 % the products of those layers; of MobileNetV1-0.25 at W4A4 about 32
and 18 %.
"""

KEY = ("network", "W", "A", "core")
COLUMNS = (
    *KEY, "inputs", "codes", "differ", "MACs", "weights", "over bits/8", "other constants", "code", "flash",
    "arena", "RAM", "stack", "selftest", "instructions", "per MAC",
)  # fmt: skip


def in_order(row: dict[str, str]) -> tuple[int, ...]:
    """What rows are sorted by: the network, then from many bits to few."""
    return NETWORKS.index(row["network"]), -int(row["W"]), -int(row["A"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which networks, and where trained ones are; what is measured again."""
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS, metavar="NAME")
    parser.add_argument(
        "--settings", nargs="+", type=lambda text: tuple(map(int, text.split(","))), metavar="W,A", help="default: all"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="CIFAR-10-JPEG, for the trained ResNets")
    parser.add_argument("--init", type=Path, metavar="FILE", help="weights in full precision, for the ResNet-20")
    parser.add_argument("--again", action="store_true", help="measure what the table has already, too")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.microcontrollers", description=__doc__)
    parser.add_argument(
        "--cores", nargs="+", default=[HOST, *boards.BOARDS], choices=[HOST, *boards.BOARDS], metavar="CORE"
    )
    add_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for microcontrollers.csv and .md")
    options = parser.parse_args(arguments)
    trained = Trained(options.data, options.init)
    table = harness.ResumedTable(options.output / "microcontrollers.csv", KEY, in_order, again=options.again)
    for name in options.networks:
        for weights, activations in options.settings or trained.settings(name):
            cores = [core for core in options.cores if (name, weights, activations, core) not in table]
            if not cores:
                continue
            for row in rows(name, weights, activations, cores, trained):
                table.add({column: row.get(column, "") for column in COLUMNS})
    with atomic_write(options.output / "microcontrollers.md") as temporary:
        others = options.output / "vela.csv"
        temporary.write_text(page(table.rows, _tools(), harness.read_csv(others) if others.exists() else ()))


def _tools() -> str:
    """The versions of compilers and emulator."""
    commands = ([runner.compiler(), "--version"], ["arm-none-eabi-gcc", "--version"], ["qemu-system-arm", "--version"])
    lines = (
        subprocess.run(each, capture_output=True, text=True).stdout.splitlines()[0]
        for each in commands
        if shutil.which(each[0])
    )
    return "; ".join(lines)


if __name__ == "__main__":
    main()
