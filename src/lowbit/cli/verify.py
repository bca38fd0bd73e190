"""`lowbit verify`: the trained network, its integer form and an exported file, code by code."""

from __future__ import annotations

import argparse

from lowbit.cli.options import Parser, allow_remote
from lowbit.cli.signals import terminable
from lowbit.files import check_readable


def run(argv: list[str]) -> int:
    parser = Parser(
        prog="lowbit verify",
        description="Compare a trained network, its integer form and an exported file, code by code. "
        "Exit status 1 when the file and the integer form differ at all.",
    )
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("file", metavar="FILE", help="what `lowbit export` wrote, in any format")
    parser.add_argument("--data", metavar="PATH", help="where the data set is, if not where it was in training")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="default: best")
    parser.add_argument("--images", type=int, metavar="N", help="how many test images; default: all, 16 on a board")
    parser.add_argument(
        "--board", metavar="CORE", help="compile a C file for a core, such as cortex-m4 or rv32, and run it in QEMU"
    )
    allow_remote(parser)
    options = parser.parse(argv)

    check_readable(options.file)  # before the run and its data are read
    with terminable():
        return _verify(options)


def _verify(options: argparse.Namespace) -> int:
    from lowbit import deployment, train
    from lowbit.cli.options import test_batches

    model, config = train.load(options.run, options.checkpoint)
    if options.board and options.images is None:
        options.images = 16
    report = deployment.verify(model, options.file, test_batches(config, model, options), board=options.board)
    print(report.text())
    return 0 if report.ok else 1
