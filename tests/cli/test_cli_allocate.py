"""`lowbit allocate`, as a user calls it, and training with what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lowbit
from lowbit.cli.main import main
from lowbit.models import create
from lowbit.train.build import read_config


@pytest.fixture
def weights(tmp_path: Path) -> str:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(create("digits-cnn").state_dict(), tmp_path / "digits.safetensors")
    return str(tmp_path / "digits.safetensors")


def test_rules_within_a_budget_and_training_with_them(weights: str, tmp_path: Path, capsys) -> None:
    file, run = tmp_path / "rules.json", tmp_path / "run"
    options = ["--init", weights, "--images", "64", "--activation-choices", "4", "--file", str(file)]
    plot = ["--plot", str(tmp_path / "frontier.svg")]
    assert main(["allocate", "digits-cnn", "--budget", "average_bits=3.1", *options, *plot]) == 0
    assert "<svg" in (tmp_path / "frontier.svg").read_text()
    said = capsys.readouterr().out
    assert "average_bits: " in said and "the frontier:" in said and f"--rules {file}" in said
    learned = [*options[:-1], str(tmp_path / "learned.json"), "--sensitivity", "learned", "--steps", "3"]
    assert main(["allocate", "digits-cnn", "--budget", "average_bits=3.1", *learned]) == 0
    assert {row["pattern"] for row in json.loads((tmp_path / "learned.json").read_text())} == {
        row["pattern"] for row in json.loads(file.read_text())
    }
    rules = json.loads(file.read_text())
    model = lowbit.prepare(create("digits-cnn"), rules=[lowbit.Rule(**rule) for rule in rules])
    rows = lowbit.layer_table(model)
    assert sum(row.size_bits for row in rows) <= 3.1 * sum(row.parameters for row in rows)
    quick = ["--epochs", "1", "--data.limit", "128", "--no-compile", "--output", str(run)]
    assert main(["train", "digits-cnn", "--init", weights, "--rules", str(file), *quick]) == 0
    config = read_config(run)
    assert config.quantization is not None and list(config.quantization.rules) == rules


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["digits-cnn", "--budget", "weights=1kB"], "name them with --init"),
        (["digits-cnn-fp", "--budget", "weights=1kB"], "a recipe at low bits"),
        (["digits-cnn", "--budget", "weights=1", "--init", "W"], "weights is in bytes"),
        (["digits-cnn", "--budget", "weights=10B", "--init", "W"], "weights is at least"),
        (["digits-cnn", "--budget", "weights=1kB", "--init", "W", "--images", "0"], "--images must be at least 1"),
        (["digits-cnn", "--budget", "weights=1kB", "--init", "W", "--steps", "0"], "steps must be at least 1"),
        (["digits-cnn", "--budget", "weights=1kB", "--init", "W", "--choices", "2;3"], "numbers of bits with commas"),
        (["digits-cnn", "--budget", "weights=1kB", "--init", "W", "--file", "no/where.json"], "no"),
        (["digits-cnn", "--init", "W"], "--budget"),
    ],
)
def test_what_is_refused(weights: str, arguments: list[str], message: str, capsys) -> None:
    assert main(["allocate", *(weights if word == "W" else word for word in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_holds_no_rules(weights: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "rules.json").write_text('{"weights": 3}')
    arguments = ["--init", weights, "--rules", str(tmp_path / "rules.json"), "--dry-run"]
    assert main(["train", "digits-cnn", *arguments]) == 2
    assert "not a list of rules" in capsys.readouterr().err
