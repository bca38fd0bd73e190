"""`python -m campaigns.vela --output docs/results`: LiteRT's files of codes on an NPU's compiler and in two interpreters.

The networks of campaigns.microcontrollers, whose options --data and --init it shares, as `.tflite` files of codes: every code of every layer in LiteRT's reference kernels and, where tflite-micro is installed, in
TensorFlow Lite Micro; then what Vela, Arm's compiler for Ethos-U, puts on the NPU, its use of memory and its estimate of cycles.

    pip install ethos-u-vela tflite-micro      in an environment of its own; --vela says where the program is

What the table has already is not measured again. Without Vela nothing is, and the campaign says so.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from benchmarks import harness
from campaigns.microcontrollers import Trained, add_arguments, in_order, integer_network
from campaigns.tflm import TflmRunner, arena_bytes
from lowbit.files import atomic_write
from lowbit.formats import litert
from lowbit.formats.litert import runner
from lowbit.integer.graph import Graph
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.outputs import output_grids, with_output_grids
from lowbit.verification.compare import compare

ACCELERATOR = "ethos-u55-128"
_LITERT_INPUTS, _TFLM_INPUTS = 64, 16
_BITS = {"int8": 8, "int4": 4}


def compiled(path: Path, vela: str, folder: Path) -> dict[str, object]:
    """What Vela makes of a file: operators on the NPU and on the CPU, bytes of SRAM and flash, its estimate of cycles."""
    command = [vela, str(path), "--accelerator-config", ACCELERATOR, "--output-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr:.2000}")
    counts = {where: int(re.search(rf"{where} operators = (\d+)", done.stdout)[1]) for where in ("CPU", "NPU")}
    (table,) = folder.glob(f"{path.stem}_summary_*.csv")
    with open(table, newline="") as file:
        (summary,) = csv.DictReader(file)
    return {
        "operators": sum(counts.values()), "on the NPU": counts["NPU"],
        "SRAM": round(float(summary["sram_memory_used"]) * 1024),
        "flash": round(float(summary["off_chip_flash_memory_used"]) * 1024),
        "cycles": round(float(summary["cycles_total"])),
    }  # fmt: skip


def row(name: str, weights: int, activations: int, trained: Trained, vela: str) -> dict[str, object]:
    """One network at one setting."""
    network, x = integer_network(name, weights, activations, trained)
    graph = with_output_grids(network.graph, output_grids(network.graph, x.split(32)))
    found = {"network": name, "W": weights, "A": activations, "MACs": sum(cost.macs for cost in network.costs())}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for stored in _BITS:
            path = folder / f"{stored}.tflite"
            litert.write(graph, path, io="codes", weights=stored)
            found |= {f"{stored} file": path.stat().st_size} | _differences(graph, path, x, stored)
        found |= compiled(folder / "int8.tflite", vela, folder)
    return found


def _differences(graph: Graph, path: Path, x: Tensor, stored: str) -> dict[str, object]:
    """Codes compared and codes that differ, in each interpreter; bytes of TensorFlow Lite Micro's arena."""
    reports = {"LiteRT": compare(IntegerNetwork(graph), runner.open_runner(path, graph), [x[:_LITERT_INPUTS]])}
    found = {}
    if importlib.util.find_spec("tflite_micro"):
        reports["TFLM"] = compare(IntegerNetwork(graph), TflmRunner(path, graph), [x[:_TFLM_INPUTS]])
        found[f"{stored} TFLM arena"] = arena_bytes(path)
    for where, report in reports.items():
        found |= {f"{stored} {where} codes": report.compared, f"{stored} {where} differ": report.differ}
    return found


COLUMNS = (
    "network", "W", "A", "MACs", "operators", "on the NPU", "SRAM", "flash", "cycles",
    *(f"{stored} {what}" for stored in _BITS for what in ("file", "LiteRT codes", "LiteRT differ", "TFLM codes", "TFLM differ", "TFLM arena")),
)  # fmt: skip


def page(rows: Sequence[dict[str, str]], versions: str) -> str:
    """What was measured, as a page of the documentation."""

    def table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
        return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *cells])

    def number(text: str) -> str:
        return f"{int(text):,}" if text else "not measured"

    def named(each: dict[str, str]) -> list[str]:
        return [each["network"], f"W{each['W']}A{each['A']}"]

    npu = [
        [*named(each), number(each["operators"]), f"{100 * int(each['on the NPU']) / int(each['operators']):.0f} %"]
        + [number(each[column]) for column in ("SRAM", "flash", "cycles")]
        for each in rows
    ]
    both = [
        [*named(each)]
        + [
            f"{number(each[f'{stored} {where} differ'])} of {number(each[f'{stored} {where} codes'])}"
            for where in ("LiteRT", "TFLM")
            for stored in _BITS
        ]
        for each in rows
    ]
    sizes = [
        [*named(each)] + [number(each[f"{stored} {what}"]) for what in ("file", "TFLM arena") for stored in _BITS]
        for each in rows
    ]
    return _PAGE.format(
        versions=versions,
        accelerator=ACCELERATOR,
        npu=table(["network", "bits", "operators", "on the NPU", "SRAM", "flash", "cycles (Vela's estimate)"], npu),
        both=table(["network", "bits", "LiteRT, int8", "LiteRT, int4", "TFLM, int8", "TFLM, int4"], both),
        sizes=table(["network", "bits", "file, int8", "file, int4", "arena, int8", "arena, int4"], sizes),
    )


_PAGE = """# LiteRT's files of codes: an NPU's compiler, and two interpreters

    python -m campaigns.vela --output docs/results --data CIFAR-10-JPEG --init resnet20-jpeg.safetensors

MLPerf Tiny's networks with random weights; the digits network, trained; the ResNet-8 that comes with lowbit, trained at
its bits; and a ResNet-20 with trained weights that is calibrated, not trained at these bits. First and last layer at 8
bits. Every network was written as a `.tflite` file of codes (`io="codes"`). {versions}.

## On Arm's Ethos-U

What Vela makes of the file with `--accelerator-config {accelerator}` and otherwise its own settings: operators after its
own rewriting, bytes of SRAM and of flash (weights compressed by Vela, and all other constants), and cycles. The cycles
are Vela's estimate; nothing was run on an NPU, nor in a simulator of one.

{npu}

Vela reads weights of 8 bits alone and compresses them: fewer bits buy flash, and cycles where the weights' way from
flash is the limit.

## Codes that differ

Of every layer, from the integer reference in "double-rounding": in LiteRT's reference kernels over 64 inputs, in
TensorFlow Lite Micro's (the interpreter for this machine, with its reference kernels) over 16, with weights stored in 8
bits and in 4.

{both}

## Bytes

Of the file, and of TensorFlow Lite Micro's arena as its own interpreter reports it, on 64 bits: pointers take half as much on a
microcontroller. The interpreter's code comes on top; it could not be measured here, because its package has it for this
machine alone.

{sizes}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.vela", description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--vela", default=shutil.which("vela"), metavar="PROGRAM", help="default: vela of the PATH")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for vela.csv and vela.md")
    options = parser.parse_args(arguments)
    if options.vela is None:
        print(
            "Vela is not installed, and nothing was measured: pip install ethos-u-vela, or say where it is with --vela"
        )
        return
    trained = Trained(options.data, options.init)
    table = harness.ResumedTable(options.output / "vela.csv", ("network", "W", "A"), in_order, again=options.again)
    for name in options.networks:
        for weights, activations in options.settings or trained.settings(name):
            if (name, weights, activations) not in table:
                measured = row(name, weights, activations, trained, options.vela)
                table.add({column: measured.get(column, "") for column in COLUMNS})
    with atomic_write(options.output / "vela.md") as temporary:
        temporary.write_text(page(table.rows, _versions(options.vela)))


def _versions(vela: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    shown = subprocess.run([vela, "--version"], capture_output=True, text=True).stdout.strip()
    found = [f"ethos-u-vela {shown}"]
    for package in ("ai-edge-litert", "tflite-micro"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return "; ".join(found)


if __name__ == "__main__":
    main()
