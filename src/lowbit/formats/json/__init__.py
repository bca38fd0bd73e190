"""The whole network as text.

One JSON file with every operation, type and number, to be read by people, scripts and `diff`.

    {"lowbit": VERSION, "sha256": …, "graph": …, "tensors": {"conv1:weight": {"shape": […], "values": […]}, …}}

"graph" is `integer.described`'s; "values" are whole numbers (weight and table codes counted from the lowest code of
their grid, biases as they are) or float32 numbers (scales), flat and row-major. The file is read back into a graph,
which the integer reference runs: what the text says is what is proved.

"sha256" is that of version, graph and tensors as JSON without spaces: a damaged file is refused. The line may be left
out: whoever changes a number by hand deletes it.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.files import atomic_write, check_readable
from lowbit.formats.lowbit import covers_everything, reference_runner
from lowbit.formats.registry import Format
from lowbit.integer import described
from lowbit.integer.graph import Graph
from lowbit.integer.result import Runner


class _Listed(described.Tensors):
    """Tensors as lists of numbers."""

    def put(self, name: str, value: Tensor) -> None:
        self.by_name[name] = {"shape": list(value.shape), "values": value.flatten().tolist()}

    def put_codes(self, name: str, codes: Tensor, bits: int) -> None:
        self.put(name, codes)

    def _take(self, name: str, dtype: torch.dtype, shape: tuple[int, ...] | None, count: int) -> Tensor:
        entry = described.mapping(self.by_name.pop(name, None), f"tensor {name!r}", {"shape", "values"})
        values, floats = entry["values"], dtype == torch.float32
        if shape is not None and entry["shape"] != list(shape):
            raise LowbitError(f"tensor {name!r} must have shape {shape}, not {entry['shape']!r:.60}")
        if not isinstance(values, list) or len(values) != count:
            raise LowbitError(f"tensor {name!r} must have {count} values")
        for value in values:
            if type(value) is not (float if floats else int) or not abs(value) < (math.inf if floats else 2**31):
                raise LowbitError(f"tensor {name!r}: {value!r:.40} is not one of its values")
        tensor = torch.tensor(values, dtype=dtype, device="cpu")
        return tensor if shape is None else tensor.reshape(shape)

    def take(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        return self._take(name, dtype, shape, math.prod(shape))

    def take_codes(self, name: str, bits: int, count: int) -> Tensor:
        codes = self._take(name, torch.int32, None, count)
        if int(codes.min()) < 0 or int(codes.max()) >= 1 << bits:
            raise LowbitError(f"tensor {name!r}: its codes do not fit {bits} bits")
        return codes


def write(graph: Graph, path: Path) -> None:
    """Write a validated graph to `path`, a line per node and per tensor."""
    tensors = _Listed()
    version, graph_as_data = described.describe(graph, tensors)
    list_of_nodes = graph_as_data.pop("nodes")
    nodes = ",\n ".join(map(json.dumps, list_of_nodes))
    lines = ",\n ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(tensors.by_name.items()))
    around = json.dumps(graph_as_data)[:-1]
    digest = _checksum(version, graph_as_data | {"nodes": list_of_nodes}, tensors.by_name)
    head = f'{{"lowbit": {version},\n"sha256": "{digest}",\n'
    text = f'{head}"graph": {around}, "nodes": [\n {nodes}]}},\n"tensors": {{\n {lines}}}}}\n'
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load(path: Path) -> Graph:
    """The validated graph in a file that `write` wrote. Raises LowbitError for anything else."""
    check_readable(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LowbitError(f"{path}: cannot be read as JSON: {error!s:.200}") from error
    try:
        digest = content.pop("sha256", None) if isinstance(content, dict) else None
        content = described.mapping(content, "the file", {"lowbit", "graph", "tensors"})
        if not isinstance(content["tensors"], dict):
            raise LowbitError("the tensors are no object")
        if digest not in (None, _checksum(content["lowbit"], content["graph"], content["tensors"])):
            raise LowbitError(
                "the checksum does not fit: the file was damaged, or changed without deleting its sha256 line"
            )
        return described.read(
            described.checked_version(content["lowbit"]), content["graph"], _Listed(content["tensors"])
        )
    except (LowbitError, RecursionError) as error:
        raise LowbitError(f"{path}: {error}") from error


def _checksum(version: Any, graph: Any, tensors: dict[str, Any]) -> str:
    text = json.dumps([version, graph, tensors], separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _open(path: Path, graph: Graph) -> Runner:
    return reference_runner(path, load(path), graph)


def _recognizes(content: Any) -> bool:
    return content[:9] == b'{"lowbit"'


FORMAT = Format("json", ".json", "export", write, _open, _recognizes, covers_everything, bits_max=16)
