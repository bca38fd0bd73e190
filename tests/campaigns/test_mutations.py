"""The campaign of mutations: what is kept is not measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns import mutations
from lowbit.lowering.convert import convert
from lowbit.lowering.proof import Proof, trial, trial_inputs


@pytest.fixture
def few(monkeypatch):
    """Two mutations of the smallest network's every node, and how many times the proof was asked."""
    asked = []
    every, catches = mutations.changes, mutations.OneBatch.catches

    def counted(*arguments):
        asked.append(arguments)
        return catches(*arguments)

    monkeypatch.setattr(mutations, "changes", lambda node, graph: list(every(node, graph))[:2])
    monkeypatch.setattr(mutations.OneBatch, "catches", counted)
    return asked


def test_a_stopped_campaign_goes_on_where_it_was(few, tmp_path: Path, monkeypatch, capsys):
    outcomes, page = tmp_path / "outcomes.csv", tmp_path / "page.md"
    arguments = ["--networks", "digits-cnn", "--bits", "4", "--outcomes", str(outcomes), "--report", str(page)]
    assert mutations.main(arguments) == 0
    whole, asked = outcomes.read_bytes(), len(few)
    assert asked > 10 and page.read_text().count("| Convolution |") == 1

    text = page.read_text()
    outcomes.write_bytes(whole[: int(len(whole) * 0.6)])  # in the middle of a line
    few.clear()
    assert mutations.main(arguments) == 0
    assert 1 < len(few) < asked and page.read_text() == text

    few.clear()
    assert mutations.main(arguments) == 0 and len(few) == 1  # the network itself
    few.clear()
    monkeypatch.setattr(mutations, "sources", lambda: "others")
    assert mutations.main(arguments) == 0 and len(few) == asked
    capsys.readouterr()


def test_what_is_missed_is_named(few, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(mutations.OneBatch, "catches", lambda *_: False)
    assert mutations.main(["--networks", "digits-cnn", "--bits", "4", "--outcomes", str(tmp_path / "of.csv")]) == 1
    printed = capsys.readouterr().out
    assert "digits-cnn W4A4: " in printed and "(Convolution): " in printed
    tried, caught = printed.splitlines()[-1].split("|")[3:5]
    assert int(tried) > 10 and int(caught) == 0


def test_looking_at_what_changed_finds_what_looking_at_all_does():
    model, x = mutations.prepared("digits-cnn", 2)
    graph, places = convert(model, x[:1])
    inputs = trial_inputs(graph, dict.fromkeys(graph.inputs, x))
    once = mutations.OneBatch(model, graph, places)
    found = []
    for node in graph.nodes:
        for what, change in mutations.changes(node, graph):
            other = mutations.mutated(graph, node, change)
            if other is not None and what in ("dropped", "scale of another grid", "bias doubled", "subtracted"):
                found.append(once.catches(other, inputs))
                assert found[-1] == bool(trial(Proof(model, other, places), inputs)), (node.name, what)
    assert len(found) > 8 and any(found)
