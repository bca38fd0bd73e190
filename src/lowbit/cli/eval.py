"""`lowbit eval`: the test accuracy of a run, or of an integer network in a file."""

from __future__ import annotations

import math
from pathlib import Path

from lowbit.cli.options import Parser, allow_remote
from lowbit.cli.signals import terminable
from lowbit.errors import LowbitError
from lowbit.files import check_place


def run(argv: list[str]) -> int:
    parser = Parser(prog="lowbit eval", description="Test accuracy of a run, or of an integer network.")
    parser.add_argument(
        "what",
        metavar="RUN|FILE|NAME",
        help="the run folder; a file that `lowbit export --format lowbit` (or json) wrote; or a network of lowbit.models.load",
    )
    parser.add_argument(
        "--data", metavar="PATH", help="where the data set is; for a run only if it isn't where it was in training"
    )
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="of a run; default: best")
    allow_remote(parser)
    options = parser.parse(argv)

    from lowbit import models, processes, train

    check_place(options.what)
    with terminable():
        if Path(options.what).is_file() or (options.what in models.SHIPPED and not Path(options.what).exists()):
            if options.data is None:
                raise LowbitError(f"{options.what}: name the images with --data")
            what = f"{options.what} (integers)"
            loss, accuracy = train.evaluate_network(models.load(options.what), options.data)
        else:
            what = f"{options.what} ({options.checkpoint})"
            loss, accuracy = train.evaluate_run(
                options.what, checkpoint=options.checkpoint, data=options.data, allow_remote=options.allow_remote
            )
    if processes.rank() == 0:
        print(f"{what}: test {'' if math.isnan(accuracy) else f'accuracy {accuracy:.2f} %, '}loss {loss:.4f}")
    return 0
