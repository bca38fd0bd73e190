"""`--task reconstruct`: a run without labels, from the command line to the folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.train.conftest import small_config

import lowbit
from lowbit.cli.main import main
from lowbit.data import loaders
from lowbit.errors import LowbitError
from lowbit.report import read_run
from lowbit.train import ModelConfig, QuantizationConfig, ReconstructionConfig, TrainConfig, load, run, start_of
from lowbit.train.blockwise import BlockwiseTrainer


@pytest.fixture
def config(tmp_path: Path, trained: Path) -> TrainConfig:
    return small_config(
        tmp_path / "run",
        model=ModelConfig(name="digits-cnn", init=str(trained)),
        quantization=QuantizationConfig(weights=2, activations=2, integer_only=True, calibration_batches=2),
        task="reconstruct",
        reconstruction=ReconstructionConfig(images=100, steps=20),
    )


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder)[0].state_dict()


def test_a_run_is_what_reconstruct_makes_of_its_images(config: TrainConfig, capsys) -> None:
    result = run(config)
    resolved = read_run(result.folder).config
    assert resolved["epochs"] == 1 and resolved["quantization"]["init_weights"] == "least-squares"
    assert "block 1 of " in capsys.readouterr().out
    assert not (result.folder / "checkpoints" / "blocks.pt").exists()

    train, test = loaders(config.data, seed=config.seed)
    train.set_epoch(0)
    images = torch.cat([x for x, _ in train])[:100]
    model = lowbit.prepare(
        start_of(config), weights=2, activations=2, integer_only=True, init_weights="least-squares",
        init_activations="least-squares",
    )  # fmt: skip
    train.set_epoch(0)
    lowbit.calibrate(model, [x for _, (x, _) in zip(range(2), train)])
    lowbit.round_zero_points(model)

    def accuracy() -> float:
        model.eval()
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
        return 100 * right / test.num_images

    rounded = accuracy()
    lowbit.reconstruct(model, [images], steps=20)
    assert result.accuracy == pytest.approx(accuracy(), abs=0.6)  # channels-last convolutions round otherwise
    assert result.accuracy > rounded
    lowbit.to_integer(load(result.folder)[0], images[:1])


def test_a_run_that_was_stopped_between_blocks_goes_on_to_the_same_bits(
    config: TrainConfig, tmp_path: Path, monkeypatch, capsys
) -> None:
    whole = run(replace(config, output=str(tmp_path / "whole")))
    reports = []

    def stop(trainer, *arguments) -> dict[str, float]:
        def report(*numbers) -> None:
            reports.append(numbers[1])
            if numbers[1] == 2:
                raise KeyboardInterrupt

        return original(trainer, *arguments[:2], report)

    original = BlockwiseTrainer.train_epoch
    with monkeypatch.context() as patch:
        patch.setattr(BlockwiseTrainer, "train_epoch", lambda self, *a, **_: stop(self, *a))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert reports == [1, 2]
    capsys.readouterr()
    result = run(config, resume=True)
    out = capsys.readouterr().out
    assert "block 3 of" in out and "block 2 of" not in out
    expected = state(whole.folder)
    assert all(torch.equal(value, expected[name]) for name, value in state(result.folder).items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": None}, "nothing is quantized"),
        ({"model": ModelConfig(name="digits-cnn", from_scratch=True)}, "needs trained weights"),
        ({"ema": 0.9}, "leave out ema"),
    ],
)
def test_what_cannot_be_reconstructed(config: TrainConfig, changes: dict, message: str) -> None:
    with pytest.raises(LowbitError, match=message):
        run(replace(config, **changes))
    assert not Path(config.output).exists()


def test_its_options(trained: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(LowbitError, match=r"reconstruction\.images must be at least 1, got 0"):
        ReconstructionConfig(images=0)
    arguments = ["train", "digits-cnn", "--init", str(trained), "--task", "reconstruct", "--reconstruction.steps", "7"]
    assert main([*arguments, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "224 images (7 steps of 32 images in each block)" in out and "runs/digits-cnn-w4a4-lsq-reconstructed" in out
