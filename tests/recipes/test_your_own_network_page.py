"""docs/your-own-network.md: its files are written, and its commands run as they stand."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

import lowbit.report
from lowbit.cli.main import main
from lowbit.report import read_run
from lowbit.train import TASKS, TrainConfig, run

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your-own-network.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files, in which its commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(lowbit.report, "plot_run", lambda folder: None)
    for block in blocks("python"):
        if name := re.match(r"# (\w+)\.py\n", block):
            (tmp_path / f"{name[1]}.py").write_text(block)
            monkeypatch.delitem(sys.modules, name[1], raising=False)
    return tmp_path


def test_the_pages_commands_run(folder: Path, capsys) -> None:
    commands = [
        shlex.split(line) for block in blocks("sh") for line in block.splitlines() if line.startswith("lowbit ")
    ]
    ours = [command for command in commands if "runs/" in " ".join(command)]
    assert len(ours) == 6
    for command in ours:
        quick = ["--no-compile"] if command[1] == "train" else []
        assert main([*command[1:], *quick]) == 0, command
    assert read_run("runs/w3a3").final["test_accuracy"] > 90
    assert "verified: 0 of" in capsys.readouterr().out


def test_a_task_by_a_name_of_its_own(folder: Path) -> None:
    try:
        for block in blocks("python"):
            if not block.startswith("# "):
                sys.path.append(str(folder))
                exec(compile(block, "docs/your-own-network.md", "exec"), {})
        assert main(["train", "own-fp", "--model", "vibration:Conv", "--data", "vibration:machines", "--task", "ordered", "--epochs", "1", "--no-compile", "--output", "run"]) == 0  # fmt: skip
        assert TrainConfig.load("run/config.json").task == "ordered"
        assert (
            run(TrainConfig.load("run/config.json"), resume=True).accuracy
            == read_run("run").epochs[0]["validation_accuracy"]
        )
    finally:
        TASKS.pop("ordered", None)


def test_what_the_page_says_is_chosen_is_chosen() -> None:
    from lowbit.recipes import get_recipe

    low, full = get_recipe("own")(), get_recipe("own-fp")()
    published = get_recipe("own-fp")(model="timm:resnet18")
    assert (low.optimizer.lr, full.optimizer.lr, published.optimizer.lr) == (0.01, 0.05, 0.01)
    assert published.model.pretrained and not get_recipe("own")(model="cifar-resnet20").model.pretrained
    assert low.data.validation == full.data.validation == 0.1 and low.bn_batches > 0
