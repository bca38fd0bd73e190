"""The report of a run, of several side by side, or of a diagnosis alone: one self-contained HTML page.

Reads files only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from lowbit.errors import LowbitError
from lowbit.files import atomic_write
from lowbit.report import figures, sections
from lowbit.report.html import figure, page
from lowbit.report.run import Run, read_run
from lowbit.report.subject import DIAGNOSIS, Subject, read_diagnosis


def write_report(runs: Sequence[str | os.PathLike], path: str | os.PathLike) -> Path:
    """Write the page of one or several run folders; of each its `diagnosis.json` is shown where it has one.

    Raises:
        LowbitError: a folder holds no run or a run without any log, a damaged file, or a place that can't be written.
    """
    subjects = []
    for folder in runs:
        run = read_run(folder)
        check_logged(run)
        subjects.append(Subject(run.path.resolve().name, run, read_diagnosis(run.path / DIAGNOSIS)))
    names = [each.name for each in subjects]
    if len(set(names)) < len(names):  # folders of one name in different places
        subjects = [Subject(str(folder), each.run, each.diagnosis) for folder, each in zip(runs, subjects)]
    path = Path(path)
    title = subjects[0].name if len(subjects) == 1 else f"{len(subjects)} runs"
    body = _of_one(subjects[0], path.parent) if len(subjects) == 1 else _of_several(subjects, path.parent)
    with atomic_write(path) as temporary:
        temporary.write_text(page(f"{title}: lowbit report", body), encoding="utf-8")
    return path


def check_logged(run: Run) -> None:
    """Refuse a run of which there is nothing to report.

    Raises:
        LowbitError: its log has no finished epoch.
    """
    if not run.epochs:
        raise LowbitError(
            f"{run.path}: the run's log (metrics.jsonl) has no finished epoch, so that there is nothing to report; "
            "train it "
            f"on with `lowbit train --resume --output {run.path}`"
        )


def page_of_diagnosis(title: str, diagnosis: dict[str, Any]) -> str:
    """The page of a diagnosis alone."""
    return page(title, _of_one(Subject(title, None, diagnosis), None))


def _of_one(subject: Subject, base: Path | None) -> str:
    return (
        f"<h1>{escape(subject.name)}</h1>{sections.about(subject)}{sections.summary(subject)}{_sections(subject, base)}"
    )


def _of_several(subjects: Sequence[Subject], base: Path) -> str:
    parts = [f"<h1>{len(subjects)} runs side by side</h1>", sections.side_by_side(subjects)]
    plots = [
        figure(
            figures.curves(subjects, "accuracy"),
            "Accuracy",
            "over epochs, on the images that checkpoints are chosen by",
        ),
        figure(figures.curves(subjects, "loss"), "Loss", "over epochs, on the same images"),
        figure(
            figures.depth(subjects),
            "Error along the network",
            "of each layer's output with all quantizers on",
            wide=True,
        ),
    ]
    parts.append(f'<h2>Beside one another</h2><div class="plots">{"".join(plots)}</div>')
    for subject in subjects:
        parts.append(
            f"<details><summary><h2>{escape(subject.name)}</h2></summary>{sections.about(subject)}{sections.summary(subject)}"
            f"{_sections(subject, base)}</details>"
        )
    return "".join(parts)


def _sections(subject: Subject, base: Path | None) -> str:
    parts = []
    diagnosis = subject.diagnosis
    if diagnosis is not None:
        parts.append(f"<h2>Findings</h2>{sections.findings(diagnosis)}")
    parts.append(figures.plots(subject))
    if diagnosis is not None:
        parts.append(f"<h2>Layers</h2>{sections.layers(diagnosis)}")
    if subject.run is not None and subject.run.looks:
        parts.append(f"<h2>Over training</h2>{sections.training(subject.run)}")
    if diagnosis is not None:
        if diagnosis["norms"]:
            parts.append(f"<h2>Batch-norm</h2>{sections.norms(diagnosis)}")
        parts.append(f"<h2>Values and codes</h2>{figures.histograms(diagnosis)}")
    if subject.run is not None and base is not None:
        parts.append(f"<h2>Files</h2>{sections.files(subject.run, base)}")
    return "".join(parts)
