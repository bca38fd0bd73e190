"""The README's training loop is run as it stands."""

from __future__ import annotations

import csv
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
    assert {path.name for path in tmp_path.iterdir()} == {"network.onnx", "digits.onnx", "digits.safetensors"}
    # The loop learned: training without it would leave every step where it started.
    steps = [quantizer for _, quantizer in lowbit.quantizers(quantized)]
    assert len(steps) == 8
    assert all(not torch.equal(quantizer.step, quantizer.initial_step) for quantizer in steps)


def test_the_first_example_has_ten_lines(blocks):
    lines = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(lines) == 10


def test_the_table_of_proof_says_what_the_results_do():
    """Each number of a claim stands in the page that it links."""
    rows = re.findall(r"^\| [^|]+ \| ([^|]+): \[[a-z]+\]\((.+?)\) \|$", README.read_text(), flags=re.MULTILINE)
    assert len(rows) == 7
    for claim, page in rows:
        text = (README.parent / page).read_text()
        numbers = re.findall(r"\d[\d,]*\.\d+|\d[\d,]{3,}|\d+ to \d+ %", claim)
        assert [number for number in numbers if number not in text and number.replace(",", "") not in text] == [], page


def test_every_file_of_a_network_computes_what_its_integer_form_does():
    """The counts of the table of proof that are read off results."""
    results = README.parent / "docs" / "results"
    with open(results / "networks.csv") as file:
        exported = [row for row in csv.DictReader(file) if row["file differs"] not in ("", "-")]
    assert {row["file differs"] for row in exported} == {"0"}
    assert f"each of {len(exported)} networks at 4 bits" in README.read_text()
    with open(results / "microcontrollers.csv") as file:
        cores = list(csv.DictReader(file))
    assert cores and {row["differ"] for row in cores if row["differ"]} == {"0"}


def test_the_loop_has_fifteen_lines(blocks):
    loop = [line for line in blocks[2].splitlines() if line.strip()]
    assert len(loop) == 15
