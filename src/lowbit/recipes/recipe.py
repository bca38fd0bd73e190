"""A recipe: a named function that returns a config, and what is known of the setting."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowbit.errors import LowbitError
from lowbit.train.config import TrainConfig
from lowbit.train.tasks import kind_of


@dataclass(frozen=True)
class Recipe:
    """A named function that returns a config, and what is known of it.

    `build` takes keyword arguments: those of `weights`, `activations`, `method` and `model` that the recipe leaves
    open. Its docstring says where the setting comes from: paper, table, row, and the figure expected.
    """

    name: str
    build: Callable[..., TrainConfig]
    group: str = "others"
    """The heading it is listed under."""
    published: str = "-"
    """Test accuracy or top-1 in percent, and of whom where it isn't the paper's of the group."""
    images: int | None = None
    """Training images of the data set."""
    macs: int | None = None
    """Multiply-accumulates of the network for one image."""

    def __call__(self, **options: Any) -> TrainConfig:
        """The config.

        Raises:
            LowbitError: an option that the recipe doesn't have.
        """
        known = inspect.signature(self.build).parameters
        for option in options:
            if option not in known:
                reason = f"it takes {' and '.join(known)}" if known else "it trains in full precision"
                raise LowbitError(f"recipe {self.name!r} has no choice of {option}: {reason}")
        return self.build(**options)

    def takes(self, option: str) -> bool:
        """Whether `build` takes an option of that name."""
        return option in inspect.signature(self.build).parameters

    @property
    def about(self) -> str:
        """The docstring of `build`."""
        return inspect.getdoc(self.build) or ""

    @property
    def start(self) -> str:
        """What training starts from: "random" weights, "published" ones, or those given with "--init"."""
        config = self()
        if config.model.pretrained:
            return "published"
        return "random" if config.quantization is None else "--init"

    @property
    def work(self) -> float | None:
        """Multiply-accumulates of the whole training, see `training_macs`.

        None where images or network are not known.
        """
        if self.images is None or self.macs is None:
            return None
        return training_macs(self(), self.images, self.macs)


def training_macs(config: TrainConfig, images: int, macs: int, *, of_teacher: int | None = None) -> float:
    """Multiply-accumulates of a training on `images` per epoch with a network of `macs` for one image.

    A step takes three times those of the forward pass: the output, the gradient of the input and the gradient of the
    weights are products of the same size. A teacher adds one forward pass. Evaluation is not counted.

    Args:
        of_teacher: multiply-accumulates of a teacher that is another network.
    """
    passes = kind_of(config.task).passes
    each = passes * macs if of_teacher is None else (passes - 1) * macs + of_teacher
    return float(each * images * config.epochs)
