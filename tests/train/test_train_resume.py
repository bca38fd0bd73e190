"""A run that was stopped, at whatever moment, ends with the bits of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lowbit.errors import LowbitError
from lowbit.report import read_run
from lowbit.train import OptimizerConfig, QuantizationConfig, TrainConfig, run
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.trainer import Trainer

# Runs a config; SIGKILL comes at a step of training, or at the n-th rename of a file or folder.
KILLED = """
import os, signal, sys
import torch
from lowbit.train import TrainConfig, run

torch.set_num_threads(1)
kind, at = sys.argv[2], float(sys.argv[3])
count = 0

def kill(): os.kill(os.getpid(), signal.SIGKILL)

def at_step(trainer, epochs_done):
    if kind == "step" and epochs_done >= at:
        kill()

def at_rename(source, target, real=os.replace):
    global count
    count += "checkpoints" in str(target)
    kill() if count == at else real(source, target)

if kind == "rename":
    os.replace = at_rename
run(TrainConfig.load(sys.argv[1]), on_step=at_step)
"""


def tensors(folder: str | Path) -> dict:
    checkpoints = Checkpoints(Path(folder))
    last = checkpoints.folder / "final"
    return load_file(last / "model.safetensors") | load_file(last / "training.safetensors")


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].equal(b[name]), name


def interrupt(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, at: float) -> None:
    """Run, and press Ctrl-C when `at` epochs are done."""

    def stop(trainer: Trainer, epochs_done: float) -> None:
        if epochs_done >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, on_step=stop)


VARIANTS = {
    "sgd": {},
    "lg-lsq, adam, average, accumulation": {
        "method": "lg-lsq", "optimizer": OptimizerConfig("adam", 1e-3), "ema": 0.9, "accumulate": 2, "grad_clip": 1.0,
    },
    "remedies, bf16, re-estimation": {"dampening": 1e-3, "freezing": 0.02, "precision": "bf16", "bn_batches": 2},
    "balanced steps, transition rates": {"balance": 1.0, "transition_rate": 4e-3},
}  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("at", [0.5, 1.75], ids=["in the first epoch", "in the second epoch"])
def test_resumed_is_uninterrupted(low_bit, tmp_path, monkeypatch, changes: dict, at: float) -> None:
    quantizer = {k: v for k, v in changes.items() if k in {f.name for f in fields(QuantizationConfig)}}
    others = {k: v for k, v in changes.items() if k not in quantizer}
    config = replace(low_bit, quantization=replace(low_bit.quantization, **quantizer), **others, epochs=3)
    whole = replace(config, output=str(tmp_path / "whole"))
    expected = run(whole)
    interrupt(monkeypatch, config, at)
    result = run(config, resume=True)
    assert_same(tensors(config.output), tensors(whole.output))
    assert replace(result, folder=expected.folder) == expected

    def curve(folder):
        return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in read_run(folder).epochs]

    assert curve(config.output) == curve(whole.output)


@pytest.mark.parametrize(
    ("kind", "at", "epochs_done"),
    [("step", 1.5, 1), ("rename", 4, 1)],
    ids=["in the second epoch", "between the second checkpoint and the pointer to it"],
)
def test_killed_and_resumed_is_uninterrupted(low_bit, tmp_path, kind: str, at: float, epochs_done: int) -> None:
    whole = replace(low_bit, output=str(tmp_path / "whole"))
    run(whole)
    low_bit.save(tmp_path / "config.json")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "config.json"), kind, str(at)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Checkpoints(Path(low_bit.output)).training_state()["progress"]["epochs_done"] == epochs_done
    run(low_bit, resume=True)
    assert_same(tensors(low_bit.output), tensors(whole.output))
    assert [e["epoch"] for e in read_run(low_bit.output).epochs] == [0, 1]


def test_lines_of_epochs_without_a_checkpoint_are_dropped(config: TrainConfig, monkeypatch) -> None:
    interrupt(monkeypatch, config, 1.5)
    log = Path(config.output) / "metrics.jsonl"
    with open(log, "a") as file:
        file.write(json.dumps({"event": "epoch", "epoch": 1, "train_loss": 99.0}) + '\n{"event": "epo')
    run(config, resume=True)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["event"] for e in events] == ["start", "epoch", "resume", "epoch", "final"]
    assert [e["epoch"] for e in events if e["event"] == "epoch"] == [0, 1]
    assert events[3]["train_loss"] < 99


def test_a_finished_run_says_so(config: TrainConfig, capsys) -> None:
    result = run(config)
    before = tensors(config.output)
    capsys.readouterr()
    assert run(config, resume=True) == result
    assert "finished" in capsys.readouterr().out
    assert_same(tensors(config.output), before)
    with pytest.raises(LowbitError, match="other settings"):
        run(replace(config, seed=5), resume=True)


def test_a_run_is_continued_as_it_was_started(config: TrainConfig, monkeypatch) -> None:
    interrupt(monkeypatch, config, 1.5)
    with pytest.raises(LowbitError, match=r"other settings \(optimizer.lr: 0.1, now 0.2; epochs: 2, now 3\)"):
        run(replace(config, optimizer=OptimizerConfig(lr=0.2), epochs=3), resume=True)
    others = replace(config, optimizer=OptimizerConfig("adam", 0.2), epochs=3, seed=1, ema=0.9)
    with pytest.raises(LowbitError, match=r"epochs: 2, now 3 and 2 more\); `lowbit train --resume --output .*run`"):
        run(others, resume=True)


def test_moved_start_weights_are_not_needed_again(low_bit: TrainConfig, tmp_path: Path, monkeypatch) -> None:
    interrupt(monkeypatch, low_bit, 1.5)
    moved = replace(low_bit, model=replace(low_bit.model, init=str(tmp_path / "gone.safetensors")))
    run(moved, resume=True)


def test_nothing_to_resume(config: TrainConfig) -> None:
    with pytest.raises(LowbitError, match="no run to resume"):
        run(config, resume=True)
    assert not Path(config.output).exists()
