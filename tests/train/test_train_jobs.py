"""`lowbit train` under torchrun and `accelerate launch`, in two processes on the CPU, on real images."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
import torch
from launch import forked, launch
from safetensors.torch import load_file, save_file

import lowbit
import lowbit.train
from conftest import small_config
from lowbit.cli.main import main
from lowbit.models import create
from lowbit.report import read_run
from lowbit.train import ModelConfig, QuantizationConfig, TrainConfig, evaluate_run, run
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.lock import locked
from lowbit.train.trainer import Trainer

DIGITS = ["train", "digits-cnn-fp", "--epochs", "2", "--no-compile", "--data.limit", "256"]
KILLED = str(Path(__file__).parent / "killed_job.py")
# Where torchvision's wheel does not fit torch, `accelerate` itself can't start: it imports timm for another of its
# commands. This is `accelerate launch` alone. --multi_gpu is its name for several processes, on the CPU too.
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines",
              "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip


def tensors(folder: str | Path, name: str = "final") -> dict[str, torch.Tensor]:
    checkpoint = Checkpoints(Path(folder)).folder / name
    return load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "training.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].equal(b[name]), name


@pytest.fixture(scope="module")
def low_bits(trained: Path, tmp_path_factory: pytest.TempPathFactory):
    """The command that trains at 3 bits for two epochs of four steps, with batch-norm over all, and the folder it writes to."""

    def command(name: str) -> tuple[list[str], Path]:
        output = folder / name
        arguments = ["train", "digits-cnn", "--bits", "3", "--init", str(trained), "--output", str(output)]
        arguments += ["--epochs", "2", "--data.limit", "256", "--bn-batches", "2", "--bn-keep", "always"]
        return [*arguments, "--no-compile", "--sync-batchnorm"], output

    folder = tmp_path_factory.mktemp("low")
    return command


@pytest.fixture(scope="module")
def one(low_bits) -> Path:
    """The run of one process."""
    command, folder = low_bits("one")
    assert main(command) == 0
    return folder


@pytest.fixture(scope="module")
def killed(low_bits) -> Path:
    """The run of two processes, one of them killed in the second epoch."""
    command, folder = low_bits("killed")
    done = launch([KILLED, "kill", "1.5", *command], timeout=120)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr  # torchrun says which
    assert Checkpoints(folder).training_state()["progress"]["epochs_done"] == 1
    return folder


@pytest.fixture(scope="module")
def jobs(low_bits, killed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Runs of two processes, in one job: the folder of each, and what was printed."""
    folder = tmp_path_factory.mktemp("jobs")
    command, two = low_bits("two")
    shutil.copytree(killed, folder / "killed")

    def stop(trainer: Trainer, epochs_done: float) -> None:
        if epochs_done >= 1.5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowbit.train, "run", partial(run, on_step=stop))
        assert main([*DIGITS, "--output", str(folder / "from one")]) == 130
    commands = {
        "two": (None, command),
        "eval": (None, ["eval", str(two), "--checkpoint", "last"]),
        "killed": (None, ["train", "--resume", "--output", str(folder / "killed")]),
        "from one": (None, ["train", "--resume", "--output", str(folder / "from one")]),
        "sharded": (1.5, [*DIGITS, "--shard", "--output", str(folder / "sharded")]),
        "validation": (None, [*DIGITS, "--data.validation", "201", "--shard", "--output", str(folder / "validation")]),
    }
    (folder / "commands.json").write_text(json.dumps(list(commands.values())))
    done = forked(str(Path(__file__).parent / "commands_job.py"), str(folder / "commands.json"))
    assert done.returncode == 0, done.stderr
    said = re.split(r"^### (\d+)\n", done.stdout, flags=re.MULTILINE)
    assert said[1::2] == ["0", "0", "0", "0", "130", "0"], done.stdout + done.stderr
    return {name: (two if name == "two" else folder / name, text) for name, text in zip(commands, said[::2])}


@pytest.fixture(scope="module")
def two(jobs) -> Path:
    """The run of two processes."""
    folder, said = jobs["two"]
    assert said.count("epoch 2/2") == 1 and "with 2 processes" in said
    return folder


def test_two_processes_follow_one(one: Path, two: Path, trained: Path) -> None:
    first, second = read_run(one), read_run(two)
    for name, step in first.start_steps.items():
        assert second.start_steps[name] == pytest.approx(step, rel=1e-6)
    # Layers at 3 bits amplify any rounding, so that the way is compared with what was gone; test_train_parallel compares to
    # rounding.
    assert distance(one, two) < 0.05 * distance(one, trained)
    for a, b in zip(first.epochs, second.epochs):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=0.3)


def distance(a: Path, b: Path) -> float:
    """How far the weights of two runs are apart."""
    a, b = tensors(a), tensors(b)
    return sum(float((a[key] - b[key]).square().sum()) for key in a if key.endswith(".weight")) ** 0.5


def test_what_two_measured_on_their_shares_is_what_one_measures_on_all(jobs, two: Path) -> None:
    _, accuracy = evaluate_run(two, checkpoint="last")
    read = read_run(two)
    assert accuracy == read.final["test_accuracy"] and round(accuracy * 360 / 100, 6).is_integer()
    _, said = jobs["eval"]
    assert said.count("test accuracy") == 1 and f"test accuracy {accuracy:.2f} %" in said


def test_killed_and_resumed_is_uninterrupted(jobs, two: Path) -> None:
    folder, _ = jobs["killed"]
    assert_same(tensors(folder), tensors(two))


def test_a_run_of_two_goes_on_in_one(killed: Path, two: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(killed, tmp_path / "run")
    assert main(["train", "--resume", "--output", str(folder)]) == 0
    assert [epoch["epoch"] for epoch in read_run(folder).epochs] == [0, 1]
    assert read_run(folder).epochs[0] == read_run(killed).epochs[0]
    assert tensors(folder).keys() == tensors(two).keys()


def test_a_run_of_one_goes_on_in_two(jobs) -> None:
    folder, said = jobs["from one"]
    assert [epoch["epoch"] for epoch in read_run(folder).epochs] == [0, 1] and "processes: 1, now 2" in said


def test_a_sharded_run_goes_on_in_one(jobs, tmp_path: Path) -> None:
    stopped, said = jobs["sharded"]
    assert "with 2 processes, sharded" in said
    folder = shutil.copytree(stopped, tmp_path / "run")
    assert main(["train", "--resume", "--output", str(folder)]) == 0
    assert [epoch["epoch"] for epoch in read_run(folder).epochs] == [0, 1]


def test_processes_choose_by_validation_and_test_once(jobs) -> None:
    folder, said = jobs["validation"]
    assert said.count("201 validation and 360 test images") == 1
    read = read_run(folder)
    for epoch in read.epochs:  # each image on one of the two
        assert round(epoch["validation_accuracy"] * 201 / 100, 6).is_integer() and "test_accuracy" not in epoch
    assert read.final["best_accuracy"] == max(epoch["validation_accuracy"] for epoch in read.epochs)
    assert read.final["test_accuracy"] == evaluate_run(folder)[1]


def test_a_process_that_fails_alone_stops_the_job(tmp_path: Path) -> None:
    done = launch([KILLED, "fail", "0.25", *DIGITS, "--output", str(tmp_path / "run")], timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("lowbit: error: process 1: an image is broken") == 1
    # The same command can start again. What the other process was writing just then may be left beside.
    assert not (tmp_path / "run" / "config.json").exists()


def test_bad_input_is_said_once_and_stops_every_process(tmp_path: Path) -> None:
    config = replace(small_config(tmp_path / "new"), model=ModelConfig("digits-cnn"))
    low_bit = replace(config, quantization=QuantizationConfig(weights=3, activations=3))
    wide = create("digits-cnn", num_classes=12).state_dict()
    save_file(wide, tmp_path / "wide.safetensors")
    run(replace(config, epochs=1, output=str(tmp_path / "trained")))
    trained = ModelConfig("digits-cnn", init=str(tmp_path / "trained"))
    run(replace(low_bit, model=trained, epochs=1, output=str(tmp_path / "w3a3")))
    w4a4 = shutil.copytree(tmp_path / "w3a3", tmp_path / "w4a4")
    four = replace(low_bit.quantization, weights=4, activations=4)
    wrong_width = replace(
        low_bit, model=replace(trained, num_classes=10), quantization=four, epochs=1, output=str(w4a4)
    )
    wrong_width.save(w4a4 / "config.json")
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            if (split, label) != ("train", "dog"):
                PIL.Image.new("RGB", (8, 8)).save(tmp_path / "images" / split / label / "0.png")

    def data(**changes: Any) -> TrainConfig:
        return replace(config, data=replace(config.data, **changes))

    def model(**changes: Any) -> TrainConfig:
        return replace(config, model=replace(config.model, **changes))

    locked_run = replace(config, output=str(shutil.copytree(tmp_path / "trained", tmp_path / "locked")))
    gone = str(tmp_path / "gone.safetensors")
    cases: dict[str, tuple[str, bool, list[TrainConfig]]] = {
        "few images": ("fewer than one batch of 5000", False, [data(batch_size=5000, limit=None)]),
        "uneven batch": ("make it a multiple of the 2", False, [data(batch_size=63)]),
        "no class": ("no image", False, [data(path=str(tmp_path / "images"), channels=3, batch_size=2)]),
        "no split": ("no split nothing", False, [data(path=str(tmp_path / "images"), train_split="nothing")]),
        "wrong network": ("not weights of this", False, [model(init=str(tmp_path / "wide.safetensors"))]),
        "wrong width": ("a checkpoint of quantization", True, [wrong_width]),
        "no network": ("cannot be fetched", False, [model(name="resnet18.tv_in1k", pretrained=True)]),
        "random weights": ("from random weights", False, [low_bit]),
        "folder in use": ("holds a run already", False, [replace(config, output=str(tmp_path / "trained"))]),
        "locked": (f"process {os.getpid()} on ", True, [locked_run]),
        "on one machine": ("process 1: weights", False, [config, model(init=gone)]),
    }
    plain = {name: (resume, *[c.as_dict() for c in configs]) for name, (_, resume, configs) in cases.items()}
    (tmp_path / "configs.json").write_text(json.dumps(plain))
    script = str(Path(__file__).parent / "bad_input_job.py")
    with locked(tmp_path / "locked"):
        done = forked(script, str(tmp_path), timeout=180, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"answers-{rank}.json").read_text()) for rank in (0, 1))
    assert list(first) == list(second) == list(cases)
    for name, (message, *_) in cases.items():
        assert message in first[name][0], first[name][0]
        assert first[name] == [first[name][0], True, True]  # all raise it, the first says it
        assert second[name] == [first[name][0], True, False]
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def imagenet(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training and 15 validation images of CIFAR-10 in three classes, in ImageNet's layout, larger than what they are cut to."""
    folder = tmp_path_factory.mktemp("imagenet")
    for split, count, source in (("train", 16, "train"), ("val", 5, "test")):
        file = pyarrow.parquet.ParquetFile(shared_data / "cifar10-jpeg" / f"{source}.parquet")
        rows = next(file.iter_batches(256)).to_pylist()
        for label in range(3):
            (folder / split / f"n{label:08}").mkdir(parents=True)
            for number, row in enumerate([row for row in rows if row["label"] == label][:count]):
                image = PIL.Image.open(io.BytesIO(row["img"]["bytes"])).resize((96, 80), PIL.Image.Resampling.BICUBIC)
                image.save(folder / split / f"n{label:08}" / f"{number}.JPEG")
    return folder


def test_imagenet_recipe_with_distillation_to_a_verified_file(imagenet: Path, tmp_path: Path, capsys) -> None:
    network = create("resnet18", num_classes=3)
    for name, parameter in network.named_parameters():
        if name.endswith("bn2.weight"):
            torch.nn.init.ones_(parameter)  # timm starts them at zero, and then whole layers see nothing
    save_file(network.state_dict(), tmp_path / "resnet18.safetensors")
    command = ["train", "lsq-resnet18-w2a2-distill", "--data", imagenet, "--init", tmp_path / "resnet18.safetensors"]
    command += ["--output", tmp_path / "run", "--epochs", 1, "--data.batch-size", 16, "--data.image-size", 64]
    command += ["--data.workers", 0, "--no-compile", "--quantization.integer-only", "--model.num-classes", 3]
    done = launch(["-m", "lowbit", *map(str, command)], launcher=ACCELERATE)
    assert done.returncode == 0, done.stderr
    assert "W2A2 by lsq" in done.stdout and "with 2 processes" in done.stdout

    run = str(tmp_path / "run")
    assert read_run(run).config["task"] == "distill"
    assert main(["export", run, "--images", "4"]) == 0
    assert "verified: 0 of" in capsys.readouterr().out
