"""Training runs that are stopped, or find no room: exit status 2 or 130, words, and nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lowbit.report
import lowbit.train
from campaigns import kills
from lowbit.cli.main import main
from lowbit.errors import LowbitError
from lowbit.train import DataConfig, ModelConfig, TrainConfig, run
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.trainer import Trainer

pytest.importorskip("sklearn")

DATA = DataConfig(path="sklearn:digits", batch_size=64, limit=256, channels=1, mean=(0.3,), std=(0.35,))
CONFIG = TrainConfig(recipe="test", model=ModelConfig("digits-cnn"), data=DATA, epochs=2, compile=False)
TRAIN = ["train", "digits-cnn-fp", "--data.limit", "256", "--epochs", "2", "--no-compile"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(lowbit.report, "plot_run", lambda folder: None)
    yield
    torch.set_num_threads(threads)


def names(folder: Path) -> set[str]:
    return {name for name in kills.names(folder) if name != "tensorboard"}


def at(monkeypatch, epochs: float, action) -> None:
    """Do something once, when so many epochs are done."""
    real, done = Trainer._set_progress, []

    def look(self, epochs_done):
        if epochs_done >= epochs and not done:
            done.append(True)
            action()
        real(self, epochs_done)

    monkeypatch.setattr(Trainer, "_set_progress", look)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# ---------------------------------------------------------------- SIGTERM


def test_sigterm_stops_training_as_ctrl_c_does(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "run"
    at(monkeypatch, 1.5, terminate)
    assert main([*TRAIN, "--output", str(folder)]) == 130
    assert f"continue with: lowbit train --resume --output {folder}" in capsys.readouterr().out
    checkpoint = {
        f"checkpoints/epoch-0001/{name}" for name in ("model.safetensors", "training.json", "training.safetensors")
    }
    files = {"config.json", "versions.json", "metrics.jsonl", "checkpoints/checkpoints.json"}
    assert names(folder) == files | checkpoint
    assert main(["train", "--resume", "--output", str(folder)]) == 0


def test_sigterm_before_the_first_file_leaves_no_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(lowbit.train.config, "atomic_write", lambda path: terminate())
    assert main([*TRAIN, "--output", str(tmp_path / "run")]) == 130
    assert "lowbit: stopped" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sigterm_stops_an_evaluation(tmp_path: Path, monkeypatch, capsys) -> None:
    run(replace(CONFIG, epochs=1, output=str(tmp_path / "run")))
    capsys.readouterr()
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(lowbit.train.evaluation, "evaluate", lambda *_: terminate())
    assert main(["eval", str(tmp_path / "run")]) == 130
    assert capsys.readouterr() == ("", "lowbit: stopped\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_of_several_processes_is_ended_by_it(monkeypatch) -> None:
    """It may wait for another one that has ended."""
    from lowbit.cli.signals import terminable

    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is before


# ---------------------------------------------------------------- kills


def test_leftovers_of_a_killed_process_are_removed_by_the_next_start(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "run"
    run(replace(CONFIG, output=str(folder)))
    before = names(folder)
    left = [
        ".lock", ".metrics.lowbit-abcd1234.jsonl", "checkpoints/.checkpoints.lowbit-abcd1234.json",
        "checkpoints/epoch-0007.tmp/model.safetensors", "checkpoints/epoch-0007/model.safetensors",
        "plots/.loss.lowbit-abcd1234.png",
    ]  # fmt: skip
    for name in left:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("left")
    (folder / "mine.txt").write_text("kept")
    capsys.readouterr()
    assert main(["train", "--resume", "--output", str(folder)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert names(folder) == before | {"mine.txt"}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a process that has used an accelerator cannot be forked")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_small_part_of_the_campaign_of_kills(tmp_path: Path) -> None:
    outcomes = tmp_path / "k.csv"
    arguments = ["--trials", "2", "--outcomes", str(outcomes), "--report", str(tmp_path / "k.md")]
    assert kills.main(arguments) == 0
    assert "| all | | 2 | 2 | 0 | 0 | 0 | 0 |" in (tmp_path / "k.md").read_text()
    # Interrupted, it goes on where it was.
    lines = outcomes.read_text().splitlines(keepends=True)
    outcomes.write_text("".join(lines[:1]))
    assert kills.main(arguments) == 0
    assert [line.split(",")[:2] for line in outcomes.read_text().splitlines()] == [["0", str(n)] for n in range(2)]


def test_what_must_not_happen_to_a_killed_run_is_noticed(tmp_path: Path) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    for folder in (whole, other):
        run(replace(CONFIG, output=str(folder)))
    assert kills.verdict(other, whole) == ("same", "")
    (other / ".lock").touch()
    assert kills.verdict(other, whole)[0] == "left" and ".lock" in kills.verdict(other, whole)[1]
    (other / ".lock").unlink()
    shutil.rmtree(other)
    run(replace(CONFIG, seed=1, output=str(other)))
    assert kills.verdict(other, whole)[0] == "other"


# ---------------------------------------------------------------- no room

FULL = """
import resource, sys, warnings
from pathlib import Path
import torch
torch.set_num_threads(1)
from lowbit.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


def test_a_disk_that_takes_no_checkpoint(tmp_path: Path) -> None:
    """A limit on a file's size stops the writing in the middle, as a full disk does."""
    command = [sys.executable, "-c", FULL, "20000", *TRAIN, "--output", str(tmp_path / "run")]
    # What counts the lines that run is not to write in vain either.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(command, capture_output=True, text=True, env=plain)
    assert done.returncode == 2 and "can't be written" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "versions.json", ".lock"])
def test_no_room_for_the_first_files(tmp_path: Path, name: str, monkeypatch) -> None:
    real = os.open

    def full(path, *arguments, **named):
        if name.strip(".").split(".")[0] in Path(path).name and Path(path).parent == tmp_path / "run":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(LowbitError, match="No space left on device"):
        run(replace(CONFIG, output=str(tmp_path / "run")))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_later_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch) -> None:
    config = replace(CONFIG, output=str(tmp_path / "run"))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        at(patch, 1.5, lambda: patch.setattr("safetensors.torch.save_file", full))
        with pytest.raises(LowbitError, match=r"can't be written \(No space left on device\)"):
            run(config)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "checkpoints.json",
        "epoch-0001",
    ]
    run(config, resume=True)
    assert Checkpoints(tmp_path / "run").training_state()["progress"]["finished"]


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["y" * 200] * 30), "a\0b"], ids=["name", "path", "zero"])
@pytest.mark.parametrize("option", ["--output", "--data", "--init", "eval", "resume", "export"])
def test_names_that_the_system_does_not_take(tmp_path: Path, name: str, option: str, capsys) -> None:
    path = str(tmp_path / name)
    arguments = {"eval": ["eval", path], "export": ["export", path], "resume": ["train", "--resume", "--output", path]}
    output = [] if option == "--output" else ["--output", str(tmp_path / "run")]
    assert main(arguments.get(option) or [*TRAIN, *output, option, path]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lowbit: error:") and len(said) < 1000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", ["-1", "0"])
def test_numbers_of_classes(tmp_path: Path, number: str, capsys) -> None:
    assert main([*TRAIN, "--model.num-classes", number, "--output", str(tmp_path / "run")]) == 2
    assert f"model.num_classes must be at least 1, got {number}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- other people's runs


@pytest.mark.parametrize("command", ["eval", "export", "verify"])
def test_a_url_of_somebody_elses_run_is_not_contacted(tmp_path: Path, command: str, monkeypatch, capsys) -> None:
    folder = tmp_path / "run"
    config = replace(CONFIG, epochs=1, output=str(folder))
    run(config)
    replace(
        config, data=replace(DATA, path="https://example.org/images"), model=replace(config.model, num_classes=10)
    ).save(folder / "config.json")
    contacted = []

    def opened(url, *_):
        contacted.append(url)
        raise ConnectionError("nothing is contacted by tests")

    monkeypatch.setattr("lowbit.data.shards._opened", opened)
    (tmp_path / "m.onnx").touch()
    arguments = [command, str(folder), *([str(tmp_path / "m.onnx")] if command == "verify" else [])]
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "'https://example.org/images', which would be contacted: allow it with --allow-remote" in said
    assert contacted == []
    assert main([*arguments, "--allow-remote"]) == 2
    assert contacted == ["https://example.org/images/_info.json"]
    if command == "eval":
        assert main([*arguments, "--data", "sklearn:digits"]) == 0
