"""Every recipe's resolved config, field by field, as it was when the snapshot was taken: changed only on purpose.

PYTHONPATH=src:. python -m tests.recipes.test_recipes_snapshot     # writes it anew
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowbit.recipes import RECIPES
from lowbit.train import QuantizationConfig, TrainConfig

FILE = Path(__file__).parent / "snapshot.json"
DEFAULTS = TrainConfig(quantization=QuantizationConfig()).flat()


def plain(name: str) -> dict:
    return json.loads(json.dumps(RECIPES[name]().flat()))


def taken() -> dict:
    """The defaults, and what each recipe has otherwise; "quantization": null stands for all of its fields."""
    defaults = json.loads(json.dumps(DEFAULTS))
    recipes = {}
    for name in RECIPES:
        config = plain(name)
        recipes[name] = {key: value for key, value in config.items() if key not in defaults or value != defaults[key]}
    return {"defaults": defaults, "recipes": recipes}


SNAPSHOT = json.loads(FILE.read_text()) if FILE.exists() else {"recipes": {}}


@pytest.mark.parametrize("name", SNAPSHOT["recipes"])
def test_a_recipe_resolves_as_before(name: str) -> None:
    expected = {**SNAPSHOT["defaults"], **SNAPSHOT["recipes"][name]}
    if "quantization" in expected:
        expected = {field: value for field, value in expected.items() if not field.startswith("quantization.")}
    config, new = plain(name), json.loads(json.dumps(DEFAULTS))
    for field, value in expected.items():
        assert config.get(field, "absent") == value, field
    # What has been added since leaves a recipe as it was.
    assert {field: value for field, value in config.items() if field not in expected and value != new.get(field)} == {}


def test_every_recipe_is_in_the_snapshot() -> None:
    assert RECIPES.keys() == SNAPSHOT["recipes"].keys(), "write it anew: see the head of this file"


if __name__ == "__main__":
    snapshot = taken()
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(fields)}" for name, fields in snapshot["recipes"].items())
    FILE.write_text(f'{{"defaults": {json.dumps(snapshot["defaults"])},\n"recipes": {{\n{rows}\n}}}}\n')
