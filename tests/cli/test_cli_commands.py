"""The commands as a user calls them."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import lowbit.processes
import lowbit.report
import lowbit.train
from lowbit import models
from lowbit.cli.main import COMMANDS, main
from lowbit.data import eval_loader
from lowbit.files import sha256
from lowbit.models import trained
from lowbit.recipes import RECIPES
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


def test_eval_of_an_integer_network(float_run: str, tmp_path: Path, monkeypatch, capsys) -> None:
    run, other = str(tmp_path / "low"), str(tmp_path / "other.safetensors")
    arguments = ["--bits", "3", "--init", float_run, "--quantization.integer-only", "--no-compile", "--output", run]
    assert main(["train", "digits-cnn", *arguments, *QUICK]) == 0
    test = eval_loader(replace(config_of(run).data, path="sklearn:digits"))
    for suffix, format in (("safetensors", "lowbit"), ("json", "json")):
        file = str(tmp_path / f"net.{suffix}")
        assert main(["export", run, "--format", format, "--file", file, "--images", "16"]) == 0
        network = models.load(file)
        right = sum(int((network(x).argmax(1) == labels).sum()) for x, labels in test)
        capsys.readouterr()
        assert main(["eval", file, "--data", "sklearn:digits"]) == 0
        assert f"{file} (integers): test accuracy {100 * right / test.num_images:.2f} %" in capsys.readouterr().out
        assert main(["eval", file]) == 2
        assert "name the images with --data" in capsys.readouterr().err
    assert network.metadata["trained"] == {
        "recipe": "digits-cnn", "network": "digits-cnn", "epochs": 1, "seed": 0, "weights": 3, "activations": 3,
        "method": "lsq",
    }  # fmt: skip
    assert "sklearn" not in json.dumps(network.metadata)  # no place of the machine that trained it

    network.with_metadata({}).save(other)
    assert main(["eval", other, "--data", "sklearn:digits"]) == 2
    assert "does not say what its images are read as" in capsys.readouterr().err
    network.with_metadata({"images": {**network.metadata["images"], "image_size": 9}}).save(other)
    assert main(["eval", other, "--data", "sklearn:digits"]) == 2
    assert "says that images are read at 9x9, but it takes [(1, 8, 8)]" in capsys.readouterr().err
    colours = {**network.metadata["images"], "channels": 3, "mean": [0.3], "std": [0.3]}
    network.with_metadata({"images": colours}).save(other)
    assert main(["eval", other, "--data", "sklearn:digits"]) == 2
    assert "images of 3x8x8 in 10 classes, but the network takes 1x8x8 in 10" in capsys.readouterr().err
    network.with_metadata({"images": {"means": 1}}).save(other)
    assert main(["eval", other, "--data", "sklearn:digits"]) == 2
    assert "data.means: no such field" in capsys.readouterr().err

    monkeypatch.setattr(trained, "_FOLDER", tmp_path)
    monkeypatch.setitem(models.SHIPPED, "net", models.Shipped(sha256(tmp_path / "net.safetensors"), 0.0, "", ""))
    x, _ = next(iter(test))
    assert torch.equal(models.load("net")(x), network(x))
    assert main(["eval", "net", "--data", "sklearn:digits"]) == 0
    assert "net (integers): test accuracy" in capsys.readouterr().out
    shutil.copyfile(other, tmp_path / "net.safetensors")
    assert main(["eval", "net", "--data", "sklearn:digits"]) == 2
    assert "not the file that came with lowbit" in capsys.readouterr().err


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
    first = "conv1 Conv2d 16x3x3x3 8 8 [-128, 127] [-128, 127] tensor 432 442 k 28.3 M 0.4"
    assert rows[0] == first.split()
    assert rows[2] == "layer1.0.conv2 Conv2d 16x16x3x3 2 2 [-2, 1] [0, 3] tensor 2,304 2.36 M 9.44 M 0.6".split()
    assert not list(tmp_path.iterdir())


def test_dry_run_estimates(capsys) -> None:
    _, text = dry_run(capsys, "cifar10-resnet20", "--bits", "2", "--epochs", "2", "--data.batch-size", "16")
    macs, bit_operations = 40_551_040, 0
    layers = [line.split() for line in text.splitlines() if "Conv2d" in line or "Linear" in line]
    assert len(layers) == 20
    edges = (16 * 3 * 9 * 32 * 32 + 640) * 64
    bit_operations = (macs - 16 * 3 * 9 * 32 * 32 - 640) * 4 + edges
    said = {line.split(":")[0]: line for line in text.splitlines() if ":" in line}
    assert "40.6 M multiply-accumulates" in said["forward pass"] and "3x32x32" in said["forward pass"]
    assert f"{bit_operations / 1e6:.3g} M bit operations" in said["forward pass"]
    assert "269,722 parameters and 40 steps" in said["size"]
    assert f"2 epochs of 50,000 images (the recipe's data set), {3 * macs * 100_000:.2g} MACs" in said["training"]
    # float32: weights and batch-norm's statistics, gradients, momentum.
    assert re.search(r"with all 16 images.*1\.0 MiB weights, 1\.0 MiB gradients, 1\.0 MiB optimizer", said["memory"])
    assert re.search(r"in all on this machine.* ms an image forward and backward on cpu", said["time"])


def test_dry_run_counts_the_teacher_the_average_and_the_data_there_is(capsys, tmp_path: Path) -> None:
    def weights(text: str) -> float:
        return float(re.search(r"batch: ([\d.]+) KiB weights", text)[1])

    _, plain = dry_run(capsys, "digits-cnn")
    assert f"20 epochs of 1,437 images (sklearn:digits), {3 * 452_064 * 1437 * 20:.2g} MACs" in plain
    network = models.create("digits-cnn", num_classes=10)
    models.save_weights(network.state_dict(), tmp_path / "teacher.safetensors")
    teacher = ["--distillation.teacher", "digits-cnn", "--distillation.init", str(tmp_path / "teacher.safetensors")]
    _, taught = dry_run(capsys, "digits-cnn", "--task", "distill", *teacher)
    assert f"{4 * 452_064 * 1437 * 20:.2g} MACs: 3 x the forward pass of each image, and the teacher's" in taught
    assert weights(taught) == pytest.approx(2 * weights(plain), abs=2)
    _, averaged = dry_run(capsys, "digits-cnn", "--ema", "0.9", "--data.limit", "100")
    assert "20 epochs of 100 images" in averaged
    assert weights(averaged) == pytest.approx(2 * weights(plain), abs=0.2)
    _, held_out = dry_run(capsys, "digits-cnn", "--data.validation", "0.1")
    assert "20 epochs of 1,293 images (sklearn:digits)" in held_out
    _, elsewhere = dry_run(capsys, "cifar10-resnet20", "--data.validation", "5000", "--data.batch-size", "16")
    assert "90 epochs of 45,000 images (the recipe's data set)" in elsewhere
    _, full = dry_run(capsys, "digits-cnn-fp", "--optimizer.name", "adam")
    assert "float" in full and "1/1.0 of float32's" in full and "steps and offsets" not in full
    assert re.search(r"111\.5 KiB gradients, 223\.0 KiB optimizer", full)
    _, rule = dry_run(capsys, "digits-cnn", "--rule", "conv2", "granularity=channel", "--rule", "conv3", "skip=true")
    rows = {line.split()[0]: line for line in rule.splitlines() if "Conv2d" in line}
    assert " channel " in rows["conv2"] and "float" in rows["conv3"] and " tensor " in rows["conv4"]


def test_dry_run_needs_neither_network_access_nor_data_nor_weights(capsys, monkeypatch) -> None:
    def create(name: str, *, pretrained: bool = False, real=models.create, **arguments):
        assert not pretrained
        return real(name, **arguments)

    monkeypatch.setattr(models, "create", create)
    small = ("--data.image-size", "32")
    config, text = dry_run(capsys, "lsq+-mixnet-s-w2a2", *small)
    assert config["model"]["pretrained"] and config["model"]["num_classes"] == 1000 and config["data"]["path"] == ""
    assert "one" not in text.split("training:")[0] and "1,281,167 images" in text
    config, text = dry_run(capsys, "lsq-preact-resnet18-w2a2-distill", *small)
    assert "4 x the forward pass" in text and re.search(r"89\.\d MiB weights", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init", "gone.safetensors"], "gone.safetensors does not exist"),
        (["--method", "lsqq"], "unknown method 'lsqq'"),
        (["--bits", "9"], "from 1 to 8, got 9"),
        (["--optimizer.lr", "fast"], "--optimizer.lr: could not convert string to float: 'fast'"),
        (["--model.name", "resnt18"], "unknown network 'resnt18'"),
        (["--rule", "conv9", "weights=2"], "rule 'conv9' matches no layer"),
        (["--data.channels", "3"], "digits-cnn does not take images of 3x8x8"),
        (["--data", "no-such-folder", "--model.num-classes", "None"], "no-such-folder does not exist"),
    ],
)
def test_dry_run_refuses_what_training_would(capsys, arguments: list[str], message: str) -> None:
    assert main(["train", "digits-cnn", "--dry-run", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--bits", "2", "--weights", "8"], {"quantization.weights": 8, "quantization.activations": 2}),
        (["--weights", "2", "--activations", "none"], {"quantization.weights": 2, "quantization.activations": None}),
        (["--bits", "none"], {"quantization": None, "output": "runs/digits-cnn-fp"}),
        (["--optimizer.lr", "0.5", "--compile"], {"optimizer.lr": 0.5, "compile": True}),
        (["--quantization.granularity=channel"], {"quantization.granularity": "channel"}),
        (["--data.validation", "200"], {"data.validation": 200.0, "data.validation_split": None}),
        (["--data.validation-split", "val"], {"data.validation": None, "data.validation_split": "val"}),
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

    monkeypatch.setattr(lowbit.train.build, "_weights_file", lambda init, option: None)
    config, _ = dry_run(capsys, "digits-cnn", *arguments)
    for name, value in expected.items():
        found = config
        for part in name.split("."):
            found = found[part]
        assert found == value, name


def test_interrupted_run_says_how_to_continue(capsys, tmp_path: Path, monkeypatch) -> None:
    folder = str(tmp_path / "run")
    train = ["train", "digits-cnn-fp", "--data.limit", "256", "--epochs", "2", "--output", folder]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def stop(self, epochs_done, real=Trainer._set_progress):
        if epochs_done > 1:
            raise KeyboardInterrupt
        real(self, epochs_done)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_set_progress", stop)
        assert main(train) == 130
    said = capsys.readouterr()
    with monkeypatch.context() as patch:  # the first of several processes says it
        patch.setenv("RANK", "1")
        patch.setattr(lowbit.train, "run", interrupt)
        assert main(["train", "--resume", "--output", folder]) == 130
    assert capsys.readouterr() == ("", "")
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
    listed = {line.split()[0] for line in out.splitlines() if line.startswith("  ") and line.split()}
    assert RECIPES.keys() <= listed
    assert "LSQ on ImageNet (Esser et al., ICLR 2020, Table 1)" in out and "our reconstruction" in out
    [row] = [line.split() for line in out.splitlines() if line.split()[:1] == ["lsq-resnet18-w2a2"]]
    assert row == ["lsq-resnet18-w2a2", "published", "90", "6.3e+17", "67.6", "(FP", "70.5)"]


def test_recipes_are_found_by_words(capsys) -> None:
    assert main(["recipes", "resnet18", "Distill"]) == 0
    out = capsys.readouterr().out
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  lsq")]
    widths = [f"w{bits}a{bits}-distill" for bits in (2, 3, 4, 8)]
    assert listed == [f"lsq-{network}-{w}" for network in ("resnet18", "preact-resnet18") for w in widths]


def test_one_recipe_tells_where_it_is_from(capsys) -> None:
    assert main(["recipes", "lsq-resnet18-w2a2"]) == 0
    out = capsys.readouterr().out
    assert "Table 1, row ResNet-18 at 2 bits: 67.6 % top-1" in " ".join(out.split())
    assert "90 epochs of 1,281,167 images" in out and "published weights" in out


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
    "last part of a field": (["train", "digits-cnn", "--lr", "3"], "'--lr'. Did you mean '--optimizer.lr'? "),
    "field of another type": (["train", "digits-cnn", "--optimizer.lr", "fast"], "optimizer.lr"),
    "field out of range": (["train", "digits-cnn", "--optimizer.lr", "-1"], "optimizer.lr must be positive"),
    "validation that is no amount": (["train", "digits-cnn", "--data.validation", "1.5"], "data.validation must be a number of"),
    "validation of too few images": (["train", "digits-cnn-fp", "--data.validation", "9"], "holds out 9 of 1437 training images"),
    "bits no number": (["train", "digits-cnn", "--bits", "few"], "expected a number of bits or none, got 'few'"),
    "bits out of range": (["train", "digits-cnn", "--bits", "9", "--model.from-scratch"], "from 1 to 8, got 9"),
    "option without value": (["train", "digits-cnn", "--bits"], "--bits"),
    "bits of a recipe in full precision": (["train", "digits-cnn-fp", "--bits", "3"], "it trains in full precision"),
    "unknown method": (["train", "digits-cnn", "--method", "lsqq", "--model.from-scratch"], "Did you mean 'lsq'"),
    "unknown model": (["train", "digits-cnn", "--model.name", "digits-cmn", "--model.from-scratch"], "Did you mean 'digits-cnn'"),
    "no data path": (["train", "cifar10-resnet20"], "--data"),
    "data path not there": (["train", "cifar10-resnet20", "--data", "no-such-path", "--model.from-scratch"], "no-such-path does not exist"),
    "init not there": (["train", "digits-cnn", "--init", "gone.safetensors"], "gone.safetensors"),
    "rule for no layer": (["train", "digits-cnn", "--rule", "fc", "weights=8", "--model.from-scratch"], "rule 'fc' matches no layer"),
    "rule with an unknown key": (["train", "digits-cnn", "--rule", "fc", "weigts=8"], "Did you mean 'weights'"),
    "rule with a wrong value": (["train", "digits-cnn", "--rule", "fc", "skip=maybe"], "'maybe' is not a value of skip"),
    "seed": (["train", "digits-cnn", "--seed", "-1"], "seed must be"),
    "resume without a run": (["train", "digits-cnn", "--resume"], "no run to resume"),
    "resume without a folder": (["train", "--resume"], "--output"),
    "resume of no run": (["train", "--resume", "--output", "nowhere"], "no run is there"),
    "resume with options": (["train", "--resume", "--output", "nowhere", "--epochs", "3"], "--epochs"),
    "eval of no run": (["eval", "nowhere"], "no run is there"),
    "eval without a run": (["eval"], "RUN"),
    "eval of an unknown checkpoint": (["eval", "nowhere", "--checkpoint", "first"], "'first'"),
    "eval with an unknown option": (["eval", "nowhere", "--dta", "x"], "Did you mean '--data'"),
    "no recipe of that name": (["recipes", "resnt18"], "no recipe has 'resnt18' in its name. Did you mean 'resnet18'"),
    "field outside its choices": (["train", "digits-cnn", "--data.augment", "no"], "invalid choice 'no'"),
    "field without a value": (["train", "digits-cnn", "--schedule.kind"], "--schedule.kind"),
    "field with too many values": (["train", "digits-cnn", "--compile", "yes"], "yes"),
    "field that is a list": (["train", "digits-cnn", "--data.mean", "a", "b"], "--data.mean"),
    "rules as a field": (["train", "digits-cnn", "--quantization.rules", "x"], "unknown option '--quantization.rules'"),
    "no weights to start from": (["train", "digits-cnn"], "--init"),
    "no weights, on ImageNet": (["train", "lsq-preact-resnet18-w2a2", "--data", "sklearn:digits"], "--init"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_message_and_status_2(
    capsys, tmp_path: Path, monkeypatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    # Else the hub is asked for weights five times, and its client says so on standard error wherever that is captured.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert "Traceback" not in said.err and said.out == ""
    assert said.err.startswith("lowbit: error: ") and said.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_of_several_processes_one_says_it_and_the_others_let_it(monkeypatch, capsys) -> None:
    """A launcher ends all as soon as one has ended."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for rank, local_rank in ((0, 0), (1, 1), (2, 0)):  # the third is the first of another machine
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        assert main(["trian"]) == 2
        assert capsys.readouterr().err.count("unknown command") == (local_rank == 0)
        assert bool(waited) is (local_rank == 1)
        waited.clear()


def pictures(root: Path, **splits: str) -> str:
    """A folder of images with a class for each letter of a split."""
    for split, classes in splits.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / split / name / "0.png")
    return str(root)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": "abc", "val": "abc"}, "3 classes, but the network has 4"),
        ({"train": "abcde", "val": "ab"}, "5 classes, but the network has 4"),
        ({"train": "abc", "val": "abd"}, "d: a class that"),
        ({"train": "abcd"}, "no split test or validation or val; there is train"),
        ({"val": "abcd"}, "no split train; there is val"),
    ],
)
def test_data_that_lacks_a_class_or_a_split(splits: dict[str, str], message: str, tmp_path: Path, capsys) -> None:
    data = pictures(tmp_path / "data", **splits)
    arguments = ["--model.num-classes", "4", "--data.batch-size", "2", "--output", str(tmp_path / "run")]
    assert main(["train", "imagenet-preact-resnet18-fp", "--data", data, *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_eval_on_data_that_lacks_a_class(float_run: str, tmp_path: Path, capsys) -> None:
    """Numbered by their own names, nine folders would pass for the first nine classes."""
    nine = pictures(tmp_path / "data", test="012345689")
    for command in ("eval", "export"):
        assert main([command, float_run, "--data", nine]) == 2
        assert "9 classes, but the network has 10" in capsys.readouterr().err
    assert main(["eval", float_run, "--data", pictures(tmp_path / "all", test="0123456789")]) == 0


def test_dry_run_counts_the_classes_of_the_data(tmp_path: Path, capsys) -> None:
    data = pictures(tmp_path / "data", train="abc", val="abc")
    assert main(["train", "digits-cnn-fp", "--data", data, "--dry-run"]) == 2
    assert "3 classes, but the network has 10 (model.num_classes)" in capsys.readouterr().err
    _, text = dry_run(capsys, "digits-cnn-fp", "--data", data, "--model.num-classes", "3")
    assert "20 epochs of 3 images" in text and "sample of 1x8x8" in text


def test_published_weights_without_network_access(tmp_path: Path, capsys, monkeypatch) -> None:
    import timm

    def create_model(name: str, *, pretrained: bool, **arguments):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", create_model)
    data = pictures(tmp_path / "data", train="ab", val="ab")
    assert main(["train", "lsq-resnet18-w2a2", "--data", data, "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "resnet18.tv_in1k cannot be fetched (no route to host)" in said and said.count("\n") == 1


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


@pytest.mark.parametrize("several", [False, True])
def test_every_way_to_start_it_leaves_in_one_way(several: bool, monkeypatch) -> None:
    """Of processes that have worked together, each must leave before the interpreter is taken apart."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

    def at_once(status: int) -> None:
        raise InterruptedError(status)

    monkeypatch.setattr(sys, "argv", ["lowbit", "--version"])
    monkeypatch.setattr(lowbit.processes, "several", lambda: several)
    monkeypatch.setattr(os, "_exit", at_once)
    for start in (
        pkgutil.resolve_name(project["scripts"]["lowbit"]),
        lambda: runpy.run_module("lowbit", run_name="__main__"),
    ):
        with pytest.raises(InterruptedError if several else SystemExit) as left:
            start()
        assert left.value.args == (0,)
