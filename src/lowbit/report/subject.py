"""What a report is about: a run folder with its log and diagnosis, or a diagnosis alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.errors import LowbitError
from lowbit.files import read_json
from lowbit.report.run import Run, read_run
from lowbit.report.table import table as run_table

DIAGNOSIS, REPORT = "diagnosis.json", "report.html"
"""Names in a run folder."""


@dataclass(frozen=True)
class Subject:
    """What a part of the page is about: a run, a diagnosis (as `Diagnosis.to_dict` gives it), or both."""

    name: str
    run: Run | None
    diagnosis: dict[str, Any] | None

    @property
    def row(self) -> dict[str, Any]:
        """The run's line of `report.table`."""
        return {} if self.run is None else run_table([self.run])[0]


def read_diagnosis(path: Path) -> dict[str, Any] | None:
    """What `Diagnosis.to_json` wrote; None where there is no such file.

    Raises:
        LowbitError: it is no such file.
    """
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not {"tensors", "layers", "norms", "findings"} <= found.keys():
        raise LowbitError(f"{path}: is not a diagnosis; delete it and run `lowbit report {path.parent}` again")
    return found


def full_precision(subject: Subject) -> tuple[float, str] | None:
    """(accuracy in percent, of what) in full precision.

    Of the run that it started from, else as the diagnosis has measured it.
    """
    run, diagnosis = subject.run, subject.diagnosis
    init = None if run is None else (run.config.get("model") or {}).get("init")
    if run is not None and run.config.get("quantization") and init and (Path(init) / "config.json").is_file():
        found = run_table([read_run(init)])[0]["accuracy"]
        if found is not None:
            return found, "in full precision, the run it started from"
    accuracy = (diagnosis or {}).get("accuracy") or {}
    if accuracy.get("reference") is not None:
        return accuracy["reference"], f"in full precision, on {accuracy['samples']} images"
    return None
