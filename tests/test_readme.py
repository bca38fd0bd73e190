"""The README's training loop is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import lowbit

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_the_training_loop_works_as_printed(blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    quantized, network = names["quantized"], names["network"].eval()
    test_images, test_labels = names["images"][1500:], names["labels"][1500:]

    def accuracy(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float((model(test_images).argmax(1) == test_labels).float().mean())

    assert float(names["accuracy"]) == accuracy(quantized)
    assert accuracy(quantized) > 0.88  # the last images are harder than the first; 10 % is chance
    assert accuracy(quantized) > accuracy(network) - 0.03
    # 3-bit weights where it says so, 8-bit ones in the first and the last layer.
    assert [row.weight_bits for row in lowbit.layer_table(quantized)] == [8, 3, 3, 8]
    middle = quantized[1][0]
    assert len(middle.weight_quantizer(middle.weight).unique()) <= 8
    # The integer network of the last block is proved, file and all.
    assert names["report"].ok and names["report"].samples == 297
    assert {path.name for path in tmp_path.iterdir()} == {"digits.onnx", "digits.safetensors"}
    # The loop learned: training without it would leave every step where it started.
    steps = [quantizer for _, quantizer in lowbit.quantizers(quantized)]
    assert len(steps) == 8
    assert all(not torch.equal(quantizer.step, quantizer.initial_step) for quantizer in steps)


def test_the_loop_has_fifteen_lines(blocks):
    loop = [line for line in blocks[1].splitlines() if line.strip()]
    assert len(loop) == 15
