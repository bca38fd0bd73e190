"""The command: `python -m campaigns.accuracy`."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

from campaigns.accuracy import __doc__ as about
from campaigns.accuracy import results
from campaigns.accuracy.cell import Cell
from campaigns.accuracy.goals import goals
from campaigns.accuracy.jobs import run_at_once
from campaigns.accuracy.report import report
from campaigns.accuracy.run import Places, run, run_again, state
from campaigns.accuracy.tables import TABLES, plan
from campaigns.accuracy.tables.table import Table
from campaigns.accuracy.twins import Twins
from lowbit.errors import LowbitError
from lowbit.files import atomic_write

PAGE = """# Accuracy

    python -m campaigns.accuracy --page

Every row of a table has the same budget, full precision included, and starts from the same weights. 5,000 of the
training images are held out: what is chosen within a run is chosen by them ("validation"), and the test images are
evaluated once a run. Accuracy is in percent, mean ± standard deviation over seeds. A difference is the mean of the
differences between runs of the same seed, ± its standard error; one that is not larger than that is marked "none".
CIFAR-10 is stored as JPEG here, on which accuracy is lower than on the original images: compare within a table only.

The results are in [accuracy/](accuracy/), a line for each run with its config, seed, versions and machine, seconds, steps,
and the command that runs it again. Some were trained on a processor, some on a GPU (`--jobs`), whose convolutions round
products to TensorFloat-32 as PyTorch has it.

![Accuracy against bits, ResNet-8: the methods that several widths are there of, and full precision](accuracy-bits.png)

![Steps of activations at the start and the end of three trainings of ResNet-20 at W2A2](accuracy-steps.png)

![How often each code occurs among the weights of the networks that ship](accuracy-codes.png)

Steps that start too small (left) cost accuracy: LSQ's gradient is too slow to mend them in three epochs, a balanced one
(middle) finds the steps that least squares (right) start from. At 2 bits LSQ leaves the lowest of the four codes nearly unused.

    python -m campaigns.accuracy.picture

"""


def main(arguments: Sequence[str] | None = None, tables: tuple[Table, ...] = TABLES) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m campaigns.accuracy", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", metavar="PATH", help="CIFAR-10 as lowbit reads it; needed to run cells")
    parser.add_argument("--given", type=Path, metavar="FOLDER", help="of the weights that no cell trains")
    parser.add_argument(
        "--only", nargs="+", metavar="PATTERN", help="cells whose name fits one of these, as in a shell, in this order"
    )
    parser.add_argument("--again", action="store_true", help="run the cells of --only from scratch and compare")
    parser.add_argument("--list", action="store_true", help="name the cells and what is there of each")
    parser.add_argument("--report", action="store_true", help="print the tables, from recorded results alone")
    parser.add_argument("--page", action="store_true", help="write the tables into the page beside the results")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/accuracy"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--results", type=Path, default=results.FOLDER, metavar="FOLDER", help="of the recorded results"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes that share an accelerator")
    parser.add_argument("--minutes", type=float, default=1e6, help="of --jobs, after which what is unfinished is left")
    parser.add_argument("--compile", action="store_true", help="the steps of --jobs, half a minute for each row")
    options = parser.parse_args(arguments)
    try:
        every = plan(tables)
        cells = _chosen(every, options.only)
        done = results.read(options.results)
        if options.list:
            for cell in cells:
                print(f"{cell.name}: {state(cell, done, options.runs)}")
        elif options.report:
            print(_tables(tables, done), end="")
        elif options.page:
            with atomic_write(options.results.with_suffix(".md")) as temporary:
                temporary.write_text(PAGE + _tables(tables, done))
        elif options.data is None:
            raise LowbitError("--data: name the folder of the images")
        elif options.again and not options.only:
            raise LowbitError("--again: name the cells to run again with --only")
        else:
            places = Places(options.data, options.runs, options.results, options.given)
            if options.again:
                run_again(cells, places)
            elif options.jobs is not None:
                run_at_once(cells, places, Twins(every), options.jobs, options.minutes, compile=options.compile)
            else:
                run(cells, places, Twins(every))
    except LowbitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        return 130
    return 0


def _tables(tables: tuple[Table, ...], done: dict[str, results.Line]) -> str:
    return f"## Goals\n\n{goals(done)}\n{report(tables, done)}"


def _chosen(cells: list[Cell], patterns: Sequence[str] | None) -> list[Cell]:
    """The cells that fit, those of the first pattern first."""
    if patterns is None:
        return cells
    chosen: dict[str, Cell] = {}
    for pattern in patterns:
        fitting = {cell.name: cell for cell in cells if fnmatch.fnmatchcase(cell.name, pattern)}
        if not fitting:
            raise LowbitError(f"--only {pattern}: no cell fits; --list names them all")
        chosen |= fitting
    return list(chosen.values())


if __name__ == "__main__":
    sys.exit(main())
