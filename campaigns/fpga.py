"""`python -m campaigns.fpga`: MLPerf Tiny's networks with power-of-two steps in hls4ml's C simulation, code by code.

The networks have random weights, batch-norms of any gain and sign, and steps from calibration. Each is exported (which compiles and
runs its C++) and compared with the integer reference on random samples. Every cell is written to docs/results/fpga.jsonl, and one that
is there already is not run again. Needs hls4ml and g++.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import lowbit
from benchmarks import harness
from lowbit import models

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "fpga.jsonl"
SHAPES = {
    "digits-cnn": (1, 8, 8), "autoencoder": (640,), "resnet8": (3, 32, 32), "ds-cnn": (1, 49, 10), "mobilenetv1-0.25": (3, 96, 96),
}  # fmt: skip


def network(name: str, bits: int, granularity: str) -> tuple[lowbit.IntegerNetwork, torch.Tensor]:
    torch.manual_seed(0)
    model, x = models.create(name), torch.randn(8, *SHAPES[name])
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight, 1, 0.5)
            nn.init.normal_(module.bias, 0, 0.2)
    model.train()
    for _ in range(3):
        model(x)
    options = {"weights": bits, "activations": bits, "granularity": granularity}
    prepared = lowbit.prepare(model.eval(), integer_only=True, scales="power-of-two", **options)
    return lowbit.to_integer(lowbit.calibrate(prepared, [x]).eval(), x[:1]), x


def cell(name: str, bits: int, granularity: str, samples: int) -> dict:
    integer, x = network(name, bits, granularity)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hls4ml's own
        path = Path(folder) / "network.fml"
        report = lowbit.export(integer, path, "hls4ml", batches=[x[:samples]])
        size = path.stat().st_size
    widths = [row.accumulator_bits for row in integer.costs() if row.accumulator_bits]
    return {
        "network": name, "bits": f"W{bits}A{bits}", "steps per": granularity, "samples": report.samples, "codes": report.compared,
        "differ": report.differ, "MACs": sum(row.macs for row in integer.costs()), "accumulators": f"{min(widths)} … {max(widths)}",
        "file": size, "seconds": round(time.perf_counter() - start), "hls4ml": version("hls4ml"), "machine": harness.machine(),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.fpga", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 8, 2])
    parser.add_argument("--granularity", default="tensor")
    parser.add_argument("--samples", type=int, default=2)
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    done = {(row["network"], row["bits"], row["steps per"]) for row in rows}
    for bits in options.bits:
        for name in options.networks:
            if (name, f"W{bits}A{bits}", options.granularity) in done:
                continue
            rows.append(cell(name, bits, options.granularity, options.samples))
            with RESULTS.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    left_out = ("hls4ml", "machine", "seconds")
    harness.print_table([{name: str(value) for name, value in row.items() if name not in left_out} for row in rows])


if __name__ == "__main__":
    main()
