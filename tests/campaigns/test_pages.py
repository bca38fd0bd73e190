"""The pages of results are what their campaigns write from the tables beside them, and show no difference of codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("ai_edge_litert")

from benchmarks import harness
from campaigns import microcontrollers, vela

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_microcontrollers() -> None:
    rows, text = harness.read_csv(RESULTS / "microcontrollers.csv"), (RESULTS / "microcontrollers.md").read_text()
    tools = re.search(r"compiled at -O2\. (.*)\.\n", text)[1]
    assert microcontrollers.page(rows, tools, harness.read_csv(RESULTS / "vela.csv")) == text
    assert {row["differ"] for row in rows} == {"0"}
    few = [row for row in rows if row["core"] != "cortex-m0"]
    assert "not measured" in microcontrollers.page(few, tools)


def test_vela() -> None:
    rows, text = harness.read_csv(RESULTS / "vela.csv"), (RESULTS / "vela.md").read_text()
    versions = re.search(r'\(`io="codes"`\)\. (.*)\.\n', text)[1]
    assert vela.page(rows, versions) == text
    assert all(row["operators"] == row["on the NPU"] for row in rows)
    differ = [
        row[f"{stored} {where} differ"] for row in rows for stored in ("int8", "int4") for where in ("LiteRT", "TFLM")
    ]
    assert set(differ) == {"0"}


def test_without_vela_nothing_is_written(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    vela.main(["--output", str(tmp_path)])
    assert "pip install ethos-u-vela" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
