"""The tables and lists of a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lowbit.report.html import Cell, card, number, prose, table
from lowbit.report.run import Run
from lowbit.report.subject import REPORT, Subject, full_precision

_FILES = ("*.json", "*.jsonl", "plots/*.png", "checkpoints/*.safetensors", "model*", "tensorboard")


def about(subject: Subject) -> str:
    """A line on what was trained."""
    run, row = subject.run, subject.row
    if run is None:
        return ""
    versions = ", ".join(f"{name} {run.versions[name]}" for name in ("lowbit", "torch") if name in run.versions)
    recipe = run.config.get("recipe")
    said = [
        row.get("model"),
        row.get("bits"),
        f"by {row.get('method')}" if row.get("method") != "-" else "full precision",
    ]
    said += [f"recipe {recipe}" if recipe else None, f"seed {row.get('seed')}", f"epochs {row.get('epochs')}", versions]
    return f'<p class="soft">{escape(", ".join(str(each) for each in said if each))}</p>'


def summary(subject: Subject) -> str:
    """The figures on top: accuracy against full precision, size, findings."""
    cards, diagnosis, row = [], subject.diagnosis, subject.row
    accuracy = (diagnosis or {}).get("accuracy")
    mine, full = row.get("accuracy"), full_precision(subject)
    if mine is not None:
        cards.append(card(f"{mine:.2f} %", "test accuracy"))
    elif accuracy:
        cards.append(card(f"{accuracy['quantized']:.2f} %", f"accuracy on {accuracy['samples']} images"))
    if full is not None:
        cards.append(card(f"{full[0]:.2f} %", full[1]))
        # Only what was measured on the same images is compared.
        of = mine if full[1].endswith("started from") else accuracy["quantized"] if accuracy else None
        if of is not None:
            where = "" if full[1].endswith("started from") else f" on {accuracy['samples']} images"  # pyrefly: ignore
            cards.append(card(f"{of - full[0]:+.2f}", f"points against full precision{where}"))
    if diagnosis is not None:
        bits = sum(layer["size_bits"] for layer in diagnosis["layers"])
        floats = 32 * sum(layer["parameters"] for layer in diagnosis["layers"])
        cards.append(
            card(
                _bytes(bits / 8), f"weights of quantized layers, {floats / max(bits, 1):.1f} times smaller than float32"
            )
        )
        if diagnosis.get("output_sqnr") is not None:
            cards.append(
                card(
                    f"{diagnosis['output_sqnr']:.1f} dB",
                    f"signal to noise at the output, against {diagnosis['against']}",
                )
            )
        found = len(diagnosis["findings"])
        cards.append(card(str(found) if found else "none", "finding" if found == 1 else "findings"))
    return f'<div class="cards">{"".join(cards)}</div>'


def findings(diagnosis: dict[str, Any]) -> str:
    """What is wrong, most serious first."""
    if not diagnosis["findings"]:
        return f'<p class="fine">Nothing found, on {diagnosis["samples"]} samples.</p>'
    items = []
    for each in diagnosis["findings"]:
        items.append(
            f'<li><span class="kind">{escape(each["kind"])}</span> at '
            f'<span class="where">{escape(each["layer"])}</span>: '
            f"{prose(each['sentence'])}<br>{prose(each['remedy'])}</li>"
        )
    return f'<ol class="findings">{"".join(items)}</ol>'


_LAYER_HEADS = (
    ("layer", "name of the layer, or of the tensor between layers"),
    ("bits", "of weights and activations"),
    ("bytes", "of the weight"),
    ("weight dB", "signal to quantization noise of the weight"),
    ("weight codes used", "percent of the grid's codes that occur"),
    ("weight clipped %", "values beyond the grid"),
    ("input dB", "signal to quantization noise of the input"),
    ("input codes used", "percent of the grid's codes that occur"),
    ("input clipped %", "values beyond the grid"),
    ("alone dB", "at the network's output, with this layer alone quantized"),
    ("accumulated dB", "at the layer's output, with all quantizers on"),
    ("finding", ""),
)


def layers(diagnosis: dict[str, Any]) -> str:
    """A row for each layer and each tensor between layers."""
    tensors: dict[tuple[str, bool], dict[str, Any]] = {}
    for tensor in diagnosis["tensors"]:
        tensors.setdefault((tensor["layer"], tensor["is_weight"]), tensor)
    kinds: dict[str, str] = {}
    for each in diagnosis["findings"]:
        kinds.setdefault(each["layer"], each["kind"])
    rows = []
    for layer in diagnosis["layers"]:
        bits = "/".join(str(layer[f"{side}_bits"] or "–") for side in ("weight", "activation"))
        row = [Cell(layer["name"], layer["name"]), Cell(bits, layer["weight_bits"] or layer["activation_bits"])]
        row.append(Cell(_bytes(layer["size_bits"] / 8), layer["size_bits"] / 8) if layer["size_bits"] else Cell("–"))
        for weight in (True, False):
            t = tensors.get((layer["name"], weight))
            if t is None:
                row += [Cell("–")] * 3
                continue
            clipped = 100 * (t["clipped_low"] + t["clipped_high"])
            row += [
                number(t["sqnr"]),
                number(100 * t["used_codes"] / t["codes"], "{:.0f} %"),
                number(clipped, "{:.2f}"),
            ]
        kind = kinds.get(layer["name"])
        row += [number(layer["alone"]), number(layer["accumulated"]), Cell(kind or "", kind, "flag" if kind else "")]
        rows.append(row)
    return table(_LAYER_HEADS, rows)


_TRAINING_HEADS = (
    ("quantizer", ""),
    ("step", "mean step at the last look"),
    ("step / start", "of the step that has moved most"),
    ("gradient", "‖∂L/∂s‖ / ‖s‖, median over training"),
    ("pace", "that over ‖∂L/∂w‖ / ‖w‖, median over training"),
    ("codes changed %", "share of weights whose code a step of the optimizer changes: the first look, the last"),
    ("oscillating %", "share of weights that jump back within a look, median of the second half"),
    ("error", "‖ŵ − w‖ / ‖w‖ at the last look"),
)


def training(run: Run) -> str:
    """A row for each quantizer, of what was logged during training."""
    found: dict[str, list[dict[str, float | None]]] = {}
    for look in run.looks:
        for name, numbers in look["quantizers"].items():
            found.setdefault(name, []).append(numbers)
    rows = []
    for name, looks in found.items():

        def median(key: str, looks: Sequence[dict[str, float | None]] = looks) -> float | None:
            values = sorted(value for each in looks if (value := each.get(key)) is not None)
            return values[len(values) // 2] if values else None

        last, second = looks[-1], looks[len(looks) // 2 :]
        first, end = looks[0].get("changed"), last.get("changed")
        changed = Cell("–") if first is None or end is None else Cell(f"{100 * first:.2f} → {100 * end:.2f}", 100 * end)
        oscillating = median("oscillating", second)
        rows.append(
            [
                Cell(name.removesuffix("_quantizer"), name),
                number(last.get("step"), "{:.4g}"),
                number(last.get("moved"), "{:.3f}"),
                number(median("gradient"), "{:.2g}"),
                number(median("pace"), "{:.2g}"),
                changed,
                number(None if oscillating is None else 100 * oscillating, "{:.2f}"),
                number(last.get("error"), "{:.3f}"),
            ]
        )
    return f'<p class="soft">{len(run.looks)} looks of a few steps each.</p>{table(_TRAINING_HEADS, rows)}'


def norms(diagnosis: dict[str, Any]) -> str:
    """A row for each batch-norm."""
    heads = (
        ("batch-norm", ""),
        ("channels", ""),
        ("mean is off by", "standard deviations of the batches, mean over channels"),
        ("deviation / the batches'", "geometric mean over channels"),
        ("drift", "divergence of stored statistics from those of the batches, with the quantizers"),
        ("drift without quantizers", ""),
    )
    rows = [
        [
            Cell(each["name"], each["name"]),
            number(each["channels"], "{}"),
            number(each["mean_shift"], "{:.3f}"),
            number(each["std_ratio"], "{:.3f}"),
            number(each["drift"], "{:.4f}"),
            number(each["float_drift"], "{:.4f}"),
        ]
        for each in diagnosis["norms"]
    ]
    return table(heads, rows)


def side_by_side(subjects: Sequence[Subject]) -> str:
    """A row for each run."""
    heads = (
        ("run", ""), ("model", ""), ("bits", ""), ("method", ""), ("accuracy %", "on the test images"),
        ("full precision %", ""), ("epochs", ""), ("seconds", "of all epochs"), ("weights", "of quantized layers"),
        ("output dB", "signal to noise at the output"), ("first finding", ""),
    )  # fmt: skip
    rows = []
    for subject in subjects:
        row, diagnosis, full = subject.row, subject.diagnosis, full_precision(subject)
        bits = None if diagnosis is None else sum(layer["size_bits"] for layer in diagnosis["layers"]) / 8
        first = "–" if diagnosis is None else "nothing found"
        if diagnosis is not None and diagnosis["findings"]:
            first = f"{diagnosis['findings'][0]['kind']} at {diagnosis['findings'][0]['layer']}"
        rows.append(
            [
                Cell(subject.name, subject.name),
                *(Cell(str(row[key]), str(row[key])) for key in ("model", "bits", "method")),
                number(row["accuracy"], "{:.2f}"),
                number(None if full is None else full[0], "{:.2f}"),
                Cell(row["epochs"], row["epochs"]),
                number(row["seconds"]),
                Cell("–") if bits is None else Cell(_bytes(bits), bits),
                number(None if diagnosis is None else diagnosis.get("output_sqnr")),
                Cell(first, first, "flag" if diagnosis and diagnosis["findings"] else ""),
            ]
        )
    return table(heads, rows)


def files(run: Run, base: Path) -> str:
    """Links to the files of a run, as seen from the folder of the page."""
    found = [path for pattern in _FILES for path in sorted(run.path.glob(pattern)) if not path.name.startswith(".")]
    items = []
    for path in dict.fromkeys(found):
        if path.name == REPORT:
            continue
        try:
            target = os.path.relpath(path.resolve(), base.resolve())
        except ValueError:  # on another drive
            target = path.resolve().as_posix()
        size = "" if path.is_dir() else f" <span class='soft'>{_bytes(path.stat().st_size)}</span>"
        items.append(
            f'<li><a href="{quote(Path(target).as_posix())}">{escape(path.relative_to(run.path).as_posix())}</a>'
            f"{size}</li>"
        )
    return f"<ul>{''.join(items)}</ul>"


def _bytes(count: float) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
