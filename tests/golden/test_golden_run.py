"""A run folder that version 0.1.0 (commit 1516403) left: stopped after one of two epochs of the digits at W3A3 by lsq+."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import lowbit
from lowbit.report import read_run
from lowbit.train import evaluate_run, load, run
from lowbit.train.build import read_config

FOLDER = Path(__file__).parent / "0.1.0" / "run"


def test_its_checkpoint_is_the_network_that_was_trained() -> None:
    model, config = load(FOLDER)
    epoch = read_run(FOLDER).epochs[0]
    assert (config.quantization.method, config.epochs, config.model.num_classes) == ("lsq+", 2, 10)
    steps = {name: float(quantizer.step.mean()) for name, quantizer in lowbit.quantizers(model)}
    assert steps == pytest.approx(epoch["steps"], rel=1e-6)
    loss, accuracy = evaluate_run(FOLDER)
    assert accuracy == epoch["test_accuracy"] and loss == pytest.approx(epoch["test_loss"], rel=1e-3)


def test_it_goes_on_as_it_did_then(tmp_path: Path, capsys) -> None:
    """The second epoch's numbers are those of version 0.1.0, which another processor rounds otherwise."""
    shutil.copytree(FOLDER, tmp_path / "run")
    config = replace(read_config(FOLDER), output=str(tmp_path / "run"))
    result = run(config, resume=True)
    assert "an earlier version of lowbit wrote the checkpoint" in capsys.readouterr().out
    first, second = read_run(tmp_path / "run").epochs
    assert first == read_run(FOLDER).epochs[0]
    assert second["train_loss"] == pytest.approx(0.0400653, rel=0.02)
    assert second["test_loss"] == pytest.approx(0.0780724, rel=0.02)
    assert result.accuracy == pytest.approx(98.06, abs=0.3)
