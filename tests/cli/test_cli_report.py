"""`lowbit report` as a user calls it: after training, and on runs that it can't report on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lowbit.report
from lowbit.cli.main import main
from lowbit.report import read_run

QUICK = ["--data.limit", "256", "--no-compile"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A run in full precision and one at low bits that started from it."""
    folder, threads = tmp_path_factory.mktemp("report"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowbit.report, "plot_run", lambda folder: None)
        full, low = str(folder / "fp"), str(folder / "low bits")
        assert main(["train", "digits-cnn-fp", "--epochs", "3", "--output", full, *QUICK]) == 0
        assert (
            main(["train", "digits-cnn", "--init", full, "--bits", "3", "--epochs", "2", "--output", low, *QUICK]) == 0
        )
    torch.set_num_threads(threads)
    return full, low


def test_a_run_at_low_bits(runs, capsys):
    full, low = runs
    assert main(["report", low, "--images", "64"]) == 0
    said = capsys.readouterr().out
    assert "on 64 images" in said and f"{low}/report.html" in said
    page = (Path(low) / "report.html").read_text()
    found = json.loads((Path(low) / "diagnosis.json").read_text())
    assert found["samples"] == 64 and found["against"] == "the reference"
    mine, theirs = (read_run(run).epochs[-1]["test_accuracy"] for run in (low, full))
    assert (
        f"<b>{mine:.2f} %</b>" in page and f"<b>{theirs:.2f} %</b>" in page and f"<b>{mine - theirs:+.2f}</b>" in page
    )
    looks = read_run(low).looks
    assert looks and {"conv2.weight_quantizer", "conv2.input_quantizer"} <= looks[0]["quantizers"].keys()


def test_runs_side_by_side(runs, tmp_path, capsys):
    assert main(["report", *runs, "--images", "64", "--output", str(tmp_path / "all.html")]) == 0
    assert f"{tmp_path / 'all.html'}: 2 runs side by side" in capsys.readouterr().out
    assert "2 runs side by side" in (tmp_path / "all.html").read_text()


def test_train_ends_by_naming_it(runs, tmp_path, capsys):
    folder = str(tmp_path / "a run")
    assert main(["train", "digits-cnn", "--init", runs[0], "--epochs", "1", "--output", folder, *QUICK]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"a page about it: lowbit report '{folder}'"


def test_bad_input(runs, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no run is there" in capsys.readouterr().err
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text((Path(runs[1]) / "config.json").read_text())
    assert main(["report", runs[1], str(folder)]) == 2  # before the first is diagnosed
    error = capsys.readouterr()
    assert "has no finished epoch" in error.err and error.out == ""
    assert main(["report", runs[1], "--images", "0"]) == 2
    assert "--images must be at least 1" in capsys.readouterr().err
    assert main(["report", runs[1], "--output", str(tmp_path)]) == 2
    assert main(["report"]) == 2
