"""The command line: one benchmark, all of them, or the page made of their results."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import inference, memory, page, peers, quantizer, scaling, step, watch

BENCHMARKS = {
    "step": step,
    "memory": memory,
    "quantizer": quantizer,
    "scaling": scaling,
    "inference": inference,
    "peers": peers,
    "watch": watch,
}
ON_A_GPU = ("step", "memory", "quantizer", "watch")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(
            name,
            help=benchmark.__doc__.splitlines()[0],
            description=benchmark.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_common(command, gpu=name in ON_A_GPU)
        benchmark.add_options(command)
    everything = commands.add_parser("all", help="every benchmark but the peers, each in a process of its own")
    _add_common(everything, gpu=True)
    commands.add_parser("page", help="bring the tables of docs/performance.md in line with docs/results")
    return parser


def _add_common(parser: argparse.ArgumentParser, *, gpu: bool) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, smaller sizes")
    if gpu:
        parser.add_argument("--gpu", action="store_true", help="on the first CUDA device instead of the processor")
    else:
        parser.set_defaults(gpu=False)
    parser.add_argument("--threads", type=int, help="of torch on the processor; default: torch's own choice")
    parser.add_argument("--output", type=Path, default=page.RESULTS, metavar="FOLDER", help="default: docs/results")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with a status other than 0 when a benchmark of `all` failed."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser()
    options = parser.parse_args(arguments)
    options.arguments = arguments
    if options.name == "page":
        page.write()
        return
    if options.gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch finds no CUDA device on this machine; leave --gpu out to measure the processor")
    if options.name == "all":
        sys.exit(run_all(options))
    if options.threads:
        torch.set_num_threads(options.threads)
    command = f"python -m benchmarks {' '.join(_without_output(arguments))}"
    for table in BENCHMARKS[options.name].run(options):
        table.show()
        table.write(options.output, command)


def run_all(options: argparse.Namespace) -> int:
    """Every benchmark in a process of its own, so that none pays for another; the number of those that failed."""
    common = ["--output", str(options.output)]
    common += ["--quick"] if options.quick else []
    common += ["--threads", str(options.threads)] if options.threads else []
    failed = []
    for name in ON_A_GPU if options.gpu else [name for name in BENCHMARKS if name != "peers"]:
        command = [sys.executable, "-m", "benchmarks", name, *common, *(["--gpu"] if options.gpu else [])]
        print("\n+", *command[1:], flush=True)
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(name)
    if options.output.resolve() == page.RESULTS.resolve():
        page.write()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def _without_output(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--output FOLDER`, which says nothing about what was measured."""
    kept = list(arguments)
    if "--output" in kept:
        at = kept.index("--output")
        del kept[at : at + 2]
    return kept
