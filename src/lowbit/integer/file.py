"""The file of an integer network: one safetensors file, codes packed to their bits, the graph as JSON in the header.

Tensors, for a node called NAME:
    NAME:weight  uint8    weight codes minus the lowest code of their width (1-bit codes −1, +1 as 0, 1), packed
    NAME:scale   float32  weight scale, () or (out,)
    NAME:bias    int32    (out,), where there is one
    NAME:table   uint8    a Lookup's output codes minus the lowest one, packed at the output's bits
    NAME:codes   uint8    a Constant's codes, in the same way
    NAME:gain    float32  Normalize's γ, where there is one, and NAME:shift its β
Packed: codes one after the other in row-major order, code i in bits i·b .. (i+1)·b − 1 of the file's bits, bit 0 being
the least significant one of the first byte; the unused bits of the last byte are 0.

Metadata, under the one key "lowbit": JSON with "format_version", "graph" (`integer.described`) and "sha256" of the
graph's JSON and of every tensor. Loading checks all of it, sizes before anything is allocated for them, and then the
graph as `validate` does. Version 2 has "inputs" and "outputs" where version 1, which graphs with one of each are still
written in, has "input", "input_shape" and "output". Version 3 has "about" (`Graph.about`) beside them, and is written
where there is something in it. Version 4 has {"of": NAME} for a tensor that is an earlier node's, of the same operation
and field: weights of a layer that is called more than once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.checksum import checksum
from lowbit.errors import LowbitError
from lowbit.files import atomic_write, check_readable
from lowbit.integer import described
from lowbit.integer.graph import Graph

FORMAT_VERSION = described.VERSION


def pack(codes: Tensor, bits: int) -> Tensor:
    """Unsigned codes (any shape, values 0 .. 2^bits − 1) as a little-endian bit stream.

    Uint8 of ceil(numel · bits / 8).
    """
    wide = torch.uint8 if bits <= 8 else torch.int32
    flat, places = codes.flatten().to(wide), torch.arange(bits, dtype=wide, device="cpu")
    stream = ((flat[:, None] >> places) & 1).to(torch.uint8).flatten()
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8)).reshape(-1, 8)
    return (stream << torch.arange(8, dtype=torch.uint8, device="cpu")).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes that `pack` packed, uint8 (int32 beyond 8 bits) of shape (count,). The sizes must fit."""
    wide = torch.uint8 if bits <= 8 else torch.int32
    stream = ((packed[:, None] >> torch.arange(8, dtype=torch.uint8, device="cpu")) & 1).flatten()[: count * bits]
    return (stream.reshape(count, bits).to(wide) << torch.arange(bits, dtype=wide, device="cpu")).sum(1, dtype=wide)


class _Packed(described.Tensors):
    """Tensors as they lie in the file."""

    def put(self, name: str, value: Tensor) -> None:
        self.by_name[name] = value.contiguous().clone()  # safetensors refuses tensors that two layers share

    def put_codes(self, name: str, codes: Tensor, bits: int) -> None:
        self.by_name[name] = pack(codes, bits)

    def take(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        tensor = self.by_name.pop(name, None)
        if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
            found = "missing" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise LowbitError(f"tensor {name!r} must be {dtype} of shape {shape}, but is {found}")
        return tensor

    def take_codes(self, name: str, bits: int, count: int) -> Tensor:
        packed = self.take(name, torch.uint8, (-(-count * bits // 8),))
        unused = -count * bits % 8
        if unused and int(packed[-1]) >> (8 - unused):
            raise LowbitError(f"tensor {name!r}: the unused bits of its last byte are not 0")
        return unpack(packed, bits, count).to(torch.int32)


# ---------------------------------------------------------------- writing


def save(graph: Graph, path: str | os.PathLike) -> None:
    """Write a validated graph to `path`, replacing the file in one step. Equal graphs give equal bytes."""
    serialize = _safetensors().torch.save
    stored = _Packed()
    version, description = described.describe(graph, stored)
    tensors = dict(sorted(stored.by_name.items()))
    text = _canonical(description)
    header = {"format_version": version, "sha256": checksum(text, tensors), "graph": description}
    with atomic_write(path) as temporary:
        temporary.write_bytes(serialize(tensors, metadata={"lowbit": _canonical(header)}))


def _canonical(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=False, allow_nan=False)


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
    """Bytes of a saved network's file by what they hold.

    "codes" (packed weights), "tables", "scales", "biases", "metadata".

    They add up to the file's size. Raises LowbitError for a file that `load` does not read.
    """
    load(path)
    data = Path(path).read_bytes()
    found = {"codes": 0, "tables": 0, "scales": 0, "biases": 0}
    columns = {"table": "tables", "scale": "scales", "bias": "biases"}
    for name, tensor in _safetensors().torch.load(data).items():
        found[columns.get(name.rpartition(":")[2], "codes")] += tensor.numel() * tensor.element_size()
    return found | {"metadata": len(data) - sum(found.values())}


def load(path: str | os.PathLike) -> Graph:
    """The validated graph in a file that `save` wrote.

    Raises LowbitError for a file that is missing, truncated, altered, of a newer format version, or not such a file at
    all.
    """
    path, library = Path(path), _safetensors()
    check_readable(path)
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
    header = described.mapping(header, "the metadata", {"format_version", "sha256", "graph"}, exact=False)
    version, description = described.checked_version(header["format_version"]), header["graph"]
    try:
        text = _canonical(description)
    except (ValueError, RecursionError) as error:
        raise LowbitError(f"the graph is not plain JSON: {error}") from error
    if header["sha256"] != checksum(text, tensors):
        raise LowbitError("the checksum does not fit: the file was altered or damaged; export it again")
    return described.read(version, description, _Packed(dict(tensors)))
