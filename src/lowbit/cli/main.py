"""`lowbit`: finds the subcommand, runs it, and turns errors into one message and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from lowbit.errors import LowbitError, did_you_mean
from lowbit.processes import end, says

# Seconds for another process to come to the error that it has too, and to end: then the launcher ends this one.
_LONG_ENOUGH = 10.0

# name: (module with `run(argv) -> int`, what the overview says). Modules are imported when their command is called.
COMMANDS = {
    "train": ("lowbit.cli.train", "train a recipe, or continue a run"),
    "eval": ("lowbit.cli.eval", "test accuracy of a run, or of an integer network"),
    "export": ("lowbit.cli.export", "write a run as an integer network, verified"),
    "verify": ("lowbit.cli.verify", "compare a run, its integer form and an exported file, code by code"),
    "report": ("lowbit.cli.report", "write a page about runs: accuracy, what is wrong in which layer, plots"),
    "allocate": ("lowbit.cli.allocate", "choose the bits of each layer within a budget"),
    "recipes": ("lowbit.cli.recipes", "list the recipes, with their published figures"),
}


def overview() -> str:
    """What `lowbit --help` prints."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return f"usage: lowbit COMMAND [options]\n\ncommands:\n{rows}\n\nlowbit COMMAND --help says more."


def script() -> NoReturn:
    """`lowbit` as a process of its own, by this name or as `python -m lowbit`."""
    end(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"lowbit {version('lowbit')}")
        return 0
    try:
        return _run(arguments[0], arguments[1:])
    except LowbitError as error:
        if says(error):
            print(f"lowbit: error: {error}", file=sys.stderr)
        else:  # a launcher ends all as soon as one has ended: not before another has said it
            time.sleep(_LONG_ENOUGH)
        return 2
    except KeyboardInterrupt:
        print("lowbit: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as error:  # an option parser has said what was wrong, or printed its help
        return error.code if isinstance(error.code, int) else 2


def _run(command: str, arguments: list[str]) -> int:
    if command not in COMMANDS:
        raise LowbitError(f"unknown command {command!r}.{did_you_mean(command, COMMANDS)} `lowbit --help` lists them")
    module, _ = COMMANDS[command]
    try:
        return importlib.import_module(module).run(arguments)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "lowbit":
            raise
        extra = "export" if (error.name or "").startswith("onnx") else "train"
        raise LowbitError(
            f"`lowbit {command}` needs {error.name}, which is not installed: pip install 'lowbit[{extra}]'"
        ) from error
