"""`lowbit eval`: the test accuracy of a run."""

from __future__ import annotations

from lowbit.cli.options import Parser


def run(argv: list[str]) -> int:
    parser = Parser(prog="lowbit eval", description="Test accuracy of a run.")
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("--data", metavar="PATH", help="where the data set is, if not where it was in training")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="default: best")
    options = parser.parse(argv)

    from lowbit import processes, train

    loss, accuracy = train.evaluate_run(options.run, checkpoint=options.checkpoint, data=options.data)
    if processes.rank() == 0:
        print(f"{options.run} ({options.checkpoint}): test accuracy {accuracy:.2f} %, loss {loss:.4f}")
    return 0
