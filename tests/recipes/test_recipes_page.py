"""docs/recipes.md: its Python runs as it stands, its commands are ones that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import lowbit.cli.dry_run
from lowbit.cli.main import main
from lowbit.recipes import RECIPES
from lowbit.train import TrainConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


COMMANDS = [
    shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines() if line.startswith("lowbit ")
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_are_taken(command: list[str], monkeypatch, capsys) -> None:
    shown: list[TrainConfig] = []
    monkeypatch.setattr(lowbit.cli.dry_run, "show", shown.append)
    if command[1] == "train" and "--dry-run" not in command:
        command = [*command, "--dry-run"]
    assert main(command[1:]) == 0
    assert [config.recipe for config in shown] == ([command[2]] if command[1] == "train" else [])


def test_python_runs(monkeypatch, capsys) -> None:
    names: dict = {}
    monkeypatch.delitem(RECIPES, "mine", raising=False)
    try:
        for block in blocks("python"):
            exec(compile(block, "docs/recipes.md", "exec"), names)
        assert (names["config"].quantization.method, names["config"].epochs) == ("lsq+", 10)
        assert main(["recipes", "mine"]) == 0
        assert "ResNet-18 at W2A2, ten epochs: our own." in capsys.readouterr().out
    finally:
        RECIPES.pop("mine", None)


def test_the_families_on_the_page_are_those_there_are() -> None:
    patterns = re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE)
    families = ["own", "lsq-", "lsq+-", "lsq+1-", "lg-lsq-", "deit-tiny-", "imagenet-", "cifar10-", "digits-cnn"]
    assert all(any(f"`{family}" in pattern for pattern in patterns) for family in families)
    known = (*families, "lsq+2-", "lsq+3-", "lsq+4-")
    assert [name for name in RECIPES if not name.startswith(known)] == []
