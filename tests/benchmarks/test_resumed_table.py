"""The CSV file that a stopped campaign goes on with."""

from __future__ import annotations

from benchmarks import harness


def table(path, *, again=False):
    return harness.ResumedTable(path, ("network", "W"), lambda row: -int(row["W"]), again=again)


def test_what_was_measured_is_there_after_a_stop_in_order(tmp_path):
    file = tmp_path / "new" / "table.csv"
    first = table(file)
    first.add({"network": "a", "W": 2, "found": 0.5})
    first.add({"network": "a", "W": 8, "found": 1})
    assert first.rows == harness.read_csv(file)
    assert [row["W"] for row in first.rows] == ["8", "2"]
    second = table(file)
    assert ("a", 2) in second and ("a", "8") in second and ("a", 4) not in second and ("b", 2) not in second


def test_what_is_measured_again_replaces_its_row_alone(tmp_path):
    file = tmp_path / "table.csv"
    for bits in (2, 4):
        table(file).add({"network": "a", "W": bits, "found": 0})
    again = table(file, again=True)
    assert ("a", 2) not in again
    again.add({"network": "a", "W": 2, "found": 1})
    assert ("a", 2) in again and ("a", 4) not in again
    assert [(row["W"], row["found"]) for row in harness.read_csv(file)] == [("4", "0"), ("2", "1")]


def test_without_a_file_rows_are_kept(capsys):
    kept = table(None)
    kept.add({"network": "a", "W": 2})
    assert kept.rows == [{"network": "a", "W": "2"}]
    assert capsys.readouterr().out == "a 2\n"
