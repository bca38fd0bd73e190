"""What the tables were to show, and what they show."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from campaigns.accuracy.networks import EFFICIENTNET
from campaigns.accuracy.peers import LIBRARIES
from campaigns.accuracy.report import difference, paired
from campaigns.accuracy.results import Line
from campaigns.accuracy.tables.longer import LONGER
from campaigns.accuracy.tables.table import EPOCHS
from lowbit.report import render

DEFAULT = "least-squares"
"""The row of the recipe's method: LSQ, whose steps of activations start at the least squared error."""
AT_DEFAULT_RATE = "faster"
"""The table of methods at the recipe's learning rate."""
SEEDS = 3
"""A row with fewer is not called the best where one has as many."""
COMPARED = {
    EPOCHS: ("methods", "faster", "rates", "parts", "ablations", "augmentation"),
    LONGER: ("longer", "augmentation"),
}
"""Tables of ResNet-8 by their budget."""

TRIED = """What was tried for low bits, on ResNet-8 in six epochs: images that are not padded before they are cropped (table "augmentation", the
largest gain: 1.4 at 2 bits, 1.0 at 3 and 0.9 at 4, but 0.8 in full precision too), the learning rate ("rates"), where steps start
("init"; on ResNet-20 it is worth four points in three epochs), distillation and every method ("methods", "faster"), the parts of LG-LSQ
and the remedies for oscillation ("parts"), and 2-bit weights on the levels −3, −1, 1 and 3 (decision 0027: no gain at a rate that suits LSQ).
Three times as many epochs bring all widths closer to full precision ("longer"); distillation from the network that training starts from
then costs accuracy, since the student passes its teacher. ResNet-20 as a teacher brings, in 18 epochs, 0.8 at 4 bits (three seeds), 0.8 at 3
(two) and 0.6 at 2 (one seed), for which six epochs are too few (0.1 at 2 bits): with it W4A4 is 0.6 above full precision that has no teacher, W3A3 as
accurate (−0.05 ± 0.12) and W2A2 2.4 below it. The same teacher brings full precision 0.7 (one seed), which is then 0.3 above W4A4. Widths one after the other (4, 3 and 2) end 1.2 below the same epochs at 2 bits ("widths"). Steps of
8 bits that are not learned end where learned ones do (decision 0011). Not tried yet: more than 18 epochs with several seeds, and less padding in 18 epochs but for one seed at 2 bits.
"""

Rows = dict[tuple[str, str], list[Line]]
"""Results by table and row."""


def goals(done: dict[str, Line]) -> str:
    """Each goal beside what was measured, as a Markdown table; a goal without a result is not judged."""
    lines = list(done.values())
    rows = [*_against_full_precision(lines), *_default(lines), _offset(lines), *_peers(lines), _no_divergence(lines)]
    return f"{render(rows, markdown=True)}\n{TRIED}"


def _rows(
    lines: Sequence[Line], tables: Sequence[str], bits: int | None, network: str = "resnet8", epochs: int = EPOCHS
) -> Rows:
    """What there is in the tables, in their order: a row that several of them have is named by the first."""
    found: Rows = {}
    for table in tables:
        for line in lines:
            if (line["table"], line["bits"], line["network"], line["epochs"]) == (table, bits, network, epochs):
                found.setdefault((table, line["row"]), []).append(line)
    return found


def _best(rows: Rows) -> tuple[str, list[Line]]:
    """The row with the best mean validation accuracy, and its results: test accuracy chooses nothing."""
    enough = {key: each for key, each in rows.items() if len(each) >= SEEDS} or rows
    means = {
        key: statistics.mean(line["validation"] for line in each if line["validation"] is not None)
        for key, each in enough.items()
        if any(line["validation"] is not None for line in each)
    }
    if not means:
        return "-", []
    best = max(means, key=means.__getitem__)
    return f"{best[1]} (table {best[0]})", rows[best]


def _judged(goal: str, row: str, mine: Sequence[Line], others: Sequence[Line], at_least: float) -> dict[str, str]:
    """A goal on the mean difference between runs of the same seeds."""
    pairs = paired(mine, others)
    short = at_least - statistics.mean(pairs) if pairs else None
    return {
        "goal": goal,
        "row": row,
        "measured": difference(mine, others),
        "met": "not measured" if short is None else "yes" if short <= 0 else f"missed by {short:.2f}",
    }


def _against_full_precision(lines: Sequence[Line]) -> Iterable[dict[str, str]]:
    for epochs, tables in COMPARED.items():
        row_of_full, full_precision = _best(_rows(lines, tables, None, epochs=epochs))
        for bits, at_least, goal in ((4, 0.0, "at or above"), (3, 0.0, "at or above"), (2, -1.0, "at most 1.0 below")):
            row, mine = _best(_rows(lines, tables, bits, epochs=epochs))
            yield _judged(
                f"ResNet-8, W{bits}A{bits}, {epochs} epochs: the best row {goal} full precision trained as long",
                f"{row} − {row_of_full}",
                mine,
                full_precision,
                at_least,
            )


def _default(lines: Sequence[Line]) -> Iterable[dict[str, str]]:
    for bits in (4, 3, 2):
        rows = _rows(lines, ["methods", AT_DEFAULT_RATE], bits)
        row, best = _best(rows)
        tests = [line["test"] for line in best if line["test"] is not None]
        deviation = statistics.stdev(tests) if len(tests) > 1 else 0.0
        yield _judged(
            f"ResNet-8, W{bits}A{bits}: the recipe's defaults the best row of tables methods and {AT_DEFAULT_RATE}, or "
            f"within a deviation of it ({deviation:.2f})",
            f"{DEFAULT} (table {AT_DEFAULT_RATE}) − {row}",
            rows.get((AT_DEFAULT_RATE, DEFAULT), []),
            best,
            -deviation,
        )


def _offset(lines: Sequence[Line]) -> dict[str, str]:
    rows = _rows(lines, ["signed"], 2, EFFICIENTNET)
    return _judged(
        "EfficientNet with SiLU, W2A2: LSQ+ at least 1.5 above LSQ (unsigned)",
        "lsq+ − lsq, unsigned",
        rows.get(("signed", "lsq+"), []),
        rows.get(("signed", "lsq, unsigned"), []),
        1.5,
    )


def _peers(lines: Sequence[Line]) -> Iterable[dict[str, str]]:
    for bits in (2, 4):
        rows = _rows(lines, ["peers"], bits)
        for peer in LIBRARIES:
            (our_row, ours), (their_row, theirs) = (
                _best({key: each for key, each in rows.items() if key[1].partition("@")[0] == name})
                for name in ("lsq", peer)
            )
            goal = f"ResNet-8, W{bits}A{bits}: at or above {peer}, each at the learning rate that suits it"
            yield _judged(goal, f"{our_row} − {their_row}", ours, theirs, 0.0)


def _no_divergence(lines: Sequence[Line]) -> dict[str, str]:
    of_recipe = [line for line in lines if line["row"] in ("lsq", DEFAULT, "integer-only")]
    diverged = sum(line["test"] is None for line in of_recipe)
    return {
        "goal": "no seed of a default recipe diverges",
        "row": "lsq, least-squares, integer-only",
        "measured": f"{diverged} of {len(of_recipe)} runs",
        "met": f"missed by {diverged}" if diverged else "yes",
    }
