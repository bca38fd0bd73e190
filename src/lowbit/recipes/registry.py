"""The table of recipes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowbit.errors import LowbitError, did_you_mean
from lowbit.recipes import cifar10, digits, imagenet
from lowbit.train.config import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """A named function that returns a config, and what is known of it.

    `build` takes keyword arguments: those of `weights`, `activations` and `method` that the recipe leaves open.
    """

    name: str
    build: Callable[..., TrainConfig]
    published: str
    """Test accuracy or top-1 in percent, and whose."""
    cost: str

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


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        LowbitError: there is none; the message names the close ones.
    """
    if name not in RECIPES:
        raise LowbitError(f"unknown recipe {name!r}.{did_you_mean(name, RECIPES)} `lowbit recipes` lists them all")
    return RECIPES[name]


RECIPES: dict[str, Recipe] = {
    name: Recipe(name, build, published, cost)
    for module in (digits, cifar10, imagenet)
    for name, build, published, cost in module.recipes()
}
