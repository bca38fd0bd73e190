"""The campaign of damaged files, a small part of it; and that it notices what it is to count."""

from __future__ import annotations

import pytest

from campaigns import faults
from lowbit.errors import LowbitError
from lowbit.formats import json as json_format
from lowbit.integer import file


def test_a_hundred_files(tmp_path, capsys):
    assert faults.main(["--files", "98", "--seed", "1", "--outcomes", str(tmp_path / "faults.csv")]) == 0
    assert "| all | | 98 |" in capsys.readouterr().out
    # Interrupted, it goes on where it was, and comes to the same.
    lines = (tmp_path / "faults.csv").read_text().splitlines(keepends=True)
    (tmp_path / "half.csv").write_text("".join(lines[:90]))
    assert faults.main(["--files", "98", "--seed", "1", "--outcomes", str(tmp_path / "half.csv")]) == 0
    assert (tmp_path / "half.csv").read_text().splitlines(keepends=True) == lines


@pytest.fixture
def case(tmp_path):
    """A flipped file of each format, which is refused."""
    found = {}
    for number in range(2 * len(faults.KINDS)):
        _, format, kind, _ = faults.case(3, number)
        if kind == "flip":
            found[format] = number
    assert set(found) == set(faults.FORMATS)
    return found


@pytest.mark.parametrize("format", faults.FORMATS)
def test_what_must_not_happen_is_noticed(format, case, tmp_path, monkeypatch):
    number = case[format]
    path = tmp_path / "m"
    path.write_bytes(faults.mutated(3, number))
    module = file if format == "lowbit" else json_format
    graph = faults.original(faults.case(3, number)[0])[0]

    def becomes(load) -> str:
        monkeypatch.setattr(module, "load", load)
        return faults.outcome(path, 3, number)[0]

    def refuse(path):
        raise LowbitError("damaged")

    def fail(path):
        raise KeyError("x")

    def swell(path):
        raise MemoryError

    def changed(path):
        node = next(node for node in graph.nodes if hasattr(node, "weight"))
        node.weight.codes.neg_()
        return graph

    assert faults.outcome(path, 3, number)[0] == "refused"
    assert becomes(refuse) == "refused"
    assert becomes(fail) == "traceback"
    assert becomes(swell) == "hang"
    assert becomes(lambda path: graph) == "same"
    faults.original_codes(faults.case(3, number)[0], "float")
    faults.original_codes(faults.case(3, number)[0], "fixed")
    try:
        assert becomes(changed) == "silent"
    finally:
        faults.original.cache_clear()
        faults.original_codes.cache_clear()


def test_a_file_that_takes_too_long_is_ended_and_the_next_one_judged(monkeypatch):
    answers = iter([False, True])
    monkeypatch.setattr(faults, "_answers", lambda *_: next(answers))
    first, second = faults.judged([0, 1], 0)
    assert first == (0, "hang", "more than 10 s") and second[:2] == (1, "refused")
