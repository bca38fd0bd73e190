"""The integer reference beside an exported file (and the trained model), layer by layer, on the same data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.ir import Graph, TensorType
from lowbit.integer.network import IntegerNetwork, dequantize
from lowbit.integer.runners import open_file

Codes = Mapping[str, Tensor]


@dataclass
class Row:
    """One tensor of the network: the file's (`file_…`) and the trained model's (`trained_…`) codes against the reference's.

    compared: codes of the reference, over all batches. differ: how many differ. largest: the largest difference, in codes (in
    real units for a float output). Both are None where there was nothing to compare with: no trained model, or a tensor that
    the file does not show (an ExecuTorch file shows its output alone).
    is_float: the tensor is the network's float output, not codes.
    """

    name: str
    is_float: bool = False
    compared: int = 0
    file_differ: int | None = None
    file_largest: float | None = None
    trained_differ: int | None = None
    trained_largest: float | None = None


@dataclass
class Report:
    """What `compare` found.

    rows: one per tensor, in the network's order; the last is the output. samples: images seen.
    top1: per column ("reference", "file", "trained", "fixed") the images classified right, None without labels.
    agree: per column other than the reference, on how many images the largest output is the reference's.
    reference: what the others are compared with.
    """

    rows: list[Row]
    samples: int
    top1: dict[str, int] | None
    agree: dict[str, int]
    reference: str = "the integer reference"

    @property
    def ok(self) -> bool:
        """Whether the file computes exactly what the reference does: no tensor that it shows differs anywhere."""
        return self.compared > 0 and self.differ == 0

    @property
    def compared(self) -> int:
        """How many codes of the file were compared."""
        return sum(row.compared for row in self.rows if row.file_differ is not None)

    @property
    def differ(self) -> int:
        """How many of them differ from the reference's."""
        return sum(row.file_differ or 0 for row in self.rows)

    @property
    def parts_at(self) -> str | None:
        """The first layer at which the file parts from the reference."""
        return next((row.name for row in self.rows if row.file_differ), None)

    @property
    def trained_parts_at(self) -> str | None:
        """The first layer at which the trained model parts from the reference."""
        return next((row.name for row in self.rows if row.trained_differ and not row.is_float), None)

    def text(self) -> str:
        """The table and what follows from it, for a terminal."""
        trained = any(row.trained_differ is not None for row in self.rows)
        head = ["layer", "codes", "file differs", "largest"] + (["trained differs", "largest"] if trained else [])
        lines = [head]
        for row in self.rows:
            cells = [row.name, f"{row.compared:,}"]
            cells += ["-", "-"] if row.file_differ is None else [f"{row.file_differ:,}", f"{row.file_largest:g}"]
            if trained and row.trained_differ is not None:
                cells += [f"{row.trained_differ:,}", f"{row.trained_largest:g}"]
            lines.append(cells + [""] * (len(head) - len(cells)))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        out = [
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
            for line in lines
        ]
        out.append(f"file: {self.differ:,} of {self.compared:,} codes differ from {self.reference}")
        hidden = sum(row.file_differ is None for row in self.rows)
        if hidden:
            out.append(f"file: does not show {hidden} of {len(self.rows)} tensors; they were not compared")
        if self.parts_at is not None:
            out.append(f"file: first differs at {self.parts_at}")
        if trained:
            # A float output differs in its last digits wherever summation order does: not a matter of codes.
            rows = [row for row in self.rows if row.trained_differ is not None and not row.is_float]
            compared, differ = sum(row.compared for row in rows), sum(row.trained_differ for row in rows)
            out.append(f"trained: {differ:,} of {compared:,} codes differ from the integer reference")
            if self.trained_parts_at is not None:
                out.append(f"trained: first differs at {self.trained_parts_at}")
        for column, count in self.agree.items():
            out.append(f"{column}: same top-1 as the reference on {count:,} of {self.samples:,}")
        for column, count in (self.top1 or {}).items():
            out.append(f"{column}: top-1 {100 * count / max(self.samples, 1):.2f} %")
        return "\n".join(out)


def compare(
    network: IntegerNetwork,
    path: str | os.PathLike,
    batches: Iterable[Any],
    *,
    trained: Callable[[Tensor], Codes] | None = None,
    fixed: bool = False,
    optimize: bool = True,
) -> Report:
    """Run the integer reference ("float" requantization), the file and the trained model on the same batches.

    path: an ONNX, LiteRT or ExecuTorch file that `formats` wrote, run in its own runtime on the CPU (`runners`).
    batches: as `inputs_and_labels` takes them; the top-1 is counted where there are labels.
    trained: the trained model as a function from an input to its codes by tensor name (any integer or float type holding whole
        numbers), with its float output under "". Tensors it leaves out are not compared.
    fixed: also run the reference with "fixed" requantization, for its top-1.
    optimize: ONNX Runtime's graph optimizations.

    Raises LowbitError where the file is not one of this network, its runtime is not installed, or there is no batch.
    """
    graph = network.graph
    runner = open_file(path, graph, optimize=optimize)
    rows = {node.name: Row(node.name, not isinstance(node.type, TensorType)) for node in graph.nodes}
    samples, top1 = 0, None
    agree = {"file": 0} | ({"trained": 0} if trained else {}) | ({"fixed": 0} if fixed else {})
    for batch in batches:
        x, labels = inputs_and_labels(batch)
        reference = network.codes(x)
        others = {"file": runner(x)} | ({"trained": trained(x)} if trained else {})
        outputs = {"reference": dequantize(reference[graph.output], graph.by_name[graph.output].type)}
        for name, row in rows.items():
            codes = reference[name]
            row.compared += codes.numel()
            for column, found in others.items():
                _count(row, column, codes, found.get("" if row.is_float else name))
            if name == graph.output and not row.is_float and name not in others["file"]:
                _count(row, "file", outputs["reference"], others["file"].get(""))  # shown, but not as codes
        for column, found in others.items():
            if "" in found:
                outputs[column] = found[""]
        if fixed:
            outputs["fixed"] = network(x, "fixed")
        samples += len(x)
        classes = {column: output.flatten(1).argmax(1) for column, output in outputs.items()}
        for column in agree:
            if column in classes:
                agree[column] += int((classes[column] == classes["reference"]).sum())
        if labels is not None:
            top1 = top1 or dict.fromkeys(classes, 0)
            for column, chosen in classes.items():
                top1[column] += int((chosen == labels).sum())
    if samples == 0:
        raise LowbitError("there is no data to compare on: give at least one batch")
    return Report(list(rows.values()), samples, top1, agree)


def compare_with_trained(
    graph: Graph, path: str | os.PathLike, batches: Iterable[Any], trained: Callable[[Tensor], Codes]
) -> Report:
    """Run a QONNX file and the trained model that it was written from on the same batches: for fractional zero points, which no
    integers compute. Codes may part where float32 sums in another order fall on the other side of a tie.

    Arguments and errors as `compare`.
    """
    runner = open_file(path, graph)
    rows: dict[str, Row] = {}
    samples = agree = 0
    for batch in batches:
        x, _ = inputs_and_labels(batch)
        expected, found = trained(x), runner(x)
        for node in graph.nodes:
            if isinstance(node.type, TensorType) and node.name in expected:
                row = rows.setdefault(node.name, Row(node.name))
                row.compared += expected[node.name].numel()
                _count(row, "file", expected[node.name], found.get(node.name))
        samples += len(x)
        agree += int((expected[""].flatten(1).argmax(1) == found[""].flatten(1).argmax(1)).sum())
    if samples == 0:
        raise LowbitError("there is no data to compare on: give at least one batch")
    return Report(list(rows.values()), samples, None, {"file": agree}, "the trained network")


def inputs_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """The parts of a batch: inputs (batch, …) alone or in a list of one, or with class numbers (batch,) behind them.

    Raises LowbitError for anything else.
    """
    parts = [*batch, None][:2] if isinstance(batch, tuple | list) else [batch, None]
    x, labels = parts if len(parts) == 2 else (None, None)
    if not isinstance(x, Tensor) or not isinstance(labels, Tensor | None):
        kinds = f" of {', '.join(type(part).__name__ for part in batch)}" if isinstance(batch, tuple | list) else ""
        raise LowbitError(
            f"a batch must be a tensor of inputs or a pair of tensors, inputs and labels, not a {type(batch).__name__}{kinds}"
        )
    if labels is not None and labels.shape != x.shape[:1]:
        raise LowbitError(
            f"labels must be class numbers, one per input: {len(x)}, but they have shape {tuple(labels.shape)}; leave them out "
            "to compare codes alone"
        )
    return x.detach(), labels


def _count(row: Row, column: str, codes: Tensor, found: Tensor | None) -> None:
    """Add one batch of one tensor to the row's counts; NaN differs from everything."""
    if found is None:
        return
    if found.shape != codes.shape:
        raise LowbitError(f"{row.name}: the {column}'s tensor has shape {tuple(found.shape)}, not {tuple(codes.shape)}")
    exact = torch.float64 if codes.is_floating_point() or found.is_floating_point() else torch.int16
    a, b = codes.to(exact), found.to(exact)
    differ, largest = int((a != b).sum()), 0.0
    if differ:
        largest = (
            float((a - b).abs().nan_to_num(nan=float("inf")).max())
            if exact is torch.float64
            else int((a - b).abs().max())
        )
    so_far = getattr(row, f"{column}_differ") or 0, getattr(row, f"{column}_largest") or 0.0
    setattr(row, f"{column}_differ", so_far[0] + differ)
    setattr(row, f"{column}_largest", max(so_far[1], largest))
