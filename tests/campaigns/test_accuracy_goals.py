"""The goals of the campaign of accuracy, judged from recorded results."""

from __future__ import annotations

from typing import Any

from campaigns.accuracy.goals import goals
from campaigns.accuracy.tables import signed


def lines(
    table: str, row: str, bits: int | None, tests: list[float | None], network: str = "resnet8"
) -> dict[str, Any]:
    """Results of the seeds 0, 1, …, as accurate on held-out images as on the test images."""
    common = {"table": table, "row": row, "bits": bits, "network": network, "epochs": 6}
    return {
        f"{table}/{row}-{bits}-s{seed}": {**common, "seed": seed, "test": test, "validation": test}
        for seed, test in enumerate(tests)
    }


def judged(done: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """By the goal, what was measured and whether it is met."""
    _, _, *rows = [line for line in goals(done).splitlines() if line.startswith("|")]
    return {row.split("|")[1].strip(): (row.split("|")[3].strip(), row.split("|")[4].strip()) for row in rows}


def test_a_goal_is_met_missed_or_not_measured() -> None:
    done = lines("methods", "fp", None, [81.0, 82.0]) | lines("methods", "lsq", 4, [80.0, 81.5])
    done |= lines("rates", "lr 0.05", 4, [81.0, 83.0]) | lines("methods", "lsq", 2, [79.5, 80.5])
    done |= (
        lines("peers", "lsq", 2, [80.0]) | lines("peers", "torch", 2, [80.1]) | lines("peers", "torch@0.05", 2, [79])
    )
    found = judged(done)
    best = "the best row at or above full precision trained as long"
    assert found[f"ResNet-8, W4A4, 6 epochs: {best}"] == (
        "+0.50 ± 0.50, none",
        "yes",
    )  # lr 0.05, by validation accuracy
    assert found[f"ResNet-8, W3A3, 6 epochs: {best}"] == ("-", "not measured")
    below = "ResNet-8, W2A2, 6 epochs: the best row at most 1.0 below full precision trained as long"
    assert found[below] == ("-1.50 ± 0.00", "missed by 0.50")
    assert found["ResNet-8, W2A2: at or above torch, each at the learning rate that suits it"] == (
        "-0.10 (one seed)",
        "missed by 0.10",
    )
    assert found["no seed of a default recipe diverges"] == ("0 of 5 runs", "yes")


def test_one_seed_is_not_the_best_where_a_row_has_three() -> None:
    done = lines("methods", "fp", None, [80.0] * 3) | lines("methods", "lsq", 2, [79.5] * 3)
    done |= lines("rates", "lr 0.05", 2, [85.0])
    (below,) = [measured for goal, measured in judged(done).items() if "W2A2, 6 epochs: the best row at most" in goal]
    assert below == ("-0.50 ± 0.00", "yes")


def test_a_row_that_several_tables_have_is_named_by_the_first() -> None:
    done = lines("augmentation", "fp", None, [80.0]) | lines("augmentation", "padded by 4", 2, [79.5])
    done |= lines("methods", "fp", None, [80.0]) | lines("methods", "least-squares", 2, [79.5])
    assert "| least-squares (table methods) − fp (table methods)" in goals(done)


def test_a_run_that_diverged_counts() -> None:
    found = judged(lines("methods", "lsq", 4, [80.0, None]))
    assert found["no seed of a default recipe diverges"] == ("1 of 2 runs", "missed by 1")


def test_the_goal_of_offsets_reads_results_as_they_are_recorded() -> None:
    network = signed.TABLE.cells[0][1].label
    done = lines("signed", "lsq+", 2, [60.0, 61.0], network) | lines(
        "signed", "lsq, unsigned", 2, [58.0, 58.5], network
    )
    (offset,) = [found for goal, found in judged(done).items() if "LSQ+ at least 1.5" in goal]
    assert offset == ("+2.25 ± 0.25", "yes")
