"""Configs: JSON and back, refused values, the schedule."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from lowbit.errors import LowbitError
from lowbit.train import (
    DataConfig,
    DistillationConfig,
    ModelConfig,
    OptimizerConfig,
    QuantizationConfig,
    ScheduleConfig,
    TrainConfig,
)
from lowbit.train.config import differences

FULL = TrainConfig(
    recipe="mine",
    model=ModelConfig(name="resnet18", init="a.safetensors", num_classes=7),
    data=DataConfig(path="somewhere", augment="cifar", mean=(0.5, 0.25, 0.1), limit=100),
    quantization=QuantizationConfig(weights=2, activations=None, rules=({"pattern": "fc", "weights": None},)),
    optimizer=OptimizerConfig(name="adam", lr=1e-3, step_lr=1e-4),
    schedule=ScheduleConfig(kind="step", warmup_epochs=0.5),
    task="distill",
    distillation=DistillationConfig("resnet50", init="b.safetensors", temperature=4, share=0.9),
    grad_clip=1.0,
    ema=0.999,
    output="runs/mine",
)


@pytest.mark.parametrize("config", [TrainConfig(), FULL], ids=["defaults", "full"])
def test_json_round_trip(config: TrainConfig, tmp_path) -> None:
    config.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == config
    assert TrainConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_missing_fields_take_defaults_and_whole_numbers_serve_as_floats() -> None:
    config = TrainConfig.from_dict({"epochs": 5, "optimizer": {"lr": 1}})
    assert config == TrainConfig(epochs=5, optimizer=OptimizerConfig(lr=1.0))
    assert isinstance(config.optimizer.lr, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, r"epoch: no such field. Did you mean 'epochs'"),
        ({"optimizer": {"lrr": 0.1}}, r"optimizer.lrr: no such field"),
        ({"epochs": "3"}, r"epochs: expected int, got '3'"),
        ({"epochs": True}, r"epochs: expected int, got True"),
        (
            {"schedule": {"kind": "cosin"}},
            r"schedule.kind: expected one of 'cosine', 'step', 'tanh', 'poly', got 'cosin'",
        ),
        ({"optimizer": 3}, r"optimizer: expected an object"),
        ({"data": {"path": "x", "mean": [0.5, "a", 0.5]}}, r"data.mean\[1\]: expected float"),
        ({"quantization": {"rules": [3]}}, r"quantization.rules\[0\]: expected"),
        ({"ema": 1.5}, r"ema must be between 0 and 1"),
    ],
)
def test_wrong_json_is_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(LowbitError, match=message):
        TrainConfig.from_dict(values)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_broken_file_is_named(text: str, tmp_path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(LowbitError, match=r"config\.json"):
        TrainConfig.load(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(lr=0), "optimizer.lr"),
        (lambda: OptimizerConfig(lr=math.nan), "optimizer.lr"),
        (lambda: OptimizerConfig(momentum=1), "optimizer.momentum"),
        (lambda: OptimizerConfig(momentum=0, nesterov=True), "optimizer.nesterov"),
        (lambda: OptimizerConfig(weight_decay=-1), "optimizer.weight_decay"),
        (lambda: OptimizerConfig(step_lr=-1), "optimizer.step_lr"),
        (lambda: ScheduleConfig(warmup_epochs=-1), "schedule.warmup_epochs"),
        (lambda: ScheduleConfig(step_epochs=0), "schedule.step_epochs"),
        (lambda: ScheduleConfig(step_factor=-1), "schedule.step_factor"),
        (lambda: TrainConfig(epochs=2, schedule=ScheduleConfig(warmup_epochs=3)), "schedule.warmup_epochs 3 are more"),
        (lambda: QuantizationConfig(calibration_batches=0), "quantization.calibration_batches"),
        (lambda: QuantizationConfig(dampening=-1), "quantization.dampening"),
        (lambda: QuantizationConfig(freezing=0), "quantization.freezing"),
        (lambda: QuantizationConfig(scales="powers"), "quantization.scales.*power-of-two"),
        (lambda: QuantizationConfig(balance=0.0), "quantization.balance"),
        (lambda: QuantizationConfig(init_weights="least-square"), "quantization.init_weights.*'least-squares'"),
        (lambda: QuantizationConfig(init_activations="unit"), "quantization.init_activations"),
        (lambda: ModelConfig(init="a", pretrained=True), "model.init and model.pretrained"),
        (lambda: TrainConfig(epochs=-1), "epochs"),
        (lambda: TrainConfig(accumulate=0), "accumulate"),
        (lambda: TrainConfig(grad_clip=0), "grad_clip"),
        (lambda: TrainConfig(bn_batches=-1), "bn_batches"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, message: str) -> None:
    with pytest.raises(LowbitError, match=message):
        make()


def test_differences_name_the_fields() -> None:
    other = replace(FULL, epochs=9, optimizer=replace(FULL.optimizer, lr=0.5), quantization=None)
    names = [name for name, _ in differences(FULL, other)]
    assert {"epochs", "optimizer.lr", "quantization.weights"} <= set(names)
    assert differences(FULL, FULL) == []


def test_cosine_without_restart() -> None:
    schedule = ScheduleConfig()
    assert schedule.factor(0, 10) == 1
    assert schedule.factor(5, 10) == pytest.approx(0.5)
    assert schedule.factor(2.5, 10) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert schedule.factor(10, 10) == pytest.approx(0, abs=1e-15)


def test_warm_up_rises_linearly_and_the_cosine_spans_the_rest() -> None:
    schedule = ScheduleConfig(warmup_epochs=2)
    assert [schedule.factor(e, 10) for e in (0, 0.5, 1, 2)] == [0, 0.25, 0.5, 1]
    assert schedule.factor(6, 10) == pytest.approx(0.5)


def test_step_decay() -> None:
    schedule = ScheduleConfig(kind="step", step_epochs=20, step_factor=0.1)
    assert [schedule.factor(e, 90) for e in (0, 19.99, 20, 45)] == [1, 1, 0.1, pytest.approx(0.01)]
