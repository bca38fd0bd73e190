"""`python -m campaigns.zoo RECORDS ...`: the table of networks that nobody here wrote, from records of trying them.

Each network is prepared at W4A4, calibrated and trained for one step, in ordinary form ("step") and for integers alone; that is
converted, exported to ONNX and verified in ONNX Runtime against the trained network ("integers"). The records are lines of
JSON with the fields of `FIELDS`, or a table that this wrote before: of a network that several have, the last counts.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowbit.files import atomic_write

FIELDS = (
    "group", "name", "shape", "parameters", "layers", "stage_a", "stage_b", "nodes", "file_differ", "export_codes",
    "trained_differ", "trained_codes", "seconds", "error_a", "error_b",
)  # fmt: skip
RESULTS = Path("docs/results")


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The records, the last one of each network; groups stay together, in the order in which they are first met."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in paths:
        with open(path, newline="") as file:
            for record in csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file):
                found[record["group"], record["name"]] = {field: record.get(field, "") for field in FIELDS}
    groups = list(dict.fromkeys(group for group, _ in found))
    return sorted(found.values(), key=lambda record: groups.index(record["group"]))


def page(rows: Sequence[dict[str, Any]], conditions: str) -> str:
    """The page, from the rows."""
    ran = len(rows)
    steps, integers = (sum(row[stage] == "done" for row in rows) for stage in ("stage_a", "stage_b"))
    codes = sum(int(row["export_codes"] or 0) for row in rows if row["stage_b"] == "done")
    differ = sum(int(row["file_differ"] or 0) for row in rows if row["stage_b"] == "done")
    lines = [
        "# Networks that nobody here wrote",
        "",
        "    python -m campaigns.zoo docs/results/zoo.csv RECORDS.jsonl",
        "",
        "timm's and torchvision's networks with random weights and typical networks of microcontrollers, each through prepare, calibrate and a",
        'training step at W4A4 ("step"), and with `integer_only=True` through a training step, `to_integer`, ONNX and `verify` ("integers"). '
        + conditions,
        "",
        f"Of {ran} networks a training step works for {steps}; {integers} end as a verified ONNX file: {differ} of {codes:,} codes differ between file and "
        'integer network. "Trained ≠" is the share of codes in which the trained network differs from the integers: a few ties of float32 and '
        "what random weights make of them ([with numbers](../integer.md#how-near-the-trained-network-is)); node by node, "
        "from the same codes, nothing else differs, which `to_integer` and `verify` prove.",
        "",
        "| network | input | step | integers | nodes | trained ≠ | why not |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = 100 * int(row["trained_differ"] or 0) / max(int(row["trained_codes"] or 0), 1)
        done = row["stage_b"] == "done"
        why = "" if done else " ".join(str(row["error_b"] or row["error_a"]).split())[:160].replace("|", "/")
        marks = ["yes" if row[stage] == "done" else "no" for stage in ("stage_a", "stage_b")]
        lines.append(
            f"| {row['group']}: {row['name']} | {row['shape']} | {marks[0]} | {marks[1]} | {row['nodes']} | "
            f"{f'{share:.2f} %' if done else ''} | {why} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.zoo", description=__doc__)
    parser.add_argument("records", type=Path, nargs="+", metavar="RECORDS")
    parser.add_argument("--conditions", default="", help="a sentence for the page: of the machine, of limits")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    rows = read(options.records)
    with atomic_write(options.output / "zoo.csv") as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(
            {**row, "error_a": str(row["error_a"])[:300], "error_b": str(row["error_b"])[:300]} for row in rows
        )
    with atomic_write(options.output / "zoo.md") as path:
        Path(path).write_text(page(rows, options.conditions))


if __name__ == "__main__":
    main()
