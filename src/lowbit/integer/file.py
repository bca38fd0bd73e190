"""The file of an integer network: one safetensors file, codes packed to their bits, the graph as JSON in the header.

Tensors, for a node called NAME:
    NAME:weight  uint8    weight codes minus the lowest code of their width (1-bit codes −1, +1 as 0, 1), packed
    NAME:scale   float32  weight scale, () or (out,)
    NAME:bias    int32    (out,), where there is one
    NAME:table   uint8    a Lookup's output codes minus the lowest one, packed at the output's bits
Packed: codes one after the other in row-major order, code i in bits i·b .. (i+1)·b − 1 of the file's bits, bit 0 being the least
significant one of the first byte; the unused bits of the last byte are 0.

Metadata, under the one key "lowbit": JSON with "format_version", "graph" (the fields of `ir`, in which a tensor is only
described by its shape and bits) and "sha256" of the graph's JSON and of every tensor. Loading checks all of it, sizes before
anything is allocated for them, and then the graph as `check.validate` does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.files import atomic_write
from lowbit.integer.check import validate
from lowbit.integer.ir import OPERATIONS, FloatType, Graph, Lookup, Node, TensorType, Weight

FORMAT_VERSION = 1
_RANK_MAX = 8  # dimensions of any tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Unsigned codes (any shape, values 0 .. 2^bits − 1) as a little-endian bit stream: uint8 of ceil(numel · bits / 8)."""
    flat = codes.flatten().to(torch.uint8)
    places = torch.arange(bits, dtype=torch.uint8)
    stream = ((flat[:, None] >> places) & 1).flatten()
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8)).reshape(-1, 8)
    return (stream << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes that `pack` packed, uint8 of shape (count,). The sizes must fit."""
    stream = ((packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[: count * bits]
    return (stream.reshape(count, bits) << torch.arange(bits, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


# ---------------------------------------------------------------- writing


def save(graph: Graph, path: str | os.PathLike) -> None:
    """Write a validated graph to `path`, replacing the file in one step. Equal graphs give equal bytes."""
    serialize = _safetensors().torch.save
    tensors: dict[str, Tensor] = {}
    described = {
        "input": graph.input,
        "input_shape": list(graph.input_shape),
        "output": graph.output,
        "nodes": [_describe(node, tensors) for node in graph.nodes],
    }
    tensors = dict(sorted(tensors.items()))
    text = _canonical(described)
    header = {"format_version": FORMAT_VERSION, "sha256": _checksum(text, tensors), "graph": described}
    with atomic_write(path) as temporary:
        temporary.write_bytes(serialize(tensors, metadata={"lowbit": _canonical(header)}))


def _describe(node: Node, tensors: dict[str, Tensor]) -> dict[str, Any]:
    entry: dict[str, Any] = {"operation": type(node).__name__}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Weight):
            low = -1 if value.bits == 1 else -(1 << (value.bits - 1))
            codes = value.codes.to(torch.int16) - low
            tensors[f"{node.name}:weight"] = pack(codes >> 1 if value.bits == 1 else codes, value.bits)
            tensors[f"{node.name}:scale"] = value.scale.contiguous()
            value = {"shape": list(value.codes.shape), "bits": value.bits, "scales": list(value.scale.shape)}
        elif isinstance(value, Tensor):
            packed = pack(value - node.type.qn, node.type.bits) if isinstance(node, Lookup) else value.contiguous()
            tensors[f"{node.name}:{field.name}"] = packed
            value = {"shape": list(value.shape)}
        elif isinstance(value, TensorType | FloatType):
            value = {key: each for key, each in dataclasses.asdict(value).items() if key != "shape"}
        entry[field.name] = value
    return entry


def _canonical(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=False, allow_nan=False)


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the graph's JSON and, in order of name, of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise LowbitError(
            "integer networks are saved with safetensors, which is not installed: pip install 'lowbit[export]'"
        ) from error
    return safetensors


# ---------------------------------------------------------------- reading


def sizes(path: str | os.PathLike) -> dict[str, int]:
    """Bytes of a saved network's file by what they hold: "codes" (packed weights), "tables", "scales", "biases", "metadata".

    They add up to the file's size. Raises LowbitError for a file that `load` does not read.
    """
    load(path)
    data = Path(path).read_bytes()
    found = {"codes": 0, "tables": 0, "scales": 0, "biases": 0}
    columns = {"weight": "codes", "table": "tables", "scale": "scales", "bias": "biases"}
    for name, tensor in _safetensors().torch.load(data).items():
        found[columns[name.rpartition(":")[2]]] += tensor.numel() * tensor.element_size()
    return found | {"metadata": len(data) - sum(found.values())}


def load(path: str | os.PathLike) -> Graph:
    """The validated graph in a file that `save` wrote.

    Raises LowbitError for a file that is missing, truncated, altered, of a newer format version, or not such a file at all.
    """
    path, library = Path(path), _safetensors()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LowbitError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        tensors = library.torch.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        header = json.loads(metadata["lowbit"])
    except (library.SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise LowbitError(f"{path}: not an integer network, or truncated: {error!s:.200}; export it again") from error
    try:
        return _graph(header, tensors)
    except LowbitError as error:
        raise LowbitError(f"{path}: {error}") from error


def _graph(header: Any, tensors: dict[str, Tensor]) -> Graph:
    header = _mapping(header, "the metadata", {"format_version", "sha256", "graph"}, exact=False)
    version = _integer(header["format_version"], "format_version")
    if version > FORMAT_VERSION:
        raise LowbitError(
            f"the file has format version {version}, this lowbit reads up to {FORMAT_VERSION}: install a newer lowbit"
        )
    if version != FORMAT_VERSION:
        raise LowbitError(f"there is no format version {version}")
    described = _mapping(header["graph"], "the graph", {"input", "input_shape", "output", "nodes"})
    try:
        text = _canonical(described)
    except (ValueError, RecursionError) as error:
        raise LowbitError(f"the graph is no plain JSON: {error}") from error
    if header["sha256"] != _checksum(text, tensors):
        raise LowbitError("the checksum does not fit: the file was altered or damaged; export it again")
    if not isinstance(described["nodes"], list):
        raise LowbitError("the graph's nodes are not a list")
    left = dict(tensors)
    nodes = tuple(_node(entry, left) for entry in described["nodes"])
    if left:
        raise LowbitError(f"the file holds tensors that belong to no node: {', '.join(sorted(left)[:5])}")
    return validate(
        Graph(
            input=_string(described["input"], "input"),
            input_shape=_integers(described["input_shape"], "input_shape"),
            nodes=nodes,
            output=_string(described["output"], "output"),
        )
    )


def _mapping(value: Any, where: str, keys: set[str], *, exact: bool = True) -> dict[str, Any]:
    if not isinstance(value, dict) or not (value.keys() == keys if exact else value.keys() >= keys):
        raise LowbitError(f"{where} must have the fields {', '.join(sorted(keys))}")
    return value


def _integer(value: Any, where: str) -> int:
    if type(value) is not int or abs(value) >= 2**31:
        raise LowbitError(f"{where} must be a whole number, not {value!s:.40}")
    return value


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise LowbitError(f"{where} must be a string")
    return value


def _boolean(value: Any, where: str) -> bool:
    if type(value) is not bool:
        raise LowbitError(f"{where} must be true or false")
    return value


def _list(value: Any, where: str, each: Callable[[Any, str], Any]) -> tuple:
    if not isinstance(value, list):
        raise LowbitError(f"{where} must be a list")
    return tuple(each(item, where) for item in value)


def _integers(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, list) and len(value) > _RANK_MAX:  # before their product is taken
        raise LowbitError(f"{where}: {len(value)} numbers where at most {_RANK_MAX} can stand")
    return _list(value, where, _integer)


def _pads(value: Any, where: str) -> tuple[tuple[int, ...], ...]:
    return _list(value, where, _integers)


def _type(value: Any, where: str) -> TensorType | FloatType:
    if value == {}:
        return FloatType()
    value = _mapping(value, where, {field.name for field in dataclasses.fields(TensorType)} - {"shape"})
    if type(value["scale"]) is not float:
        raise LowbitError(f"{where}: scale must be a number with a decimal point")
    return TensorType(
        scale=value["scale"],
        zero_point=_integer(value["zero_point"], where),
        bits=_integer(value["bits"], where),
        signed=_boolean(value["signed"], where),
        narrow=_boolean(value["narrow"], where),
    )


_PLAIN: dict[str, Callable[[Any, str], Any]] = {
    "str": _string,
    "int": _integer,
    "tuple[str, ...]": lambda value, where: _list(value, where, _string),
    "tuple[int, ...]": _integers,
    "Pads": _pads,
    "TensorType | FloatType | None": _type,
}
"""Reader of every field that is no tensor, by the annotation it has in `ir`."""


def _node(entry: Any, left: dict[str, Tensor]) -> Node:
    """The node that `_describe` described; takes its tensors out of `left`."""
    name = _string(entry.get("name") if isinstance(entry, dict) else None, "the name of a node")
    kind = OPERATIONS.get(entry.get("operation")) if isinstance(entry.get("operation"), str) else None
    if kind is None:
        raise LowbitError(f"node {name!r}: operation {entry.get('operation')!s:.40} is not known to this lowbit")
    where = f"node {name!r}"
    fields = dataclasses.fields(kind)
    _mapping(entry, where, {field.name for field in fields} | {"operation"})
    values: dict[str, Any] = {}
    for field in fields:
        if field.type in _PLAIN:
            values[field.name] = _PLAIN[field.type](entry[field.name], f"{where}, {field.name}")
    for field in fields:
        if field.name == "weight":
            values["weight"] = _read_weight(entry["weight"], name, where, left)
        elif field.name == "bias":
            bias = entry["bias"]
            values["bias"] = None if bias is None else _take(left, f"{name}:bias", torch.int32, _described(bias, where))
        elif field.name == "table":
            values["table"] = _read_table(entry["table"], name, where, left, values["type"])
    return kind(**values)


def _described(value: Any, where: str) -> tuple[int, ...]:
    return _shape(_mapping(value, where, {"shape"})["shape"], where)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    shape = _integers(value, where)
    if any(size < 1 for size in shape):
        raise LowbitError(f"{where}: a tensor of shape {shape} is empty")
    return shape


def _take(left: dict[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    tensor = left.pop(name, None)
    if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
        found = "missing" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise LowbitError(f"tensor {name!r} must be {dtype} of shape {shape}, but is {found}")
    return tensor


def _take_packed(left: dict[str, Tensor], name: str, bits: int, count: int) -> Tensor:
    packed = _take(left, name, torch.uint8, (-(-count * bits // 8),))
    unused = -count * bits % 8
    if unused and int(packed[-1]) >> (8 - unused):
        raise LowbitError(f"tensor {name!r}: the unused bits of its last byte are not 0")
    return unpack(packed, bits, count)


def _read_weight(entry: Any, name: str, where: str, left: dict[str, Tensor]) -> Weight:
    entry = _mapping(entry, f"{where}, weight", {"shape", "bits", "scales"})
    bits, shape = _integer(entry["bits"], where), _shape(entry["shape"], where)
    if not 1 <= bits <= 8:
        raise LowbitError(f"{where}: weights of {bits} bits; there are 1 to 8")
    codes = _take_packed(left, f"{name}:weight", bits, math.prod(shape)).to(torch.int16)
    codes = codes * 2 - 1 if bits == 1 else codes - (1 << (bits - 1))
    scale = _take(left, f"{name}:scale", torch.float32, _shape(entry["scales"], where))
    return Weight(codes.to(torch.int8).reshape(shape), scale, bits)


def _read_table(entry: Any, name: str, where: str, left: dict[str, Tensor], kind: TensorType | FloatType) -> Tensor:
    shape = _described(entry, where)
    if not isinstance(kind, TensorType) or not 1 <= kind.bits <= 8:
        raise LowbitError(f"{where}: a table needs an output of 1 to 8 bits")
    return (_take_packed(left, f"{name}:table", kind.bits, math.prod(shape)).to(torch.int16) + kind.qn).reshape(shape)
