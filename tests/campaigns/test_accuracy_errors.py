"""Steps of trained runs beside those of the least error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from campaigns.accuracy import errors

import lowbit.report
from lowbit.recipes import get_recipe
from lowbit.train import build, run


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lowbit.report, "plot_run", lambda folder: None)
    config = get_recipe("digits-cnn")(weights=3, activations=3)
    data = replace(config.data, path="sklearn:digits", limit=256)
    model = replace(config.model, from_scratch=True)
    config = replace(config, model=model, data=data, epochs=1, compile=False, output=str(tmp_path / "run"))
    run(replace(config, recipe="accuracy/mine"))
    return tmp_path / "run"


def _noise(x: np.ndarray, step: float, low: int, high: int) -> float:
    return float(((np.clip(np.rint(x / step), low, high) * step - x) ** 2).sum())


def test_steps_beside_those_of_the_least_error(trained, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(errors, "FILE", tmp_path / "errors.csv")
    assert errors.main(["--data", "sklearn:digits", str(trained)]) == 0
    assert "mine, weights: step over" in capsys.readouterr().out
    rows = {row.quantizer: row for row in errors.read()}
    model, _ = build.load(trained)
    quantizers = dict(lowbit.quantizers(model))
    assert set(rows) == set(quantizers)
    for name, row in rows.items():
        assert row.step == pytest.approx(float(quantizers[name].step), rel=1e-5)
        assert row.least_error_sqnr >= row.sqnr - 0.05  # found from a sample of large tensors
        if name.endswith("weight_quantizer"):
            w = model.get_submodule(name.rpartition(".")[0]).weight.detach().double().numpy()
            grid = quantizers[name].grid
            noise = [_noise(w, step, grid.qn, grid.qp) for step in np.linspace(0.01, 3, 3000) * row.least_error_step]
            assert row.least_error_sqnr == pytest.approx(10 * np.log10((w**2).sum() / min(noise)), abs=0.1)
            assert row.sqnr == pytest.approx(
                10 * np.log10((w**2).sum() / _noise(w, row.step, grid.qn, grid.qp)), abs=0.01
            )
    assert errors.main([]) == 0 and len(errors.read()) == len(rows)


def test_runs_need_data(capsys) -> None:
    assert errors.main(["somewhere"]) == 2
    assert "--data" in capsys.readouterr().err
