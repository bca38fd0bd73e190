"""The commands as a user calls them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lowbit.report
from lowbit.cli.main import COMMANDS, main
from lowbit.report import read_run
from lowbit.train import TrainConfig
from lowbit.train.trainer import Trainer

QUICK = ["--data.limit", "256", "--epochs", "1"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Plots take longer to draw than the digits to learn, and threads to wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowbit.report, "plot_run", lambda folder: None)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def float_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("cli") / "fp")
    assert main(["train", "digits-cnn-fp", "--epochs", "3", "--output", folder]) == 0
    return folder


def config_of(folder: str | Path) -> TrainConfig:
    return TrainConfig.load(Path(folder) / "config.json")


def test_train_and_eval(float_run: str, tmp_path: Path, capsys) -> None:
    folder = str(tmp_path / "low")
    arguments = ["--bits", "3", "--method", "lsq+", "--init", float_run, "--seed", "7", "--output", folder]
    assert main(["train", "digits-cnn", *arguments, *QUICK]) == 0
    config = config_of(folder)
    assert (config.quantization.weights, config.quantization.activations, config.quantization.method) == (3, 3, "lsq+")
    assert (config.epochs, config.seed, config.data.limit) == (1, 7, 256)
    assert "W3A3 by lsq+" in capsys.readouterr().out
    assert main(["eval", folder, "--checkpoint", "last"]) == 0
    assert f"test accuracy {read_run(folder).final['test_accuracy']:.2f} %" in capsys.readouterr().out


def dry_run(capsys, *arguments: str) -> tuple[dict, str]:
    assert main(["train", *arguments, "--dry-run"]) == 0
    out = capsys.readouterr().out
    config, end = json.JSONDecoder().raw_decode(out)
    return config, out[end:]


def test_dry_run_shows_config_and_layers_and_writes_nothing(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, table = dry_run(capsys, "cifar10-resnet20", "--bits", "2", "--method", "lg-lsq")
    assert config["quantization"]["weights"] == 2 and config["output"] == "runs/cifar10-resnet20-w2a2-lg-lsq"
    rows = [line.split() for line in table.splitlines() if "Conv2d" in line or "Linear" in line]
    assert len(rows) == 20
    assert [row[3] for row in rows] == ["8", *["2"] * 18, "8"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--bits", "2", "--weights", "8"], {"quantization.weights": 8, "quantization.activations": 2}),
        (["--weights", "2", "--activations", "none"], {"quantization.weights": 2, "quantization.activations": None}),
        (["--bits", "none"], {"quantization": None, "output": "runs/digits-cnn-fp"}),
        (["--optimizer.lr", "0.5", "--compile"], {"optimizer.lr": 0.5, "compile": True}),
        (["--quantization.granularity=channel"], {"quantization.granularity": "channel"}),
        (["--ema", "0.99", "--task", "distill", "--init", "x"], {"ema": 0.99, "task": "distill", "model.init": "x"}),
        (
            ["--rule", "conv[23]", "weights=8", "activations=none", "--rule", "linear", "skip=true"],
            {
                "quantization.rules": [
                    {"pattern": "conv[23]", "weights": 8, "activations": None},
                    {"pattern": "linear", "skip": True},
                ]
            },
        ),
    ],
)  # fmt: skip
def test_options_reach_the_config(capsys, monkeypatch, arguments: list[str], expected: dict) -> None:
    import lowbit.train.build

    monkeypatch.setattr(lowbit.train.build, "_weights_file", lambda init: None)
    config, _ = dry_run(capsys, "digits-cnn", *arguments)
    for name, value in expected.items():
        found = config
        for part in name.split("."):
            found = found[part]
        assert found == value, name


def test_interrupted_run_says_how_to_continue(capsys, tmp_path: Path, monkeypatch) -> None:
    folder = str(tmp_path / "run")
    train = ["train", "digits-cnn-fp", "--data.limit", "256", "--epochs", "2", "--output", folder]

    def stop(self, epochs_done, real=Trainer._set_progress):
        if epochs_done > 1:
            raise KeyboardInterrupt
        real(self, epochs_done)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_set_progress", stop)
        assert main(train) == 130
    said = capsys.readouterr()
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    command = f"lowbit train --resume --output {folder}"
    assert command in said.out and "Traceback" not in said.out + said.err
    assert main(command.split()[1:]) == 0
    assert len(read_run(folder).epochs) == 2
    # A copy goes on by itself and leaves the run it was made from alone.
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert main(["train", "--resume", "--output", str(moved)]) == 0
    assert len(read_run(moved).epochs) == 2 and (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert main([*train, "--resume"]) == 0
    assert "finished" in capsys.readouterr().out


def test_recipes_are_listed(capsys) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert "cifar10-resnet20 " in out and "lsq-resnet50-w3a3-distill" in out and "76.9 (FP 76.9)" in out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_overview(capsys, arguments: list[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments", [["train", "--help"], ["train", "digits-cnn", "--help"], ["eval", "-h"], ["recipes", "-h"]]
)
def test_help(capsys, arguments: list[str]) -> None:
    assert main(arguments) == 0
    assert "usage: lowbit" in capsys.readouterr().out


def test_help_of_a_recipe_has_every_field(capsys) -> None:
    main(["train", "digits-cnn", "--help"])
    out = capsys.readouterr().out
    for option in (
        "--bits",
        "--optimizer.lr",
        "--quantization.first-last",
        "--data.batch-size",
        "--no-compile",
        "--ema",
    ):
        assert option in out


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lowbit {lowbit.__version__}\n"


BAD = {
    "no such command": (["trian"], "Did you mean 'train'"),
    "no recipe": (["train"], "name a recipe"),
    "unknown recipe": (["train", "cifar-resnet20"], "Did you mean 'cifar10-resnet20'"),
    "unknown option": (["train", "digits-cnn", "--bist", "3"], "Did you mean '--bits'"),
    "unknown field": (["train", "digits-cnn", "--optimizer.lrr", "3"], "Did you mean '--optimizer.lr'"),
    "field of another type": (["train", "digits-cnn", "--optimizer.lr", "fast"], "optimizer.lr"),
    "field out of range": (["train", "digits-cnn", "--optimizer.lr", "-1"], "optimizer.lr must be positive"),
    "bits no number": (["train", "digits-cnn", "--bits", "few"], "expected a number of bits or none, got 'few'"),
    "bits out of range": (["train", "digits-cnn", "--bits", "9"], "from 1 to 8, got 9"),
    "option without value": (["train", "digits-cnn", "--bits"], "--bits"),
    "bits of a recipe in full precision": (["train", "digits-cnn-fp", "--bits", "3"], "it trains in full precision"),
    "unknown method": (["train", "digits-cnn", "--method", "lsqq"], "Did you mean 'lsq'"),
    "unknown model": (["train", "digits-cnn", "--model.name", "digits-cmn"], "Did you mean 'digits-cnn'"),
    "no data path": (["train", "cifar10-resnet20"], "--data"),
    "data path not there": (["train", "cifar10-resnet20", "--data", "no-such-path"], "no-such-path does not exist"),
    "init not there": (["train", "digits-cnn", "--init", "gone.safetensors"], "gone.safetensors"),
    "rule for no layer": (["train", "digits-cnn", "--rule", "fc", "weights=8"], "rule 'fc' decides no layer"),
    "rule with an unknown key": (["train", "digits-cnn", "--rule", "fc", "weigts=8"], "Did you mean 'weights'"),
    "rule with a wrong value": (["train", "digits-cnn", "--rule", "fc", "skip=maybe"], "'maybe' is no value of skip"),
    "seed": (["train", "digits-cnn", "--seed", "-1"], "seed must be"),
    "resume without a run": (["train", "digits-cnn", "--resume"], "no run to resume"),
    "resume without a folder": (["train", "--resume"], "--output"),
    "resume of no run": (["train", "--resume", "--output", "nowhere"], "no run is there"),
    "resume with options": (["train", "--resume", "--output", "nowhere", "--epochs", "3"], "--epochs"),
    "eval of no run": (["eval", "nowhere"], "no run is there"),
    "eval without a run": (["eval"], "RUN"),
    "eval of an unknown checkpoint": (["eval", "nowhere", "--checkpoint", "first"], "'first'"),
    "eval with an unknown option": (["eval", "nowhere", "--dta", "x"], "Did you mean '--data'"),
    "recipes with an argument": (["recipes", "all"], "'all'"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_message_and_status_2(
    capsys, tmp_path: Path, monkeypatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert "Traceback" not in said.err and said.out == ""
    assert not list(tmp_path.iterdir())


def test_a_broken_checkpoint_is_named(float_run: str, tmp_path: Path, capsys) -> None:
    import shutil

    shutil.copytree(float_run, tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("model.safetensors"):
        file.write_bytes(b"nonsense")
    assert main(["eval", str(tmp_path / "copy")]) == 2
    assert "model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[sys.executable, "-m", "lowbit"], [str(Path(sys.executable).parent / "lowbit")]])
def test_as_a_process(command: list[str]) -> None:
    done = subprocess.run([*command, "train", "no-such-recipe"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("lowbit: error: unknown recipe") and done.stderr.count("\n") == 1
