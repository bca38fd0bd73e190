"""The main job on real data, in about a minute: `make demo`.

A small convolutional network learns the digits that scikit-learn carries in full precision, then goes to W4A4, W3A3 and
W2A2 by LSQ, LSQ+ and LG-LSQ, and to W4A4 without labels as well (`--task reconstruct`). What comes out is one table, and in `demo-output/` a folder for every run (config, log,
checkpoints, plots) and a figure that compares the methods. The networks trained by LSQ are then exported as integer networks,
proved equal code by code, and timed in ONNX Runtime: a second table. Last they become C for microcontrollers, where there is a
C compiler to prove that with.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import lowbit
from lowbit import train
from lowbit.data import eval_loader
from lowbit.files import atomic_write
from lowbit.formats import FORMATS
from lowbit.recipes import get_recipe
from lowbit.report import read_run, write_report
from lowbit.train import TrainConfig
from lowbit.verification.compare import Report

OUTPUT = Path(__file__).resolve().parent.parent / "demo-output"
METHODS = {"lsq": "LSQ", "lsq+": "LSQ+", "lg-lsq": "LG-LSQ"}
WIDTHS = (4, 3, 2)
FULL_PRECISION_EPOCHS, LOW_BIT_EPOCHS = 15, 10
UNLABELLED, RECONSTRUCTION_STEPS = (4, "lsq"), 100
"""Width and method of the network that learns without labels, and for how many steps each of its blocks does."""
LOW_BIT_LR = 0.01


@dataclass(frozen=True)
class Outcome:
    """One network. `bits` and `method` are None in full precision; accuracy in percent, size in kB."""

    bits: int | None
    method: str | None
    folder: Path
    accuracy: float
    size: float
    seconds: float
    labels: bool = True

    @property
    def width(self) -> str:
        return "FP32" if self.bits is None else f"W{self.bits}A{self.bits}"


def main() -> None:
    # Tensors of this size are computed faster by one thread than shared out to several.
    torch.set_num_threads(1)
    console = Console(file=sys.stdout, highlight=False)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    began = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console.print(
        "Digits (8x8 pixels, 1,437 to train, 360 to test) with a small convolutional network.\n"
        "The first and the last layer have 8 bits. Networks are not compiled (it would take longer than training does), only\n"
        "the quantizers.\n",
        soft_wrap=True,
    )
    # The runs' own lines go to the log, so that a terminal shows one bar.
    with (
        open(OUTPUT / "log.txt", "w") as log,
        Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar,
    ):
        task = bar.add_task("training", total=2 + len(WIDTHS) * len(METHODS))
        outcomes = []
        wanted = [(bits, method, True) for bits in WIDTHS for method in METHODS]
        for bits, method, labels in [(None, None, True), (*UNLABELLED, False), *wanted]:
            if len(outcomes) == 1:
                with redirect_stdout(log):
                    compiling = warm_up()
                console.print(f"the quantizers' kernels are compiled, once: {compiling:.1f} s, in no other figure")
            with redirect_stdout(log):
                outcomes.append(train_one(bits, method, labels=labels))
            bar.advance(task)
            console.print(f"{describe(outcomes[-1])}: {outcomes[-1].accuracy:.1f} % in {outcomes[-1].seconds:.1f} s")
    console.print()
    console.print(results_table(outcomes))
    by_lsq = [outcome for outcome in outcomes if outcome.method == "lsq" and outcome.labels]
    console.print(deployment_table([deploy(outcome, outcomes[0]) for outcome in by_lsq]))
    console.print(
        f"Files in kB; float32 takes {outcomes[0].size:.1f}. Images/s in ONNX Runtime, one thread; times those of PyTorch float32.",
        soft_wrap=True,
    )
    console.print(microcontrollers(by_lsq), soft_wrap=True)
    page = report([outcome for outcome in outcomes if outcome.method in (None, "lsq")])
    figure = plot_comparison(outcomes, OUTPUT / "accuracy.png")
    console.print("One seed and 360 test images: differences of less than a point mean little.", soft_wrap=True)
    console.print("LG-LSQ is a reconstruction: see docs/methods.md.")
    console.print(f"\n{time.monotonic() - began:.0f} s in all.")
    console.print(f"The methods side by side:  {relative(figure)}")
    console.print(f"A page about LSQ's runs:   {relative(page)}")
    console.print(f"Curves of every run:       {relative(OUTPUT)}/*/plots/")


def warm_up() -> float:
    """Train each method for an epoch, so that the first to be timed is not charged for compiling kernels; returns the seconds."""
    began = time.monotonic()
    for method in METHODS:
        config = replace(config_for(WIDTHS[0], method), epochs=1, output=str(OUTPUT / "warm-up"))
        train.run(config)
        shutil.rmtree(config.output)
    return time.monotonic() - began


def train_one(bits: int | None, method: str | None, *, labels: bool = True) -> Outcome:
    """Train in full precision (bits None), or take that network to `bits` by `method`, with or without labels."""
    config = config_for(bits, method)
    if not labels:
        config = replace(
            config,
            task="reconstruct",
            reconstruction=replace(config.reconstruction, steps=RECONSTRUCTION_STEPS),
            output=str(OUTPUT / f"w{bits}a{bits}-no-labels"),
        )
    began = time.monotonic()
    result = train.run(config)
    seconds = time.monotonic() - began
    network, _ = train.load(result.folder, "last")
    size = lowbit.model_size_bits(network) / 8 / 1000
    return Outcome(bits, method, result.folder, result.accuracy, size, seconds, labels)


def config_for(bits: int | None, method: str | None) -> TrainConfig:
    """The recipe of a run, with the demo's epochs, learning rate and folders."""
    start = OUTPUT / "full-precision"
    if bits is None:
        return replace(get_recipe("digits-cnn-fp")(), epochs=FULL_PRECISION_EPOCHS, output=str(start))
    config = get_recipe("digits-cnn")(weights=bits, activations=bits, method=method)
    return replace(
        config,
        model=replace(config.model, init=str(start)),
        optimizer=replace(config.optimizer, lr=LOW_BIT_LR),
        quantization=replace(config.quantization, integer_only=True),
        epochs=LOW_BIT_EPOCHS,
        output=str(OUTPUT / f"w{bits}a{bits}-{method}"),
    )


def results_table(outcomes: list[Outcome]) -> Table:
    """One row per network; the drop is against the first, the full-precision one."""
    reference = outcomes[0].accuracy
    table = Table(title="Test accuracy and size")
    for heading in ("width", "method"):
        table.add_column(heading)
    for heading in ("accuracy, %", "drop, points", "size, kB", "seconds"):
        table.add_column(heading, justify="right")
    for before, outcome in zip([None, *outcomes], outcomes):
        if before is not None and before.bits != outcome.bits:
            table.add_section()
        table.add_row(
            outcome.width,
            METHODS.get(outcome.method, "-") if outcome.labels else "no training labels",
            f"{outcome.accuracy:.2f}",
            "-" if outcome.bits is None else f"{reference - outcome.accuracy:.2f}",
            f"{outcome.size:.1f}",
            f"{outcome.seconds:.1f}",
        )
    return table


@dataclass(frozen=True)
class Deployed:
    """An exported network: the proof, file sizes in kB by format, images per second."""

    width: str
    report: Report
    sizes: dict[str, float]
    integer_speed: float
    float_speed: float


def deploy(outcome: Outcome, reference: Outcome) -> Deployed:
    """Export a run in every format, compare the ONNX file with the integer network on all test images, and time both."""
    model, config = train.load(outcome.folder, "last")
    batches = list(eval_loader(config.data))
    network = lowbit.to_integer(model, batches[0][0])
    names = {"onnx": "model.onnx", "onnx-packed": "model.packed.onnx", "lowbit": "model.safetensors"}
    for format, name in names.items():
        lowbit.export(network, outcome.folder / name, format)
    report = lowbit.verify(model, outcome.folder / "model.onnx", batches)
    sizes = {format: (outcome.folder / name).stat().st_size / 1000 for format, name in names.items()}
    original, _ = train.load(reference.folder, "last")
    images = torch.cat([x for x, _ in batches])[:128]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(outcome.folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    with torch.inference_mode():
        speeds = side_by_side(lambda: session.run(None, feed), lambda: original(images))
    return Deployed(outcome.width, report, sizes, *(len(images) / seconds for seconds in speeds))


def microcontrollers(outcomes: list[Outcome]) -> str:
    """What the networks take as C99, compiled here and compared on all test images; or why there is no C."""
    lines = []
    for outcome in outcomes:
        model, config = train.load(outcome.folder, "last")
        batches = list(eval_loader(config.data))
        network, path = lowbit.to_integer(model, batches[0][0]), outcome.folder / "digits.c"
        try:
            report = lowbit.export(network, path, "c", batches=batches)
        except lowbit.LowbitError as error:
            return f"No C for microcontrollers: {error}"
        needs = FORMATS["c"].footprint(network.graph)
        lines.append(
            f"{outcome.width} as C, compiled here: {report.differ} of {report.compared:,} codes differ; on a Cortex-M4 about "
            f"{needs.flash / 1000:.1f} kB of flash and {needs.ram / 1000:.1f} kB of RAM: {relative(path)}"
        )
    return "\n".join(lines)


def report(outcomes: list[Outcome]) -> Path:
    """The runs side by side on one page, those at low bits diagnosed on the test images."""
    for outcome in outcomes:
        if outcome.bits is None:
            continue
        model, config = train.load(outcome.folder, "last")
        batches = eval_loader(config.data)
        found = lowbit.diagnose(model, batches, train.start_of(config), history=read_run(outcome.folder).looks)
        (outcome.folder / "diagnosis.json").write_text(found.to_json())
    return write_report([outcome.folder for outcome in outcomes], OUTPUT / "report.html")


def side_by_side(
    first: Callable[[], object], second: Callable[[], object], repetitions: int = 15
) -> tuple[float, float]:
    """Median seconds of two functions, called in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repetitions):
        for call, taken in zip((first, second), seconds):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def deployment_table(deployed: list[Deployed]) -> Table:
    """What left training: differing codes, sizes, speed."""
    table = Table(title="Integer networks, by LSQ: exported and verified on 360 test images")
    for heading in ("width", "codes differ", "top-1", "ONNX", "packed", "own", "images/s", "times"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in deployed:
        compared = sum(row.compared for row in one.report.rows)
        differ = sum(row.file_differ for row in one.report.rows)
        table.add_row(
            one.width,
            f"{differ} of {compared:,}",
            f"{100 * one.report.top1['file'] / one.report.samples:.2f}",
            *(f"{one.sizes[format]:.1f}" for format in ("onnx", "onnx-packed", "lowbit")),
            f"{one.integer_speed:,.0f}",
            f"{one.integer_speed / one.float_speed:.1f}x",
        )
    return table


def plot_comparison(outcomes: list[Outcome], path: Path) -> Path:
    """Accuracy at each width, a line per method, full precision as the line to compare with."""
    reference, *low = [outcome for outcome in outcomes if outcome.labels]
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(reference.accuracy, color="#555555", linewidth=1.2, linestyle=(0, (5, 3)))
    axes.annotate(
        f"full precision {reference.accuracy:.2f} %, {reference.size:.0f} kB",
        (1, reference.accuracy), xycoords=("axes fraction", "data"), xytext=(-4, 5), textcoords="offset points",
        ha="right", color="#555555", fontsize=9,
    )  # fmt: skip
    styles = zip(METHODS.items(), ("#0072B2", "#E69F00", "#009E73"), "os^", (-0.06, 0.0, 0.06))
    for (method, label), colour, marker, shift in styles:
        mine = [outcome for outcome in low if outcome.method == method]
        places = [WIDTHS.index(outcome.bits) + shift for outcome in mine]
        axes.plot(
            places, [outcome.accuracy for outcome in mine],
            color=colour, marker=marker, markersize=8, linewidth=1.6, label=label,
        )  # fmt: skip
    sizes = {outcome.bits: f"{outcome.width}\n{outcome.size:.1f} kB" for outcome in low}
    axes.set_xticks(range(len(WIDTHS)), [sizes[bits] for bits in WIDTHS])
    axes.set_xlim(-0.3, len(WIDTHS) - 0.7)
    lowest, highest = (f(outcome.accuracy for outcome in outcomes) for f in (min, max))
    axes.set_ylim(min(lowest, highest - 2) - 0.3, min(highest + 0.6, 100.3))
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Digits: accuracy against width (one test image is 0.28 points)", fontsize=11)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)
    return path


def describe(outcome: Outcome) -> str:
    if outcome.bits is None:
        return "full precision"
    return f"{outcome.width} {f'by {METHODS[outcome.method]}' if outcome.labels else 'without training labels'}"


def relative(path: Path) -> Path:
    """The path as seen from the working directory, where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
