"""The integer reference beside an exported ONNX file (and the trained model), layer by layer, on the same data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.ir import Graph, TensorType
from lowbit.integer.network import IntegerNetwork, dequantize

Codes = Mapping[str, Tensor]


@dataclass
class Row:
    """One tensor of the network: the file's (`file_…`) and the trained model's (`trained_…`) codes against the reference's.

    compared: codes of the reference that were compared, over all batches. differ: how many differ. largest: the largest
    difference, in codes (in real units for a float output). The trained columns are None where nothing was given.
    is_float: the tensor is the network's float output, not codes.
    """

    name: str
    is_float: bool = False
    compared: int = 0
    file_differ: int = 0
    file_largest: float = 0.0
    trained_differ: int | None = None
    trained_largest: float | None = None


@dataclass
class Report:
    """What `compare` found.

    rows: one per tensor, in the network's order; the last is the output. samples: images seen.
    top1: per column ("reference", "file", "trained", "fixed") the images classified right, None without labels.
    agree: per column other than the reference, on how many images the largest output is the reference's.
    """

    rows: list[Row]
    samples: int
    top1: dict[str, int] | None
    agree: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether the file computes exactly what the reference does: no tensor differs anywhere."""
        return all(row.file_differ == 0 for row in self.rows)

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
            cells = [row.name, f"{row.compared:,}", f"{row.file_differ:,}", f"{row.file_largest:g}"]
            if trained and row.trained_differ is not None:
                cells += [f"{row.trained_differ:,}", f"{row.trained_largest:g}"]
            lines.append(cells + [""] * (len(head) - len(cells)))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        out = [
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
            for line in lines
        ]
        compared, differ = sum(row.compared for row in self.rows), sum(row.file_differ for row in self.rows)
        out.append(f"file: {differ:,} of {compared:,} codes differ from the integer reference")
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


class OnnxRunner:
    """An exported ONNX (or packed ONNX) file in ONNX Runtime on the CPU, with every code tensor readable by name.

    path: the file. graph: the network it was written from. optimize: ONNX Runtime's graph optimizations; without them it
    computes in floats. threads: 0 lets ONNX Runtime choose.

    Raises LowbitError where onnx or onnxruntime is not installed, or the file is not one of this network.
    """

    def __init__(self, path: str | os.PathLike, graph: Graph, *, optimize: bool = True, threads: int = 0) -> None:
        onnx, runtime = _libraries()
        self.graph, self.path = graph, Path(path)
        try:
            model = onnx.load(self.path)
        except Exception as error:  # protobuf and onnx raise many types for a file that is none of theirs
            raise LowbitError(f"{path}: cannot be read as ONNX: {error!s:.200}") from error
        made = {name for node in model.graph.node for name in node.output}
        self.names = [node.name for node in graph.nodes if isinstance(node.type, TensorType)]
        missing = [name for name in self.names if name not in made]
        if missing or len(model.graph.input) != 1 or len(model.graph.output) != 1:
            what = f"it has no tensor {missing[0]!r}" if missing else "it has not one input and one output"
            raise LowbitError(f"{path}: was not exported from this network: {what}; export it again")
        self.result = model.graph.output[0].name
        self.input = model.graph.input[0].name
        for name in self.names:
            if name != self.result:
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        if not optimize:
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exception types have no common base of their own
            raise LowbitError(f"{path}: ONNX Runtime cannot load it: {error!s:.300}") from error

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Every code tensor as int16 codes of the graph's grids, and under "" the float32 result."""
        try:
            values = self.session.run([self.result, *self.names], {self.input: x.numpy()})
        except Exception as error:
            raise LowbitError(f"{self.path}: ONNX Runtime cannot run it: {error!s:.300}") from error
        found = {"": torch.from_numpy(values[0])}
        for name, value in zip(self.names, values[1:]):
            found[name] = torch.from_numpy(value).to(torch.int16) - self.graph.by_name[name].type.carrier_offset
        return found


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise LowbitError(
            f"an exported file is checked with onnx and onnxruntime, and {error.name} is not installed: "
            "pip install 'lowbit[export]'"
        ) from error
    return onnx, onnxruntime


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

    path: a file of `formats.onnx` or `formats.onnx_packed`, run in ONNX Runtime on the CPU.
    batches: float32 inputs (batch, …), or pairs (input, labels (batch,)); the top-1 is counted where there are labels.
    trained: the trained model as a function from an input to its codes by tensor name (any integer or float type holding whole
        numbers), with its float output under "". Tensors it leaves out are not compared.
    fixed: also run the reference with "fixed" requantization, for its top-1.
    optimize: ONNX Runtime's graph optimizations.

    Raises LowbitError where the file is not one of this network or there is no batch.
    """
    graph = network.graph
    runner = OnnxRunner(path, graph, optimize=optimize)
    rows = {node.name: Row(node.name, not isinstance(node.type, TensorType)) for node in graph.nodes}
    samples, top1 = 0, None
    agree = {"file": 0} | ({"trained": 0} if trained else {}) | ({"fixed": 0} if fixed else {})
    for batch in batches:
        x, labels = (batch[0], batch[1]) if isinstance(batch, tuple | list) else (batch, None)
        reference = network.codes(x)
        others = {"file": runner(x)} | ({"trained": trained(x)} if trained else {})
        outputs = {"reference": dequantize(reference[graph.output], graph.by_name[graph.output].type)}
        for name, row in rows.items():
            codes = reference[name]
            row.compared += codes.numel()
            for column, found in others.items():
                float_output = not isinstance(graph.by_name[name].type, TensorType)
                _count(row, column, codes, found.get("" if float_output else name))
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
    if column == "file":
        row.file_differ += differ
        row.file_largest = max(row.file_largest, largest)
    else:
        row.trained_differ = (row.trained_differ or 0) + differ
        row.trained_largest = max(row.trained_largest or 0.0, largest)
