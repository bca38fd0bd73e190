"""`lowbit allocate`: bits for each layer of a recipe's network, within a budget."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lowbit.cli.options import Parser
from lowbit.cli.signals import terminable
from lowbit.errors import LowbitError
from lowbit.files import check_writable


def run(argv: list[str]) -> int:
    parser = Parser(
        prog="lowbit allocate",
        usage="lowbit allocate RECIPE --budget LIMITS [options] [options of lowbit train]",
        description="Choose the bits of each layer of a trained network so that it is expected to lose least within a budget.",
        epilog="Options of `lowbit train` name the network, its weights (--init) and the data, and rules that stay.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="one at low bits; its network and data are taken")
    parser.add_argument(
        "--budget", required=True, metavar="LIMITS",
        help="such as weights=64kB,average_bits=3 (also file=, activations= in bytes, bit_operations=)",
    )  # fmt: skip
    parser.add_argument("--choices", type=_widths, default=(2, 3, 4, 8), metavar="B,...", help="default: 2,3,4,8")
    parser.add_argument("--activation-choices", type=_widths, metavar="B,...", help="default: those of weights")
    parser.add_argument(
        "--sensitivity", choices=("gradients", "measured", "learned"), default="gradients", help="default: gradients"
    )
    parser.add_argument("--steps", type=int, default=500, metavar="N", help="of learning bits (default: 500)")
    parser.add_argument(
        "--images", type=int, default=256, metavar="N", help="training images to look at (default: 256)"
    )
    parser.add_argument("--file", default="rules.json", metavar="FILE", help="for the rules (default: rules.json)")
    parser.add_argument("--plot", metavar="FILE", help="for the frontier, such as frontier.png or frontier.svg")
    options, rest = parser.parse_known_args(argv)
    if options.images < 1:
        raise LowbitError(f"--images must be at least 1, got {options.images}")
    check_writable(options.file)
    if options.plot is not None:
        check_writable(options.plot)

    from lowbit.cli.train import config_of

    config = config_of(options.recipe, rest)
    if config.quantization is None:
        raise LowbitError(f"{options.recipe}: nothing is quantized here: name a recipe at low bits")
    if config.model.init is None and not config.model.pretrained:
        raise LowbitError("bits are chosen for trained weights: name them with --init")

    import lowbit
    from lowbit.data import DataSet, split_loaders
    from lowbit.report.table import render
    from lowbit.train.build import build_float, rules_of
    from lowbit.train.resolve import resolve

    with terminable():
        config = resolve(config, DataSet(config.data))
        network = build_float(config.model).eval()
        train = split_loaders(config.data, seed=config.seed).train
        batches = list(itertools.islice(train, -(-options.images // config.data.batch_size)))
        assert config.quantization is not None
        with _bar() as on_step:
            found = lowbit.allocate(
                network,
                batches,
                options.budget,
                options.choices,
                activation_choices=options.activation_choices,
                sensitivity=options.sensitivity,
                steps=options.steps,
                first_last=config.quantization.first_last,
                rules=rules_of(config.quantization),
                seed=config.seed,
                on_step=on_step,
            )
        found.save(options.file)
        if options.plot is not None:
            found.plot(options.plot)
    print(found.table())
    for name, value in found.costs.items():
        print(f"{name}: {value:,.6g}")
    print(f"expected loss: {found.loss:.3g} a sample")
    over = next(iter(found.budget.limits))
    rows = [
        {over: f"{p.cost:,.6g}", "expected loss": f"{p.loss:.3g}", "uniform bits": p.uniform or ""}
        for p in found.frontier(over)
    ]
    print(f"\nthe frontier:\n{render(rows)}\n")
    if options.plot is not None:
        print(f"plot: {options.plot}")
    print(f"rules: {options.file}; train with them: lowbit train {options.recipe} --rules {options.file} ...")
    return 0


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.progress import Progress

    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("choosing bits")
        yield lambda done, everything: progress.update(task, completed=done, total=everything)


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of bits with commas between, such as 2,3,4,8") from None
