"""Runs whose choices are made by a validation part: the test images are looked at once, after the last choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

import lowbit.train.loop as loop
from lowbit.data import DataSet
from lowbit.errors import LowbitError
from lowbit.report import read_run, table
from lowbit.train import TrainConfig, evaluate_run, run
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.trainer import Trainer


@pytest.fixture
def held_out(config: TrainConfig) -> TrainConfig:
    """The digits in full precision, 200 of them for validation."""
    return replace(config, data=replace(config.data, validation=200.0))


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each evaluation looked at: 200 are those for validation, 360 those for test."""
    seen = []
    real = loop.evaluate

    def evaluate(network, loader, *others):
        seen.append(loader.num_images)
        return real(network, loader, *others)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    return seen


def test_the_test_images_are_evaluated_once_at_the_end(held_out: TrainConfig, evaluated, capsys, plots) -> None:
    result = run(replace(held_out, epochs=3, bn_batches=2))
    assert evaluated == [200, 200, 200, 200, 360]  # three epochs, batch-norm, test
    said = capsys.readouterr().out
    assert "256 training, 200 validation and 360 test images" in said and "validation loss" in said
    assert (
        f"test accuracy {result.test_accuracy:.2f} % of the checkpoint with the best validation"
        in said.splitlines()[-1]
    )

    read = read_run(held_out.output)
    assert all("test_accuracy" not in epoch and epoch["validation_accuracy"] > 0 for epoch in read.epochs)
    best = max(*(epoch["validation_accuracy"] for epoch in read.epochs), read.final["validation_accuracy"])
    assert result.best_accuracy == read.final["best_accuracy"] == best
    assert result.accuracy == read.final["validation_accuracy"]
    # What is reported is the checkpoint that was chosen, as `lowbit eval` finds it.
    loss, accuracy = evaluate_run(held_out.output)
    assert accuracy == result.test_accuracy == read.final["test_accuracy"]
    assert loss == pytest.approx(read.final["test_loss"])
    assert table([held_out.output])[0]["accuracy"] == accuracy
    assert (Path(held_out.output) / "plots" / "accuracy.png").exists()


@pytest.mark.parametrize("best_epoch", [1, 2, 3])
def test_the_checkpoint_is_chosen_by_validation_and_then_tested(held_out, monkeypatch, best_epoch: int) -> None:
    """Accuracies are made up, so that the best epoch is known and the test images would choose another."""
    claims = {200: [10.0 + 5 * (epoch == best_epoch) for epoch in (1, 2, 3)], 360: [77.0]}
    tested = []

    def evaluate(network, loader, *others):
        if loader.num_images == 360:
            tested.append({name: value.clone() for name, value in network.state_dict().items()})
        return 1.0, claims[loader.num_images].pop(0)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    result = run(replace(held_out, epochs=3))
    assert (result.accuracy, result.best_accuracy, result.test_accuracy) == (10.0 + 5 * (best_epoch == 3), 15.0, 77.0)
    checkpoints = Checkpoints(Path(held_out.output))
    best = load_file(checkpoints.weights("best"))
    (network,) = tested
    assert network.keys() == best.keys() and all(network[name].equal(best[name]) for name in best)
    last = load_file(checkpoints.weights("last"))
    assert all(last[name].equal(best[name]) for name in best) == (best_epoch == 3)


@pytest.mark.parametrize("better", [True, False])
def test_batchnorm_statistics_are_chosen_by_validation(held_out: TrainConfig, monkeypatch, better: bool) -> None:
    claims = {200: [50.0, 60.0 if better else 40.0], 360: [10.0]}
    monkeypatch.setattr(loop, "evaluate", lambda network, loader, *others: (1.0, claims[loader.num_images].pop(0)))
    result = run(replace(held_out, epochs=1, bn_batches=2))
    assert result.best_accuracy == (60.0 if better else 50.0) and result.test_accuracy == 10.0


def test_no_image_held_out_is_trained_on_or_calibrated_with(low_bit: TrainConfig, monkeypatch) -> None:
    low_bit = replace(low_bit, data=replace(low_bit.data, validation=200, limit=None), epochs=1)
    given = []
    real = DataSet.loaders
    monkeypatch.setattr(DataSet, "loaders", lambda self, **k: given.append(real(self, **k)) or given[-1])
    run(low_bit)
    (splits,) = given
    assert splits.train.num_images == 1437 - 200
    held = {image.numpy().tobytes() for image in splits.validation.images}
    kept = {image.numpy().tobytes() for image in splits.train.images}
    assert len(held) == 200 and not held & kept


def interrupt(monkeypatch: pytest.MonkeyPatch, config: TrainConfig) -> None:
    """Run, and press Ctrl-C in the second epoch."""

    def stop(trainer: Trainer, epochs_done: float) -> None:
        if epochs_done >= 1.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, on_step=stop)


def test_a_resumed_run_has_the_same_images_held_out(held_out: TrainConfig, tmp_path, monkeypatch, capsys) -> None:
    whole = replace(held_out, output=str(tmp_path / "whole"))
    expected = run(whole)
    interrupt(monkeypatch, held_out)
    with pytest.raises(LowbitError, match=r"data\.validation: 200.0, now 100"):
        run(replace(held_out, data=replace(held_out.data, validation=100)), resume=True)
    result = run(held_out, resume=True)
    assert replace(result, folder=expected.folder) == expected
    assert run(held_out, resume=True) == result  # finished: nothing is evaluated again
    assert f"finished (test accuracy {result.test_accuracy:.2f} %" in capsys.readouterr().out


def test_a_bad_part_is_refused_before_anything_is_written(config: TrainConfig) -> None:
    with pytest.raises(LowbitError, match="holds out 5 of 1437 training images"):
        run(replace(config, data=replace(config.data, validation=5)))
    assert not Path(config.output).exists()
