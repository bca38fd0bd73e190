"""docs/performance.md: its tables are the CSV files of docs/results, and nobody types a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks import harness
from benchmarks.result import ABOUT
from lowbit.files import atomic_write

DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULTS = DOCS / "results"
PAGE = DOCS / "performance.md"

_MARKED = re.compile(r"(<!-- (?P<kind>table|plot) (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def render(text: str, folder: Path = RESULTS) -> str:
    """The page with what stands between each pair of markers, `<!-- table NAME -->` and `<!-- end -->`, made anew.

    A table comes from NAME.csv, with what was measured, where and by which command above it and NAME.png, where there is
    one, below. `<!-- plot NAME -->` leaves the rows out. Where there is no such file it says that nothing was measured.
    """

    def block(match: re.Match) -> str:
        return f"{match[1]}{_block(match['name'], folder, rows_too=match['kind'] == 'table')}{match[4]}"

    return _MARKED.sub(block, text)


def write() -> None:
    """Bring the page in line with the results."""
    with atomic_write(PAGE) as temporary:
        temporary.write_text(render(PAGE.read_text()))
    print(f"{PAGE}: tables as in {RESULTS}")


def _block(name: str, folder: Path, *, rows_too: bool) -> str:
    path = folder / f"{name}.csv"
    if not path.is_file():
        return "Not measured yet.\n"
    rows = harness.read_csv(path)
    subject, machine, command = (rows[0][key] for key in ABOUT)
    lines = [f"{subject}. {machine}.", "", f"    {command}", ""]
    if rows_too:
        lines += [*_markdown(rows), ""]
    if (folder / f"{name}.png").is_file():
        lines += [f"![{subject}](results/{name}.png)", ""]
    return "\n".join(lines)


def _markdown(rows: Sequence[dict[str, str]]) -> list[str]:
    columns = [column for column in rows[0] if column not in ABOUT]
    heads = [
        columns,
        ["---", *["--:" for _ in columns[1:]]],
        *[[row[c].replace("|", "\\|") for c in columns] for row in rows],
    ]
    return [f"| {' | '.join(cells)} |" for cells in heads]
