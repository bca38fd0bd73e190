"""Small configs on the digits, and trained weights to start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import lowbit.report
from lowbit.models import save_weights
from lowbit.train import (
    DataConfig,
    DistillationConfig,
    ModelConfig,
    OptimizerConfig,
    QuantizationConfig,
    TrainConfig,
    run,
)
from lowbit.train.checkpoint import Checkpoints


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny steps lose more to waiting for threads, also those of other tests, than they win by them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def plots() -> None:
    """Asked for by tests of the plots, which take longer to draw than the digits to learn."""


@pytest.fixture(autouse=True)
def no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "plots" not in request.fixturenames:
        monkeypatch.setattr(lowbit.report, "plot_run", lambda folder: None)


def small_config(output: Path, **changes: Any) -> TrainConfig:
    """Two epochs of four steps on 256 digits, in full precision unless `changes` say otherwise."""
    config = TrainConfig(
        recipe="test",
        model=ModelConfig(name="digits-cnn"),
        data=DataConfig(path="sklearn:digits", batch_size=64, limit=256, channels=1, mean=(0.3,), std=(0.35,)),
        optimizer=OptimizerConfig(lr=0.1),
        epochs=2,
        compile=False,
        output=str(output),
    )
    return replace(config, **changes)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return small_config(tmp_path / "run")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in full precision that has learned the digits."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    start = small_config(folder)
    run(replace(start, data=replace(start.data, limit=None), epochs=4))
    return folder


@pytest.fixture
def low_bit(config: TrainConfig, trained: Path) -> TrainConfig:
    """W3A3 from the trained weights."""
    return replace(
        config,
        model=ModelConfig(name="digits-cnn", init=str(trained)),
        quantization=QuantizationConfig(weights=3, activations=3, calibration_batches=2),
        optimizer=OptimizerConfig(lr=0.02),
    )


@pytest.fixture
def taught(trained: Path, tmp_path: Path) -> DistillationConfig:
    """By a network that has learned to say the digit after each; in teacher2.safetensors are other weights."""
    tensors = safetensors.torch.load_file(Checkpoints(trained).weights("best"))
    last = [name for name, tensor in tensors.items() if tensor.shape[:1] == (10,)]
    assert len(last) == 2
    for name in last:
        tensors[name] = tensors[name].roll(1, 0)
    save_weights(tensors, tmp_path / "teacher.safetensors")
    save_weights({name: tensor * 2 for name, tensor in tensors.items()}, tmp_path / "teacher2.safetensors")
    return DistillationConfig("digits-cnn", init=str(tmp_path / "teacher.safetensors"))
