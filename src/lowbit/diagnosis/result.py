"""What a diagnosis holds, and its forms: table, JSON, page."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lowbit.diagnosis.findings import Accuracy, Finding
from lowbit.diagnosis.records import LayerRecord, NormRecord, TensorRecord
from lowbit.files import atomic_write
from lowbit.report.table import render

__all__ = ["Accuracy", "Diagnosis", "Finding"]


@dataclass(frozen=True)
class Diagnosis:
    """What `lowbit.diagnose` found.

    Attributes:
        samples: how many were looked at.
        against: what `accumulated` and `output_sqnr` compare with, in words.
        accuracy: top-1 on the samples with labels; None without.
        output_sqnr: signal-to-noise ratio of the network's output, in dB.
        tensors, layers, norms: the measurements.
        findings: what is wrong, most serious first; empty where nothing was found.
    """

    samples: int
    against: str
    accuracy: Accuracy | None
    output_sqnr: float | None
    tensors: tuple[TensorRecord, ...] = field(repr=False)
    layers: tuple[LayerRecord, ...] = field(repr=False)
    norms: tuple[NormRecord, ...] = field(repr=False)
    findings: tuple[Finding, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A row per layer and per tensor between layers: bits, ratios in dB, clipped shares in percent, codes used."""
        found: dict[str, str] = {}
        for each in self.findings:
            found.setdefault(each.layer, str(each.kind))
        by_layer: dict[str, dict[bool, TensorRecord]] = {}
        for tensor in self.tensors:
            by_layer.setdefault(tensor.layer, {}).setdefault(tensor.is_weight, tensor)
        rows = []
        for layer in self.layers:
            sides = by_layer.get(layer.name, {})
            weight, activation = sides.get(True), sides.get(False)
            row: dict[str, Any] = {"layer": layer.name, "bits": _bits(layer)}
            for name, each in (("weight", weight), ("input", activation)):
                row |= {
                    f"{name}_dB": None if each is None else each.sqnr,
                    f"{name}_clipped_%": None if each is None else 100 * each.clipped,
                    f"{name}_codes": None if each is None else f"{each.used_codes}/{each.codes}",
                }
            row |= {"alone_dB": layer.alone, "accumulated_dB": layer.accumulated, "finding": found.get(layer.name)}
            rows.append(row)
        return rows

    def table(self) -> str:
        """Findings, and `rows`, for a terminal."""
        lines = [each.text() for each in self.findings] or ["nothing found"]
        return "\n".join(lines) + "\n\n" + render(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `to_json` writes it; numbers that are not finite are None."""
        return _plain(asdict(self))

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def to_html(self, path: str | os.PathLike, title: str = "lowbit diagnosis") -> Path:
        """Write one self-contained page: findings, layers, plots. It needs no network.

        Raises:
            LowbitError: the file can't be written.
        """
        from lowbit.report.page import page_of_diagnosis

        path = Path(path)
        with atomic_write(path) as temporary:
            temporary.write_text(page_of_diagnosis(title, self.to_dict()), encoding="utf-8")
        return path


def _bits(layer: LayerRecord) -> str:
    return f"W{layer.weight_bits or '-'}A{layer.activation_bits or '-'}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
