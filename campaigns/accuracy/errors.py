"""Whether training moves steps to where the squared error is least: the quantizers of trained runs, on test images.

    python -m campaigns.accuracy.errors --data CIFAR10_JPEG RUN [RUN …]

The LSQ paper says that it does not (section 3.6). A run's rows in `docs/results/accuracy/errors.csv` are written anew; the other
runs' stay. A line is a quantizer: its step, the step of the least squared error for the same values, and the signal-to-noise
ratio in dB with each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

import lowbit
from benchmarks import harness
from campaigns.accuracy import results
from lowbit.data import eval_loader
from lowbit.diagnosis.measure import decibels
from lowbit.errors import LowbitError
from lowbit.quantizer import functional
from lowbit.quantizer.initialization import Statistics, least_squares_init
from lowbit.train import build
from lowbit.train.checks import with_data

FILE = results.FOLDER / "errors.csv"
_CALLS = 2
"""Batches of test images."""


@dataclass(frozen=True)
class Row:
    """A quantizer of a trained run; ratios are in dB."""

    run: str
    quantizer: str
    bits: int
    step: float
    least_error_step: float
    sqnr: float
    least_error_sqnr: float


@torch.no_grad()
def rows_of(folder: Path, data: str) -> Iterator[Row]:
    """Every quantizer of a run's best checkpoint that has one step and no offset.

    Raises:
        LowbitError: no run in the folder, or no such data.
    """
    model, config = build.load(folder)
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        quantizer.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0]))
        for name, quantizer in lowbit.quantizers(model)
    ]
    for number, (images, _) in enumerate(eval_loader(with_data(config, data, allow_remote=False).data)):
        if number == _CALLS:
            break
        model(images)
    for hook in hooks:
        hook.remove()
    for name, quantizer in lowbit.quantizers(model):
        if quantizer.grid is None or quantizer.step.numel() > 1 or quantizer.uses_offset or name not in seen:
            continue
        calls = seen[name][:1] if quantizer.batch_dim is None else seen[name]  # a weight is the same at each
        x = torch.cat([quantizer.transform(each).flatten() for each in calls])
        best, _ = least_squares_init(Statistics.of(x), quantizer.grid, False)
        yield Row(
            config.recipe.removeprefix("accuracy/"),
            name,
            quantizer.bits,
            step=float(quantizer.step),
            least_error_step=float(best),
            sqnr=_sqnr(x, quantizer.step, quantizer.grid),
            least_error_sqnr=_sqnr(x, best, quantizer.grid),
        )


def _sqnr(x: Tensor, step: Tensor, grid: lowbit.Grid) -> float:
    """Of rounding to the grid, in dB."""
    error = functional.values(x, step, None, grid.qn, grid.qp, grid=grid) - x
    return decibels(float(x.double().square().sum()), float(error.double().square().sum()))


def summary(rows: Iterable[Row]) -> str:
    """For each run, and weights and inputs of up to 4 bits apart: how far steps stand from those of the least error."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.bits <= 4:
            kind = "weights" if row.quantizer.endswith("weight_quantizer") else "activations"
            groups.setdefault((row.run, kind), []).append(row)
    lines = []
    for (run, kind), each in groups.items():
        ratios = [row.step / row.least_error_step for row in each]
        lines.append(
            f"{run}, {kind}: step over that of the least squared error {min(ratios):.2f} to {max(ratios):.2f}, mean distance "
            f"{100 * statistics.mean(abs(ratio - 1) for ratio in ratios):.0f} %; "
            f"{statistics.mean(row.least_error_sqnr - row.sqnr for row in each):.2f} dB lost"
        )
    return "\n".join(lines)


def read() -> list[Row]:
    """The recorded rows."""
    lines = harness.read_csv(FILE) if FILE.exists() else []
    return [
        Row(line["run"], line["quantizer"], int(line["bits"]), *(float(line[f.name]) for f in fields(Row)[3:]))
        for line in lines
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m campaigns.accuracy.errors", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", metavar="PATH")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    options = parser.parse_args(arguments)
    try:
        if options.runs and options.data is None:
            raise LowbitError("--data: name the folder of the images")
        now = [row for run in options.runs for row in rows_of(run, options.data)]
    except LowbitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    again = {row.run for row in now}
    rows = [*(row for row in read() if row.run not in again), *now]
    if now:
        digits = lambda value: f"{value:.6g}" if isinstance(value, float) else value  # noqa: E731
        harness.write_csv([{name: digits(v) for name, v in asdict(row).items()} for row in rows], FILE)
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
