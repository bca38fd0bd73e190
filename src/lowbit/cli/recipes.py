"""`lowbit recipes`: what can be trained."""

from __future__ import annotations

from lowbit.cli.options import Parser


def run(argv: list[str]) -> int:
    Parser(prog="lowbit recipes", description="List the recipes, with their published figures and cost.").parse(argv)

    from rich.table import Table

    from lowbit.cli.options import console
    from lowbit.recipes import RECIPES

    table = Table("recipe", "published top-1, %", "cost", box=None)
    for recipe in RECIPES.values():
        table.add_row(recipe.name, recipe.published, recipe.cost)
    console().print(table)
    return 0
