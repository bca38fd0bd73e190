"""`lowbit report`: a run, or several side by side, as one HTML page; a run at low bits is diagnosed for it."""

from __future__ import annotations

import argparse
from pathlib import Path

from lowbit.cli.options import Parser, allow_remote
from lowbit.cli.signals import terminable
from lowbit.errors import LowbitError
from lowbit.files import atomic_write, check_writable


def run(argv: list[str]) -> int:
    parser = Parser(
        prog="lowbit report",
        description="Write a self-contained HTML page about a run: accuracy, findings, layers, plots; of several runs side by side.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="the folder of a run")
    parser.add_argument("--output", metavar="FILE", help="default: report.html in the (first) run's folder")
    parser.add_argument("--data", metavar="PATH", help="where the data set is, if not where it was in training")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="default: best")
    parser.add_argument(
        "--images", type=int, default=256, metavar="N", help="test images to diagnose on (default: 256)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    allow_remote(parser)
    options = parser.parse(argv)

    from lowbit.report import read_run, write_report
    from lowbit.report.page import check_logged
    from lowbit.report.subject import REPORT

    folders = list(dict.fromkeys(Path(each) for each in options.runs))
    path = Path(options.output or folders[0] / REPORT)
    for folder in folders:  # before any of them is diagnosed
        check_logged(read_run(folder))
    check_writable(path)
    with terminable():
        for folder in folders:
            diagnose_run(folder, options)
        write_report(folders, path)
    print(f"{path}: {len(folders)} runs side by side" if len(folders) > 1 else path)
    if options.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return 0


def diagnose_run(folder: Path, options: argparse.Namespace) -> None:
    """Write `diagnosis.json` into the folder of a run at low bits, and print the findings."""
    from lowbit import train
    from lowbit.cli.options import test_batches
    from lowbit.diagnosis import diagnose
    from lowbit.report import read_run
    from lowbit.report.subject import DIAGNOSIS

    run = read_run(folder)
    if not run.config.get("quantization"):
        return
    model, config = train.load(folder, options.checkpoint)
    try:
        reference = train.start_of(config)
    except LowbitError as error:
        reference = None
        print(f"{folder}: compared with itself without quantizers, not with what it started from: {error}")
    found = diagnose(model, test_batches(config, model, options), reference, history=run.looks)
    with atomic_write(folder / DIAGNOSIS) as temporary:
        temporary.write_text(found.to_json())
    print(
        f"{folder}: {'nothing found' if not found.findings else f'{len(found.findings)} found'}, on {found.samples} "
        "images"
    )
    for each in found.findings:
        print(f"  {each.kind} at {each.layer}: {each.sentence}")
