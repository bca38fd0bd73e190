"""`lowbit export`: a run as an integer network in a file, verified before it is kept."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from pathlib import Path

from lowbit.cli.options import Parser, allow_remote
from lowbit.cli.signals import terminable
from lowbit.errors import LowbitError
from lowbit.files import check_writable

_RUN_FILES = (
    "config.json",
    "versions.json",
    "metrics.jsonl",
    "training.json",
    "checkpoints.json",
    "diagnosis.json",
    "report.html",
)
_RUN_FOLDERS = ("checkpoints", "tensorboard", "plots")


def run(argv: list[str]) -> int:
    from lowbit.formats import FORMATS

    parser = Parser(prog="lowbit export", description="Write a run as an integer network, verified before it is kept.")
    parser.add_argument("run", metavar="RUN", help="the folder of a run trained with --quantization.integer-only")
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="default: onnx")
    parser.add_argument("--file", metavar="FILE", help="default: model.onnx (or the format's suffix) in the run folder")
    parser.add_argument("--data", metavar="PATH", help="where the data set is, if not where it was in training")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="default: best")
    parser.add_argument("--images", type=int, default=256, metavar="N", help="test images to verify on (default: 256)")
    parser.add_argument(
        "--allow-diverged", action="store_true", help="also where training has driven a step out of its bounds"
    )
    for memory in ("ram", "flash"):
        help = f"of the microcontroller that a C file is for, in bytes; a network that takes more {memory} is refused"
        parser.add_argument(f"--max-{memory}", type=int, metavar="BYTES", help=help)
    choices: dict[str, list[str]] = {}
    for format in FORMATS.values():
        for name, values in format.options.items():
            choices.setdefault(name, []).extend(value for value in values if value not in choices.get(name, ()))
    for name, values in choices.items():
        of = ", ".join(
            f"{each.name} files ({each.options[name][0]})" for each in FORMATS.values() if name in each.options
        )
        parser.add_argument(f"--{name}", choices=values, help=f"of {of}, the default in parentheses")
    allow_remote(parser)
    options = parser.parse(argv)
    options.chosen = {name: getattr(options, name) for name in choices}

    path = Path(options.file or Path(options.run) / f"model{FORMATS[options.format].suffix}")
    if options.file:
        _check_target(path)  # before the run and its data are read
    with terminable():
        return _export(options, path)


def _check_target(path: Path) -> None:
    """Raise LowbitError for what is not a place for an export: not a file, or one of the files that make up a run."""
    check_writable(path)
    whole = path.absolute()
    with contextlib.suppress(OSError):
        whole = whole.resolve()
    own = whole.parent if whole.name in _RUN_FILES else None
    inner = next((each.parent for each in whole.parents if each.name in _RUN_FOLDERS), None)
    for run in (own, inner):
        if run is not None and (run / "config.json").is_file():
            raise LowbitError(f"{path} belongs to the run in {run} itself; give another name")


def _export(options: argparse.Namespace, path: Path) -> int:
    from lowbit import deployment, train
    from lowbit.cli.options import test_batches

    model, config = train.load(options.run, options.checkpoint)
    batches = list(test_batches(config, model, options))
    network = deployment.to_integer(model, batches[0][0], allow_diverged=options.allow_diverged)
    network = network.with_metadata(train.about(config))
    memory = {"max_ram": options.max_ram, "max_flash": options.max_flash}
    report = deployment.export(network, path, options.format, batches=batches, **memory, **options.chosen)
    print(network.summary())
    print(f"verified: 0 of {report.compared:,} codes differ on {report.samples} images")
    print(f"{path}: {path.stat().st_size:,} bytes, {options.format}")
    print(f"a page about it: lowbit report {shlex.quote(options.run)}")
    return 0
