"""The table of networks that nobody here wrote grows by records, and its page is made of it."""

from __future__ import annotations

import json
from pathlib import Path

from campaigns import zoo

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_new_records_join_the_table_that_is_there(tmp_path: Path) -> None:
    before = zoo.read([RESULTS / "zoo.csv"])
    own, torchvision = (next(row for row in before if row["group"] == group) for group in ("own", "torchvision"))
    again = own | {"stage_b": "done", "file_differ": 0, "export_codes": 1000, "nodes": 7}
    new = torchvision | {"name": "another", "stage_a": "train", "stage_b": "train", "error_a": "a\n | b", "error_b": ""}
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row | {"more": 1}) + "\n" for row in (new, again)))
    zoo.main([str(RESULTS / "zoo.csv"), str(tmp_path / "records.jsonl"), "--output", str(tmp_path)])
    rows = zoo.read([tmp_path / "zoo.csv"])
    assert len(rows) == len(before) + 1 and [row["name"] for row in rows if row not in before] == [
        own["name"],
        "another",
    ]
    assert rows.index(next(row for row in rows if row["name"] == "another")) < len(rows) - 1  # its group stays together
    page = (tmp_path / "zoo.md").read_text()
    assert f"Of {len(rows)} networks" in page and "| torchvision: another |" in page and "a / b |" in page


def test_the_page_is_made_of_the_table() -> None:
    rows, text = zoo.read([RESULTS / "zoo.csv"]), (RESULTS / "zoo.md").read_text()
    conditions = text.partition('("integers"). ')[2].partition("\n")[0]
    assert zoo.page(rows, conditions) == text
    assert {row["file_differ"] for row in rows if row["stage_b"] == "done"} == {"0"}
