"""What a benchmark found: rows on the terminal, a CSV file, a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import harness
from lowbit.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Columns of the CSV that are the same in every row: what was measured, where, and by which command.
ABOUT = ("subject", "machine", "command")


@dataclass(frozen=True)
class Bars:
    """A bar per row: `value`, with the spread from `low` to `high` where given, and a line at `mark`."""

    value: str
    low: str | None = None
    high: str | None = None
    mark: float | None = 1.0

    def draw(self, rows: Sequence[Mapping[str, str]], axes: Axes) -> None:
        rows = [row for row in rows if _number(row[self.value]) is not None]
        label = next(iter(rows[0]))
        values = [_number(row[self.value]) for row in rows]
        names = [row[label] for row in rows]
        axes.barh(
            range(len(rows)), values, color=["#1f5fa8" if not n.startswith("eager") else "#7aa6d6" for n in names]
        )
        if self.low and self.high:
            spread = [(_number(row[self.low]), _number(row[self.high])) for row in rows]
            away = [
                [max(0, v - a) for v, (a, _) in zip(values, spread)],
                [max(0, b - v) for v, (_, b) in zip(values, spread)],
            ]
            axes.errorbar(values, range(len(rows)), xerr=away, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
        if self.mark is not None:
            axes.axvline(self.mark, color="#c2571a", linewidth=1)
        axes.set_yticks(range(len(rows)), names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel(self.value)

    def size(self, rows: Sequence[object]) -> tuple[float, float]:
        return 8, 1.4 + 0.22 * len(rows)


@dataclass(frozen=True)
class Lines:
    """A line per value of `series`: `y` against `x`, a panel per value of `panel`."""

    x: str
    y: str
    series: str
    panel: str

    def draw_panels(self, rows: Sequence[Mapping[str, str]], panels: Sequence[Axes]) -> None:
        for axes, title in zip(panels, dict.fromkeys(row[self.panel] for row in rows)):
            mine = [row for row in rows if row[self.panel] == title]
            for name in dict.fromkeys(row[self.series] for row in mine):
                points = [(float(row[self.x]), float(row[self.y])) for row in mine if row[self.series] == name]
                axes.plot(*zip(*points), marker="o", markersize=3, label=name)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel(title)
            axes.set_ylabel(self.y)
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=7)


@dataclass(frozen=True)
class Table:
    """Rows with equal keys, the first of which names the row; `name` is the stem of the files."""

    name: str
    subject: str
    machine: str
    rows: Sequence[Mapping[str, str]]
    chart: Bars | Lines | None = None

    def show(self) -> None:
        print(f"\n{self.subject}\n{self.machine}")
        harness.print_table(self.rows)

    def write(self, folder: Path, command: str) -> None:
        """`name`.csv and, where matplotlib is installed, `name`.png."""
        folder.mkdir(parents=True, exist_ok=True)
        about = dict(zip(ABOUT, (self.subject, self.machine, command)))
        harness.write_csv([{**row, **about} for row in self.rows], folder / f"{self.name}.csv")
        if self.chart is not None:
            plot(self, folder / f"{self.name}.png")


def plot(table: Table, path: Path) -> None:
    """The table's chart as a PNG file; without matplotlib a line that says there is none."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no {path.name}: matplotlib is not installed")
        return
    chart = table.chart
    if isinstance(chart, Lines):
        count = len({row[chart.panel] for row in table.rows})
        figure = Figure(figsize=(3.4 * count, 3.4), layout="constrained")
        chart.draw_panels(table.rows, figure.subplots(1, count, squeeze=False)[0])
    else:
        figure = Figure(figsize=chart.size(table.rows), layout="constrained")
        chart.draw(table.rows, figure.subplots())
    for axes in figure.axes:
        axes.set_axisbelow(True)
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(table.subject, fontsize=9)
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # a contestant that could not run
