"""Recipes: Python functions that return a `TrainConfig`, one per setting of a paper.

`RECIPES` holds them by name. A recipe of your own is a function and a row:

    RECIPES["mine"] = Recipe("mine", my_function)
"""

from lowbit.recipes.recipe import Recipe
from lowbit.recipes.registry import RECIPES, get_recipe

__all__ = ["RECIPES", "Recipe", "get_recipe"]
