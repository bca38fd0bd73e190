"""What the option parsers of the subcommands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from lowbit.errors import LowbitError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lowbit.inputs import Inputs
    from lowbit.train.config import TrainConfig


class Parser(argparse.ArgumentParser):
    """An option parser that raises `LowbitError` instead of printing its usage and leaving."""

    def __init__(self, **settings) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise LowbitError(f"{message}; `{self.prog} --help` lists the options")

    def option_names(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings]

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parse everything; what is left over is an error that names close options."""
        options, rest = self.parse_known_args(arguments)
        if rest:
            raise LowbitError(
                f"unknown option {rest[0]!r}.{did_you_mean(rest[0], self.option_names())} "
                f"`{self.prog} --help` lists them"
            )
        return options


def bits(text: str) -> int | None:
    """A bit-width, or none."""
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of bits or none, got {text!r}") from None


def allow_remote(parser: Parser) -> None:
    """Add the option without which no URL is contacted that only the run's config names."""
    parser.add_argument(
        "--allow-remote", action="store_true", help="read the data also where the run's config names a URL for it"
    )


def test_batches(
    config: TrainConfig, network: nn.Module, options: argparse.Namespace
) -> Iterator[tuple[Inputs, Tensor | None]]:
    """The first `options.images` test images of a run's data (all of them without a number), in batches with their labels, where they have any.

    Raises:
        LowbitError: no such data, data at a URL that is not to be contacted, or images of other classes or another shape
            than those of the run's `network`.
    """
    import torch

    from lowbit.data import eval_loader
    from lowbit.inputs import batch_size, each
    from lowbit.train.checks import check_test, with_data

    if options.images is not None and options.images < 1:
        raise LowbitError(f"--images must be at least 1, got {options.images}")
    config = with_data(config, options.data, allow_remote=options.allow_remote)
    loader = eval_loader(config.data)
    check_test(config, network, loader)
    left = options.images
    for inputs, targets in loader:
        classes = isinstance(targets, torch.Tensor) and targets.dim() == 1 and not targets.is_floating_point()
        yield each(lambda x, left=left: x[:left], inputs), targets[:left] if classes else None
        left = None if left is None else left - batch_size(inputs)
        if left is not None and left <= 0:
            break
