"""The tutorial notebook runs as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "tutorial.ipynb"


@pytest.fixture
def names(tmp_path, monkeypatch) -> dict:
    """What its cells leave behind, run one after the other."""
    pytest.importorskip("sklearn", reason="the notebook needs scikit-learn: pip install 'lowbit[demo]'")
    pytest.importorskip("matplotlib", reason="the notebook draws: pip install matplotlib").use("Agg")
    pytest.importorskip("onnxruntime", reason="the notebook exports to ONNX: pip install 'lowbit[export]'")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), found)
    found["plt"].close("all")
    return found


def test_a_network_of_ones_own_becomes_a_proved_file(names, tmp_path):
    assert names["report"].ok and names["report"].proved and names["report"].samples == 397
    assert names["trained"] > 85 and names["trained"] > names["full_precision"] - 5  # 10 % is chance
    # Codes of the file as it was loaded again are those of the network that was saved.
    x = names["images"][:5]
    assert all(torch.equal(value, names["again"].codes(x)[name]) for name, value in names["integer"].codes(x).items())
    # A small network: its graph in words takes about as much as its codes.
    assert names["sizes"]["lowbit, packed"] < names["sizes"]["float32 weights"] / 2
    assert {path.name for path in tmp_path.iterdir()} == {"digits-w4a4.onnx", "digits-w4a4.safetensors"}
    assert all(len(set(values)) > 10 for values in names["history"].values())  # every step that is watched was learned
    assert names["found"].keys() == {32, 8, 4, 3, 2}
