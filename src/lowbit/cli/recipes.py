"""`lowbit recipes`: what can be trained."""

from __future__ import annotations

import itertools
import textwrap
from typing import TYPE_CHECKING

from lowbit._table import aligned
from lowbit.cli.options import Parser
from lowbit.errors import LowbitError, did_you_mean

if TYPE_CHECKING:
    from lowbit.recipes import Recipe

_LEGEND = """\
start: published weights are fetched; --init stands for trained weights that you give; random for none.
MACs: multiply-accumulates of the whole training without evaluation, 3 x those of the forward pass of each image (output,
gradient of the input, gradient of the weights), 4 x with a teacher. At 1e+13 a second, 1e+17 take 2.8 hours.
published: percent, by the paper in the heading or the one named; FP is full precision; - where no figure is known to us.

`lowbit recipes WORD ...` lists those with the words in their name; `lowbit recipes NAME` says where one comes from;
`lowbit train NAME --dry-run` what it does and takes."""


def run(argv: list[str]) -> int:
    parser = Parser(
        prog="lowbit recipes",
        description="List the recipes, with their published figures and cost; all of them, or those that have every WORD "
        "in their name. One recipe's own name tells all about it.",
    )
    parser.add_argument("words", metavar="WORD", nargs="*", help="such as resnet18, lsq+, w2a2, distill, fp")
    words = [word.lower() for word in parser.parse(argv).words]

    from lowbit.recipes import RECIPES

    if len(words) == 1 and words[0] in RECIPES:
        _tell(RECIPES[words[0]])
        return 0
    found = [recipe for recipe in RECIPES.values() if all(word in recipe.name for word in words)]
    if not found:
        parts = dict.fromkeys(part for name in RECIPES for part in (*name.split("-"), name))
        hints = "".join(did_you_mean(word, parts) for word in words if word not in parts)
        raise LowbitError(
            f"no recipe has {' and '.join(map(repr, words))} in its name.{hints} `lowbit recipes` lists all"
        )
    _list(found)
    return 0


def _list(recipes: list[Recipe]) -> None:
    rows = [
        [r.name, r.start, str(r().epochs), "-" if r.work is None else f"{r.work:.1e}", r.published] for r in recipes
    ]
    head, *lines = aligned([["", "start", "epochs", "MACs", "published"], *rows], left=(0, 1, 4)).splitlines()
    for group, members in itertools.groupby(zip(recipes, lines), lambda each: each[0].group):
        print(group, *(f"  {line}" for line in (head, *(line for _, line in members))), "", sep="\n")
    print(_LEGEND)


def _tell(recipe: Recipe) -> None:
    images = "" if recipe.images is None else f" of {recipe.images:,} images"
    work = "" if recipe.work is None else f", {recipe.work:.1e} multiply-accumulates"
    print(f"{recipe.name}\n")
    for paragraph in recipe.about.split("\n\n"):
        print(f"{textwrap.fill(paragraph, 120)}\n")
    print(f"published: {recipe.published}")
    print(f"start:     {_START[recipe.start]}")
    print(f"cost:      {recipe().epochs} epochs{images}{work}")
    print(f"\n`lowbit train {recipe.name} --dry-run` shows all of it.")


_START = {
    "published": "from published weights, which are fetched",
    "random": "from random weights",
    "--init": "from trained weights: --init FILE, or the folder of a run in full precision",
}
