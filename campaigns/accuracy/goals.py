"""What the tables were to show, and what they show."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from campaigns.accuracy.peers import LIBRARIES
from campaigns.accuracy.report import FULL_PRECISION, difference, paired
from campaigns.accuracy.results import Line
from lowbit.report import render

DEFAULT = "least-squares"
"""The row of the recipe's defaults: LSQ, whose steps of activations start at the least squared error."""

Select = Callable[..., list[Line]]


def goals(done: dict[str, Line]) -> str:
    """Each goal beside what was measured, as a Markdown table; a goal without a result is not judged."""

    def select(table: str, row: str, bits: int | None, network: str | None = None) -> list[Line]:
        wanted = {"table": table, "row": row, "bits": bits} | ({} if network is None else {"network": network})
        return [line for line in done.values() if all(line[key] == value for key, value in wanted.items())]

    rows = [*_against_full_precision(done, select), *_default(done, select), *_offset(select), *_peers(select)]
    rows.append(_no_divergence(done))
    return render(rows, markdown=True)


def _judged(goal: str, row: str, mine: Sequence[Line], others: Sequence[Line], at_least: float) -> dict[str, str]:
    """A goal on the mean difference between runs of the same seeds."""
    pairs = paired(mine, others)
    if not pairs:
        return {"goal": goal, "row": row, "measured": "-", "met": "not measured"}
    short = at_least - statistics.mean(pairs)
    return {
        "goal": goal,
        "row": row,
        "measured": difference(mine, others),
        "met": "yes" if short <= 0 else f"missed by {short:.2f}",
    }


def _best(table: str, bits: int, done: dict[str, Line], network: str) -> str | None:
    """The row with the best mean validation accuracy: test accuracy chooses nothing."""
    means: dict[str, list[float]] = {}
    for line in done.values():
        if (line["table"], line["bits"], line["network"]) == (table, bits, network) and line["validation"] is not None:
            means.setdefault(line["row"], []).append(line["validation"])
    return max(means, key=lambda row: statistics.mean(means[row]), default=None)


def _against_full_precision(done: dict[str, Line], select: Select) -> Iterable[dict[str, str]]:
    for bits, at_least, goal in ((4, 0.0, "at or above"), (3, 0.0, "at or above"), (2, -1.0, "at most 1.0 below")):
        row = _best("methods", bits, done, "resnet8")
        mine = [] if row is None else select("methods", row, bits, "resnet8")
        yield _judged(
            f"ResNet-8, W{bits}A{bits}: the best row {goal} full precision trained as long",
            row or "-",
            mine,
            select("methods", FULL_PRECISION, None, "resnet8"),
            at_least,
        )


def _default(done: dict[str, Line], select: Select) -> Iterable[dict[str, str]]:
    for bits in (4, 3, 2):
        row = _best("methods", bits, done, "resnet8")
        mine, best = select("methods", DEFAULT, bits, "resnet8"), [] if row is None else select("methods", row, bits)
        tests = [line["test"] for line in best if line["test"] is not None]
        deviation = statistics.stdev(tests) if len(tests) > 1 else 0.0
        yield _judged(
            f"ResNet-8, W{bits}A{bits}: the recipe's default the best row, or within a deviation of it "
            f"({deviation:.2f})",
            f"{DEFAULT} − {row}",
            mine,
            best,
            -deviation,
        )


def _offset(select: Select) -> Iterable[dict[str, str]]:
    yield _judged(
        "EfficientNet with SiLU, W2A2: LSQ+ at least 1.5 above LSQ (unsigned)",
        "lsq+ − lsq, unsigned",
        select("signed", "lsq+", 2),
        select("signed", "lsq, unsigned", 2),
        1.5,
    )


def _peers(select: Select) -> Iterable[dict[str, str]]:
    for bits in (2, 4):
        for peer in LIBRARIES:
            yield _judged(
                f"ResNet-8, W{bits}A{bits}: at or above {peer}",
                f"lsq − {peer}",
                select("peers", "lsq", bits),
                select("peers", peer, bits),
                0.0,
            )


def _no_divergence(done: dict[str, Line]) -> dict[str, str]:
    of_recipe = [line for line in done.values() if line["row"] in ("lsq", DEFAULT, "integer-only")]
    diverged = sum(line["test"] is None for line in of_recipe)
    return {
        "goal": "no seed of a default recipe diverges",
        "row": "lsq, least-squares, integer-only",
        "measured": f"{diverged} of {len(of_recipe)} runs",
        "met": f"missed by {diverged}" if diverged else "yes",
    }
