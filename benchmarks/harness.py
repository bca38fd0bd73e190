"""Timing that can be trusted on a shared machine: interleaved in one process, medians, the spread shown."""

from __future__ import annotations

import csv
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from lowbit._table import aligned
from lowbit.files import atomic_write

Row: TypeAlias = dict[str, str]
"""A line of a CSV file, by the name of its column."""


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition of one contestant, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratio_to(self, base: Timing) -> tuple[float, float, float]:
        """(lower quartile, median, upper quartile) of the ratios, repetition by repetition."""
        ratios = sorted(a / b for a, b in zip(self.seconds, base.seconds))
        if len(ratios) < 2:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, middle, high

    def columns(self, base: Timing) -> dict[str, str]:
        """Median and ratio to the base, as a table shows them.

        Neighbours in time share what else the machine does, so the median of the ratios is steadier than the ratio of
        the medians.
        """
        low, middle, high = self.ratio_to(base)
        return {
            "median ms": f"{self.median * 1e3:.4g}",
            "ratio": f"{middle:.3f}",
            "lower quartile": f"{low:.3f}",
            "upper quartile": f"{high:.3f}",
        }


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    *,
    repetitions: int,
    warmup: int = 2,
    device: str = "cpu",
    shortest: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run every contestant `warmup` times, then all of them in turn, `repetitions` times over.

    A contestant that takes less than `shortest` seconds runs several times in each repetition; its seconds are per run.
    They are the clock's: `time.process_time` leaves out what one thread waits for other processes.
    """

    def timed(run: Callable[[], object], calls: int) -> float:
        synchronise(device)
        began = clock()
        for _ in range(calls):
            run()
        synchronise(device)
        return (clock() - began) / calls

    for run in contestants.values():
        for _ in range(warmup):
            run()
    calls = {name: max(1, math.ceil(shortest / timed(run, 1))) if shortest else 1 for name, run in contestants.items()}
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repetitions):
        for name, run in contestants.items():
            taken[name].append(timed(run, calls[name]))
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def machine(device: str = "cpu") -> str:
    """The machine and the versions, in one line."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = platform.processor() or platform.machine()
        cpuinfo = Path("/proc/cpuinfo")
        if cpuinfo.is_file():
            for line in cpuinfo.read_text().splitlines():
                if line.startswith("model name"):
                    name = line.split(":", 1)[1].strip()
                    break
        name += f", {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}; torch {torch.__version__}; Python {platform.python_version()}"


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as aligned columns; the first row's keys are the heading."""
    head = list(rows[0])
    print(aligned([head, *[[str(row[key]) for key in head] for row in rows]]))


def write_csv(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Rows as a CSV file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class ResumedTable:
    """A CSV file that a campaign adds rows to, in which a stopped one finds what was measured already.

    Args:
        path: the file; it need not be there yet. None: the rows are kept, and written nowhere.
        key: the columns by which rows are told apart.
        order: what rows are sorted by.
        again: measure what the file has too. Its rows stay until they are replaced.
    """

    def __init__(
        self, path: Path | None, key: Sequence[str], order: Callable[[Row], Any], *, again: bool = False
    ) -> None:
        self._path, self._key, self._order = path, tuple(key), order
        found = read_csv(path) if path is not None and path.exists() else []
        self._rows = {self._of(row): row for row in found}
        self._measured = set() if again else set(self._rows)

    def __contains__(self, key: Sequence[object]) -> bool:
        """Whether the row with these values of the columns of the key need not be measured."""
        return tuple(map(str, key)) in self._measured

    def add(self, row: Mapping[str, object]) -> None:
        """Keep a row as text, show it, and write the file."""
        kept = {column: str(value) for column, value in row.items()}
        self._rows[self._of(kept)] = kept
        self._measured.add(self._of(kept))
        print(*kept.values(), flush=True)
        if self._path is not None:
            write_csv(self.rows, self._path)

    @property
    def rows(self) -> list[Row]:
        """All rows, in order."""
        return sorted(self._rows.values(), key=self._order)

    def _of(self, row: Row) -> tuple[str, ...]:
        return tuple(row[column] for column in self._key)
