"""The table of recipes."""

from __future__ import annotations

from lowbit.errors import LowbitError, did_you_mean
from lowbit.recipes import cifar10, deit, digits, imagenet, lg_lsq, lsq, lsq_plus, own
from lowbit.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for module in (digits, own, cifar10, lsq, lsq_plus, lg_lsq, deit, imagenet)
    for recipe in module.recipes()
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; vgg16bn, as the paper spells it, is vgg16-bn.

    Raises:
        LowbitError: there is none; the message names the close ones.
    """
    name = name.replace("vgg16bn", "vgg16-bn")
    if name not in RECIPES:
        raise LowbitError(f"unknown recipe {name!r}.{did_you_mean(name, RECIPES)} `lowbit recipes` lists them all")
    return RECIPES[name]
