"""Optimizers and schedules of timm's, trackers of accelerate's: by name, from a config."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import own_code
from torch import nn

from lowbit.errors import LowbitError
from lowbit.report import read_run
from lowbit.train import OptimizerConfig, ScheduleConfig, TrainConfig, run
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.trainer import make_optimizer


@pytest.mark.parametrize(("name", "lr"), [("adamw", 2e-3), ("lamb", 5e-3), ("adafactor", 5e-3)])
def test_an_optimizer_of_timms_trains_and_goes_on_to_the_bit(low_bit: TrainConfig, tmp_path: Path, name, lr) -> None:
    config = replace(low_bit, optimizer=OptimizerConfig(name, lr, weight_decay=0.05))
    whole = replace(config, output=str(tmp_path / "whole"))
    assert run(whole).best_accuracy > 80

    def stop(trainer, epochs_done: float) -> None:
        if epochs_done >= 1.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, on_step=stop)
    run(config, resume=True)
    a, b = (load_file(Checkpoints(Path(each.output)).weights("last")) for each in (whole, config))
    assert all(a[key].equal(b[key]) for key in a)


def test_adamw_is_torchs_and_steps_are_not_decayed(low_bit: TrainConfig) -> None:
    seen = []

    def look(trainer, epochs_done: float) -> None:
        seen.append(trainer.optimizer.optimizer)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(replace(low_bit, optimizer=OptimizerConfig("adamw", 1e-3, weight_decay=0.05, step_lr=1e-4)), on_step=look)
    (optimizer,) = seen
    assert type(optimizer) is torch.optim.AdamW
    assert [(group["weight_decay"], group["betas"]) for group in optimizer.param_groups] == [(0.05, (0.9, 0.999)), (0.0, (0.9, 0.999))]  # fmt: skip


def test_the_papers_optimizers_are_torchs() -> None:
    for name, kind in (("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)):
        assert type(make_optimizer(OptimizerConfig(name), nn.Linear(2, 2))) is kind


def test_an_unknown_optimizer_is_refused_before_work(config: TrainConfig) -> None:
    with pytest.raises(LowbitError, match=r"optimizer.name: no optimizer 'adamv'\. Did you mean 'adam"):
        run(replace(config, optimizer=OptimizerConfig("adamv")))
    assert not Path(config.output).exists()


def test_schedules_of_timms_by_their_formulas() -> None:
    poly = ScheduleConfig(kind="poly", warmup_epochs=2)
    assert [poly.factor(e, 10) for e in (0, 1, 2)] == [0, 0.5, 1]
    for epoch in (3.5, 6, 9.9):
        assert poly.factor(epoch, 10) == pytest.approx(1 - (epoch - 2) / 8, rel=1e-6)
    tanh = [ScheduleConfig(kind="tanh").factor(e, 10) for e in (0, 2, 5, 8, 9.99)]
    assert tanh == sorted(tanh, reverse=True) and tanh[0] > 0.99 and tanh[-1] < 0.02
    assert tanh[2] == pytest.approx(0.5 * (1 - math.tanh(-7 + 0.5 * 10)), rel=1e-3)  # from -7 to 3


def test_trackers_are_told_what_the_log_has(low_bit: TrainConfig) -> None:
    own_code.Tracker.made.clear()
    run(replace(low_bit, track=("tests.own_code:Tracker", "tensorboard")))
    (tracker,) = own_code.Tracker.made
    assert tracker.config["quantization.weights"] == 3 and tracker.run_name == "test-run" and tracker.finished
    epochs = read_run(low_bit.output).epochs
    assert [(step, values["test_accuracy"]) for step, values in tracker.logged] == [(e["epoch"], e["test_accuracy"]) for e in epochs]  # fmt: skip
    assert tracker.logged[0][1]["steps/conv1.weight_quantizer"] == epochs[0]["steps"]["conv1.weight_quantizer"]
    assert list((Path(low_bit.output) / "test-run").glob("**/events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("track", "message"),
    [
        (("wandbb",), "track: no tracker 'wandbb'. Did you mean 'wandb'"),
        (("aim",), "track: aim is not installed: pip install aim"),
        (("tests.own_code:Trackr",), "has no 'Trackr'. Did you mean 'Tracker'"),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_before_work(config: TrainConfig, track, message: str) -> None:
    with pytest.raises(LowbitError, match=message):
        run(replace(config, track=track))
    assert not Path(config.output).exists()


def test_a_tracker_that_cannot_start_leaves_nothing_behind(config: TrainConfig) -> None:
    with pytest.raises(LowbitError, match=r"track: tests.own_code:Tracker can't start \(ConnectionError: no server\)"):
        run(replace(config, recipe="offline", track=("tests.own_code:Tracker",)))
    assert not Path(config.output).exists()
