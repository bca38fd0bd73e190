"""The demo, with fewer networks and epochs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

DEMO = Path(__file__).resolve().parent.parent / "demo" / "digits.py"


@pytest.fixture
def demo(tmp_path, monkeypatch):
    names = runpy.run_path(str(DEMO), run_name="demo")
    settings = names["main"].__globals__
    settings |= {
        "OUTPUT": tmp_path / "out",
        "METHODS": {"lsq": "LSQ"},
        "WIDTHS": (4,),
        "FULL_PRECISION_EPOCHS": 4,
        "LOW_BIT_EPOCHS": 2,
        "RECONSTRUCTION_STEPS": 10,
    }
    monkeypatch.setenv("COLUMNS", "160")
    threads = torch.get_num_threads()
    yield settings
    torch.set_num_threads(threads)


def test_table_and_plots(demo, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "left over").touch()
    demo["main"]()
    shown = capsys.readouterr().out
    rows = {tuple(cells[:2]): cells[2:] for line in shown.splitlines() if (cells := line.replace("│", " ").split())}
    full, low, unlabelled = rows[("FP32", "-")], rows[("W4A4", "LSQ")], rows[("W4A4", "no")]
    assert unlabelled[:2] == ["training", "labels"] and float(unlabelled[3]) < 3
    assert float(full[0]) > 90
    assert float(low[1]) == pytest.approx(float(full[0]) - float(low[0]), abs=0.011)
    assert float(low[1]) < 3
    assert float(low[2]) < float(full[2]) / 7
    assert "kernels are compiled, once: " in shown and not (tmp_path / "out" / "warm-up").exists()
    (proof,) = [
        line for line in shown.splitlines() if " of " in line and "W4A4" in line and "│" in line and "LSQ" not in line
    ]
    assert proof.replace("│", " ").split()[1] == "0"
    in_c = [line for line in shown.splitlines() if "W4A4 as C" in line or "No C for microcontrollers" in line]
    assert len(in_c) == 1 and ("compiled here: 0 of " in in_c[0] or "no C compiler" in in_c[0])
    for path in ("model.onnx", "model.packed.onnx", "model.safetensors"):
        assert (tmp_path / "out" / "w4a4-lsq" / path).stat().st_size > 10_000
    assert "epoch" not in shown and "epoch 2/2" in (tmp_path / "out" / "log.txt").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 runs side by side" in page and "report.html" in shown
    for path in ("accuracy.png", "full-precision/plots/loss.png", "w4a4-lsq/plots/steps.png"):
        assert (tmp_path / "out" / path).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "out" / "left over").exists()
