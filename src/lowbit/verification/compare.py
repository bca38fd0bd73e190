"""The integer reference beside an exported file (and the trained model), layer by layer, on the same data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lowbit.batches import parts_of
from lowbit.errors import LowbitError
from lowbit.formats import open_file
from lowbit.integer.graph import Graph, TensorType
from lowbit.integer.network import IntegerNetwork, dequantized
from lowbit.integer.result import Prove, Result, Runner
from lowbit.integer.run import checked_inputs
from lowbit.verification.report import Report, Row

_ELEMENTS_OF_A_BLOCK = 1 << 17  # of a tensor that is compared: it fits a cache
_ELEMENTS_AT_ONCE = 1 << 28
"""Of all tensors of the samples that are run together: each is there several times, in up to four bytes."""


def compare(
    network: IntegerNetwork,
    file: str | os.PathLike | Runner,
    batches: Iterable[Any],
    *,
    trained: Runner | None = None,
    fixed: bool = False,
    proof: Prove | None = None,
) -> Report:
    """Run the integer reference in the file's rounding, the file and the trained model on the same batches.

    A runner's attribute `rounding` names its rounding; it is "float" where there is none. Its attribute `graph`, where
    there is one, is what the file computes: the network's graph, or that with codes for outputs that are floats.

    Args:
        network: the reference.
        file: the path of a file that one of `formats.FORMATS` wrote, run in its own runtime on the CPU; or a runner.
        batches: as `inputs_and_labels` takes them; the top-1 is counted where there are labels.
        trained: the trained model. Tensors it leaves out are not compared.
        fixed: also run the reference with the other rounding ("fixed", for a file in "fixed" "float"), for its top-1.
        proof: compares every node of the reference with the trained network's own operations; of the network that
            `trained` is.

    Raises:
        LowbitError: the file is not one of this network, its runtime is not installed, or there is no batch.
    """
    runner = file if callable(file) else open_file(file, network.graph)
    graph = getattr(runner, "graph", network.graph)
    network = network if graph is network.graph else IntegerNetwork(graph)
    rows = {node.name: Row(node.name, not isinstance(node.type, TensorType)) for node in graph.nodes}
    samples, top1 = 0, None
    rounding = getattr(runner, "rounding", "float")
    other = "fixed" if rounding == "float" else "float"
    agree = {"file": 0} | ({"trained": 0} if trained else {}) | ({other: 0} if fixed else {})
    for x, labels in _parts(batches, graph):
        codes = network.codes(x, rounding)
        reference = Result(codes, dequantized(graph, codes))
        others = {"file": runner(x)} | ({"trained": trained(x)} if trained else {})
        for name, row in rows.items():
            row.compared += codes[name].numel()
            for column, found in others.items():
                _count(row, column, codes[name], (found.outputs if row.is_float else found.codes).get(name))
            if name in graph.outputs and not row.is_float and name not in others["file"].codes:
                _count(
                    row, "file", reference.outputs[name], others["file"].outputs.get(name)
                )  # shown, but not as codes
        trained_codes = others["trained"].codes if trained else None
        local_differ: Counter[str] = Counter()
        for name, mismatch in (proof(x, trained_codes, local_differ=local_differ) if proof else {}).items():
            rows[name].conversion_differ = (rows[name].conversion_differ or 0) + mismatch.count
        for name, count in local_differ.items():
            rows[name].local_differ = (rows[name].local_differ or 0) + count
        outputs = {"reference": reference.outputs} | {column: found.outputs for column, found in others.items()}
        if fixed:
            outputs[other] = network.outputs(x, other)
        count = len(next(iter(x.values())))
        samples += count
        main = graph.outputs[0]  # classes are told by the first output
        classes = {column: found[main].flatten(1).argmax(1) for column, found in outputs.items() if main in found}
        for column in agree:
            if column in classes:
                agree[column] += int((classes[column] == classes["reference"]).sum())
        if labels is not None:
            top1 = top1 or dict.fromkeys(classes, 0)
            for column, chosen in classes.items():
                top1[column] += int((chosen == labels).sum())
    if samples == 0:
        raise LowbitError("there is no data to compare on: give at least one batch")
    return Report(list(rows.values()), samples, top1, agree, proved=proof is not None)


def compare_with_trained(
    graph: Graph, file: str | os.PathLike | Runner, batches: Iterable[Any], trained: Runner
) -> Report:
    """Run a file and the trained model that it was written from on the same batches.

    This is for fractional zero points, which no integers compute. Codes may differ where float32 sums in another order
    fall on the other side of a tie. Arguments and errors as `compare`.
    """
    runner = file if callable(file) else open_file(file, graph)
    rows: dict[str, Row] = {}
    samples = agree = 0
    for x, _ in _parts(batches, graph):
        expected, found = trained(x), runner(x)
        for node in graph.nodes:
            if isinstance(node.type, TensorType) and node.name in expected.codes:
                row = rows.setdefault(node.name, Row(node.name))
                row.compared += expected.codes[node.name].numel()
                _count(row, "file", expected.codes[node.name], found.codes.get(node.name))
        samples += len(next(iter(x.values())))
        classes = [each.outputs[graph.outputs[0]].flatten(1).argmax(1) for each in (expected, found)]
        agree += int((classes[0] == classes[1]).sum())
    if samples == 0:
        raise LowbitError("there is no data to compare on: give at least one batch")
    return Report(list(rows.values()), samples, None, {"file": agree}, "the trained network")


def _parts(batches: Iterable[Any], graph: Graph) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
    """(inputs by name, labels) of as many samples at once as memory holds every tensor of."""
    most = max(1, _ELEMENTS_AT_ONCE // graph.elements())
    for batch in batches:
        given, labels = inputs_and_labels(batch, list(graph.inputs))
        inputs = checked_inputs(graph, given)
        for start in range(0, len(next(iter(inputs.values()))), most):
            part = slice(start, start + most)
            yield {name: x[part] for name, x in inputs.items()}, None if labels is None else labels[part]


def inputs_and_labels(batch: Any, names: Sequence[str]) -> tuple[Tensor | Mapping[str, Tensor], Tensor | None]:
    """The inputs and the labels of a batch; labels are None where there are none.

    Args:
        batch: inputs (batch, …), alone or in a list, or with class numbers (batch,) behind them. The inputs are one
            tensor, several in a tuple, or tensors by name. See `lowbit.batches.parts_of`.
        names: of the network's inputs.

    Raises:
        LowbitError: anything else.
    """
    x, behind = parts_of(batch, names)
    labels, *rest = behind or [None]
    inputs = x if isinstance(x, Mapping) else {"": x}
    tensors = [each for each in inputs.values() if isinstance(each, Tensor)]
    if rest or not tensors or len(tensors) < len(inputs) or not isinstance(labels, Tensor | None):
        kinds = f" of {', '.join(type(part).__name__ for part in batch)}" if isinstance(batch, tuple | list) else ""
        raise LowbitError(
            "a batch must be a tensor of inputs or a pair of tensors, inputs and labels (or a tuple of all inputs, "
            f"where there are several), not a {type(batch).__name__}{kinds}"
        )
    count = len(tensors[0])
    if labels is not None and labels.shape != (count,):
        raise LowbitError(
            f"labels must be class numbers, one per input: {count}, but they have shape {tuple(labels.shape)}; leave "
            "them out to compare codes alone"
        )
    detached = dict(zip(inputs, (each.detach() for each in tensors)))
    return detached if isinstance(x, Mapping) else detached[""], labels


def _count(row: Row, column: str, codes: Tensor, found: Tensor | None) -> None:
    """Add one batch of one tensor to the row's counts; NaN differs from everything."""
    if found is None:
        return
    if found.shape != codes.shape:
        raise LowbitError(f"{row.name}: the {column}'s tensor has shape {tuple(found.shape)}, not {tuple(codes.shape)}")
    floats = codes.is_floating_point() or found.is_floating_point()
    exact = torch.float64 if floats else torch.int32
    differ, largest = 0, 0.0
    for a, b in zip(*(x.reshape(-1).split(_ELEMENTS_OF_A_BLOCK) for x in (codes, found)), strict=True):
        apart = int((a != b).sum())
        if apart:
            gap = (a.to(exact) - b.to(exact)).abs_().max()  # NaN where there is one
            largest = max(largest, float(gap.nan_to_num(nan=float("inf"))) if floats else int(gap))
            differ += apart
    so_far = getattr(row, f"{column}_differ") or 0, getattr(row, f"{column}_largest") or 0.0
    setattr(row, f"{column}_differ", so_far[0] + differ)
    setattr(row, f"{column}_largest", max(so_far[1], largest))
