"""The documentation's Python is run as it stands, and the functions that it names are there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

import lowbit
from lowbit.formats import coverage

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def run_blocks(page: Path) -> dict:
    names: dict = {}
    for block in python_blocks(page):
        if block.startswith("# src/"):  # quoted
            continue
        exec(compile(block, str(page), "exec"), names)
    return names


def test_adding_a_method():
    before = dict(lowbit.METHODS)
    torch.manual_seed(0)
    try:
        names = run_blocks(ROOT / "docs" / "add-a-method.md")
    finally:
        for name in lowbit.METHODS.keys() - before:
            del lowbit.METHODS[name]
    first = names["quantized"][0]
    assert first.weight_quantizer.method.name == "cosine"
    assert float(first.weight_quantizer.surrogate_value) == pytest.approx(0.5)
    assert first.input_quantizer.method.name == "lsq"
    assert first.weight.grad.abs().sum() > 0
    assert first.weight_quantizer.raw_step.grad.abs() > 0


def test_first_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run_blocks(ROOT / "docs" / "first-steps.md")
    assert names["accuracy"] > 0.9


@pytest.mark.filterwarnings("ignore:.*expected to do as well:UserWarning")
def test_bit_allocation():
    torch.manual_seed(0)
    names = run_blocks(ROOT / "docs" / "bit-allocation.md")
    assert names["allocation"].costs["weights"] <= 12_000
    assert sum(row.size_bits for row in lowbit.layer_table(names["quantized"])) <= 8 * 12_000


def test_post_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run_blocks(ROOT / "docs" / "post-training.md")
    assert sum(block.after for block in names["blocks"]) < sum(block.before for block in names["blocks"])
    assert names["report"].ok


def test_transformers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run_blocks(ROOT / "docs" / "transformers.md")
    assert names["report"].ok and names["report"].compared > 100_000


def test_diagnosis(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(ROOT / "docs" / "diagnosis.md")
    assert (names["first"].kind, names["first"].layer) == ("calibration-data", "0.0")


def test_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(ROOT / "docs" / "data.md")
    assert (tmp_path / "shards" / "_info.json").is_file()
    assert (names["train"].num_images, names["test"].num_images, names["train"].num_classes) == (1437, 360, 10)
    assert names["train"].skipped == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_functions_beside_formulas_exist():
    text = (ROOT / "docs" / "methods.md").read_text()
    references = re.findall(r"`([a-z_]+/[a-z_]+)\.py:([A-Za-z_.]+)`", text)
    assert len(references) > 30
    for path, name in references:
        found = importlib.import_module("lowbit." + path.replace("/", "."))
        for part in name.split("."):
            assert hasattr(found, part), f"docs/methods.md names {path}.py:{name}, but there is no {part}"
            found = getattr(found, part)


def test_every_method_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert [name for name in lowbit.METHODS if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("name", ["add-a-format", "add-an-operation"])
def test_what_a_page_quotes_stands_in_the_file(name):
    """Blocks that begin with a file's name are parts of that file."""
    blocks = [block for block in python_blocks(ROOT / "docs" / f"{name}.md") if block.startswith("# src/")]
    assert len(blocks) >= 4
    for block in blocks:
        head, _, quoted = block.partition("\n")
        assert quoted.rstrip() in (ROOT / head.removeprefix("# ")).read_text(), (
            f"{name}.md quotes {head} as it is no more"
        )


def test_adding_a_format(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(ROOT / "docs" / "add-a-format.md")
    assert names["report"].ok and (tmp_path / "network.json").read_text().startswith('{"lowbit": 1,')


def test_adding_an_operation(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    reports = run_blocks(ROOT / "docs" / "add-an-operation.md")["reports"]
    assert len(reports) == 4 and all(report.ok for report in reports.values())


def test_the_table_of_coverage_is_that_of_the_registry():
    assert coverage.table() in (ROOT / "docs" / "integer.md").read_text(), "print it: python -m lowbit.formats.coverage"
