"""A graph as plain data: JSON for everything but tensors, which a `Tensors` stores in whatever way a file has for them.

How a field of an operation is described and read back follows from its annotation: an operation made of the kinds of
field in `FIELDS` is written and read by every file without a line of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.grid import BITS_MAX
from lowbit.integer.graph import FloatType, Graph, Node, TensorType, Weight
from lowbit.integer.limits import INDICES_MAX
from lowbit.integer.ops import OPERATIONS
from lowbit.integer.validate import check_count, validate

VERSION = 4
_RANK_MAX = 8  # dimensions of any tensor


class Tensors:
    """Where the tensors of a graph are put and taken from, by name."""

    def __init__(self, by_name: dict[str, Any] | None = None) -> None:
        self.by_name = {} if by_name is None else by_name

    def put(self, name: str, value: Tensor) -> None:
        """Store a float32 or int32 tensor."""
        raise NotImplementedError

    def put_codes(self, name: str, codes: Tensor, bits: int) -> None:
        """Store whole numbers from 0 to 2^bits − 1."""
        raise NotImplementedError

    def take(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """What `put` stored, which is taken out. Raises LowbitError where there is no such tensor."""
        raise NotImplementedError

    def take_codes(self, name: str, bits: int, count: int) -> Tensor:
        """What `put_codes` stored, int32 (count,), which is taken out.

        Raises LowbitError where there is no such tensor.
        """
        raise NotImplementedError


# ---------------------------------------------------------------- graphs


def describe(graph: Graph, tensors: Tensors) -> tuple[int, dict[str, Any]]:
    """(version, description) of a validated graph; its tensors are put into `tensors`."""
    seen: dict[tuple, str] = {}
    nodes = [_describe(node, tensors, seen) for node in graph.nodes]
    inputs = {name: list(shape) for name, shape in graph.inputs.items()}
    described = {"inputs": inputs, "outputs": list(graph.outputs), "nodes": nodes}
    if any(_is_reference(value) for entry in nodes for value in entry.values()):
        return 4, {"about": _about(dict(graph.about)), **described}
    if graph.about:
        return 3, {"about": _about(dict(graph.about)), **described}
    if len(graph.inputs) == len(graph.outputs) == 1:
        ((name, shape),) = graph.inputs.items()
        return 1, {"input": name, "input_shape": list(shape), "output": graph.outputs[0], "nodes": nodes}
    return 2, described


def checked_version(value: Any) -> int:
    """The version of a description. Raises LowbitError for one that this lowbit does not read."""
    version = _integer(value, "format_version")
    if version > VERSION:
        raise LowbitError(
            f"the file has format version {version}, this lowbit reads up to {VERSION}: install a newer lowbit"
        )
    if version < 1:
        raise LowbitError(f"there is no format version {version}")
    return version


def read(version: int, description: Any, tensors: Tensors) -> Graph:
    """The validated graph of a description; every tensor in `tensors` must be a node's.

    Raises:
        LowbitError: naming what is missing, of another kind or too much; and what `validate` raises.
    """
    keys = {"input", "input_shape", "output"} if version == 1 else {"inputs", "outputs"}
    keys |= {"about"} if version >= 3 else set()
    described = mapping(description, "the graph", keys | {"nodes"})
    if not isinstance(described["nodes"], list):
        raise LowbitError("the graph's nodes are not a list")
    check_count(len(described["nodes"]))  # before they are read
    made: dict[str, Node] = {}
    nodes = tuple(_node(entry, tensors, made) for entry in described["nodes"])
    if tensors.by_name:
        raise LowbitError(
            f"the file holds tensors that belong to no node: {', '.join(map(repr, sorted(tensors.by_name)[:5]))}"
        )
    if version == 1:
        inputs = {_string(described["input"], "input"): _integers(described["input_shape"], "input_shape")}
        outputs = (_string(described["output"], "output"),)
    else:
        if not isinstance(described["inputs"], dict):
            raise LowbitError("the graph's inputs are no shapes by name")
        inputs = {name: _integers(shape, f"input {name!r}") for name, shape in described["inputs"].items()}
        outputs = _list(described["outputs"], "outputs", _string)
    return validate(Graph(inputs=inputs, nodes=nodes, outputs=outputs, about=_about(described.get("about", {}))))


def _about(value: Any) -> dict[str, Any]:
    """What a graph says of itself. Raises LowbitError where it is not an object of plain JSON."""
    try:
        same = isinstance(value, dict) and json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise LowbitError("the metadata of the graph (about) is not an object of plain JSON")
    return value


def _is_stored(field: dataclasses.Field) -> bool:
    """Whether a field's values are tensors."""
    return str(field.type) in ("Weight", "Int32 | None", "Float32 | None", "OutputCodes")


def _is_reference(value: Any) -> bool:
    """Whether a field's JSON says that it is an earlier node's."""
    return isinstance(value, dict) and value.keys() == {"of"}


def _describe(node: Node, tensors: Tensors, seen: dict[tuple, str]) -> dict[str, Any]:
    """The node as JSON; a tensor that an earlier node has too is described by that node's name."""
    entry: dict[str, Any] = {"operation": type(node).__name__}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if _may_be_left_out(field) and value == field.default:
            continue
        if _is_stored(field) and value is not None:
            first = seen.setdefault((type(node), field.name, id(value)), node.name)
            if first != node.name:
                entry[field.name] = {"of": first}
                continue
        write = FIELDS[str(field.type)].write
        entry[field.name] = value if write is None else write(value, f"{node.name}:{field.name}", node.type, tensors)
    return entry


def _may_be_left_out(field: dataclasses.Field) -> bool:
    return bool(field.metadata.get("added"))


def _node(entry: Any, tensors: Tensors, made: dict[str, Node]) -> Node:
    """The node that `_describe` described, put into `made`; takes its tensors out of `tensors`."""
    name = _string(entry.get("name") if isinstance(entry, dict) else None, "the name of a node")
    operation = entry.get("operation")
    kind = OPERATIONS.get(operation) if isinstance(operation, str) else None
    if kind is None:
        raise LowbitError(f"node {name!r}: operation {operation!r:.40} is not known to this lowbit")
    where = f"node {name!r}"
    fields = dataclasses.fields(kind)
    left_out = {field.name for field in fields if _may_be_left_out(field)} - entry.keys()
    mapping(entry, where, {field.name for field in fields} - left_out | {"operation"})
    values: dict[str, Any] = {}
    for field in fields:  # the type comes before the fields that only it explains
        if field.name in left_out:
            continue
        codec = FIELDS[str(field.type)]
        place = f"{where}, {field.name}"
        if _is_stored(field) and _is_reference(entry[field.name]):
            first = made.get(_string(entry[field.name]["of"], place))
            if type(first) is not kind:
                raise LowbitError(f"{place}: no earlier {operation} has the name {entry[field.name]['of']!r:.40}")
            values[field.name] = getattr(first, field.name)
            continue
        values[field.name] = codec.read(entry[field.name], place, f"{name}:{field.name}", values.get("type"), tensors)
    made[name] = kind(**values)
    return made[name]


# ---------------------------------------------------------------- JSON


def mapping(value: Any, where: str, keys: set[str], *, exact: bool = True) -> dict[str, Any]:
    """The value, which must be an object with these keys (and others, unless exact). Raises LowbitError otherwise."""
    if not isinstance(value, dict) or not (value.keys() == keys if exact else value.keys() >= keys):
        raise LowbitError(f"{where} must have the fields {', '.join(sorted(keys))}")
    return value


def _integer(value: Any, where: str) -> int:
    if type(value) is not int or abs(value) >= 2**31:
        raise LowbitError(f"{where} must be a whole number, not {value!r:.40}")
    return value


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise LowbitError(f"{where} must be a string")
    return value


def _boolean(value: Any, where: str) -> bool:
    if type(value) is not bool:
        raise LowbitError(f"{where} must be true or false")
    return value


def _float(value: Any, where: str) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise LowbitError(f"{where} must be a finite number with a decimal point, not {value!r:.40}")
    return value


def _list(value: Any, where: str, each: Callable[[Any, str], Any]) -> tuple:
    if not isinstance(value, list):
        raise LowbitError(f"{where} must be a list")
    return tuple(each(item, where) for item in value)


def _integers(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, list) and len(value) > _RANK_MAX:  # before their product is taken
        raise LowbitError(f"{where}: {len(value)} numbers where at most {_RANK_MAX} can stand")
    return _list(value, where, _integer)


def _places(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, list) and len(value) > INDICES_MAX:
        raise LowbitError(f"{where}: {len(value):,} places; at most {INDICES_MAX:,} are read")
    return _list(value, where, _integer)


def _pads(value: Any, where: str) -> tuple[tuple[int, ...], ...]:
    return _list(value, where, _integers)


def _type(value: Any, where: str) -> TensorType | FloatType:
    if value == {}:
        return FloatType()
    value = mapping(value, where, {field.name for field in dataclasses.fields(TensorType)} - {"shape"})
    if type(value["scale"]) is not float:
        raise LowbitError(f"{where}: scale must be a number with a decimal point")
    return TensorType(
        scale=value["scale"],
        zero_point=_integer(value["zero_point"], where),
        bits=_integer(value["bits"], where),
        signed=_boolean(value["signed"], where),
        narrow=_boolean(value["narrow"], where),
    )


def _shape(value: Any, where: str) -> tuple[int, ...]:
    shape = _integers(value, where)
    if any(size < 1 for size in shape):
        raise LowbitError(f"{where}: a tensor of shape {shape} is empty")
    return shape


# ---------------------------------------------------------------- fields


@dataclasses.dataclass(frozen=True)
class FieldKind:
    """How fields with one annotation are described and read.

    Attributes:
        read: (JSON value, place for messages, tensor's name, the node's type, tensors) → the field's value.
        write: (value, tensor's name, the node's type, tensors) → JSON value; None for a value that JSON has itself.
    """

    read: Callable[[Any, str, str, Any, Tensors], Any]
    write: Callable[[Any, str, Any, Tensors], Any] | None = None


def _plain(read: Callable[[Any, str], Any]) -> FieldKind:
    return FieldKind(lambda value, where, name, y, tensors: read(value, where))


def _write_type(value: TensorType | FloatType, name: str, y: Any, tensors: Tensors) -> dict[str, Any]:
    return {key: each for key, each in dataclasses.asdict(value).items() if key != "shape"}


def _write_weight(value: Weight, name: str, y: Any, tensors: Tensors) -> dict[str, Any]:
    codes = value.codes.to(torch.int16)
    unsigned = (codes + 1) >> 1 if value.bits == 1 else codes + (1 << (value.bits - 1))
    tensors.put_codes(name, unsigned, value.bits)
    tensors.put(f"{name.rpartition(':')[0]}:scale", value.scale)
    return {"shape": list(value.codes.shape), "bits": value.bits, "scales": list(value.scale.shape)}


def _read_weight(value: Any, where: str, name: str, y: Any, tensors: Tensors) -> Weight:
    entry = mapping(value, where, {"shape", "bits", "scales"})
    bits, shape = _integer(entry["bits"], where), _shape(entry["shape"], where)
    if not 1 <= bits <= 8:
        raise LowbitError(f"{where}: weights of {bits} bits; there are 1 to 8")
    codes = tensors.take_codes(name, bits, math.prod(shape))
    codes = codes * 2 - 1 if bits == 1 else codes - (1 << (bits - 1))
    scale = tensors.take(f"{name.rpartition(':')[0]}:scale", torch.float32, _shape(entry["scales"], where))
    return Weight(codes.to(torch.int8).reshape(shape), scale, bits)


def _write_tensor(value: Tensor | None, name: str, y: Any, tensors: Tensors) -> dict[str, Any] | None:
    if value is None:
        return None
    tensors.put(name, value)
    return {"shape": list(value.shape)}


def _as_it_is(dtype: torch.dtype) -> FieldKind:
    """A tensor of this type, or None."""

    def read(value: Any, where: str, name: str, y: Any, tensors: Tensors) -> Tensor | None:
        if value is None:
            return None
        return tensors.take(name, dtype, _shape(mapping(value, where, {"shape"})["shape"], where))

    return FieldKind(read, _write_tensor)


def _write_codes(value: Tensor, name: str, y: TensorType, tensors: Tensors) -> dict[str, Any]:
    tensors.put_codes(name, value.to(torch.int32) - y.qn, y.bits)
    return {"shape": list(value.shape)}


def _read_codes(value: Any, where: str, name: str, y: Any, tensors: Tensors) -> Tensor:
    shape = _shape(mapping(value, where, {"shape"})["shape"], where)
    if not isinstance(y, TensorType) or not 1 <= y.bits <= BITS_MAX:
        raise LowbitError(f"{where}: a table needs an output of 1 to {BITS_MAX} bits")
    return (tensors.take_codes(name, y.bits, math.prod(shape)) + y.qn).to(torch.int16).reshape(shape)


FIELDS: dict[str, FieldKind] = {
    "str": _plain(_string),
    "int": _plain(_integer),
    "float": _plain(_float),
    "bool": _plain(_boolean),
    "tuple[str, ...]": _plain(lambda value, where: _list(value, where, _string)),
    "tuple[int, ...]": _plain(_integers),
    "Places": _plain(_places),
    "Pads": _plain(_pads),
    "tuple[tuple[int, ...], ...]": _plain(_pads),
    "TensorType | FloatType | None": FieldKind(lambda value, where, *_: _type(value, where), _write_type),
    "Weight": FieldKind(_read_weight, _write_weight),
    "Int32 | None": _as_it_is(torch.int32),
    "Float32 | None": _as_it_is(torch.float32),
    "OutputCodes": FieldKind(_read_codes, _write_codes),
}
"""Every kind of field that an operation may have, by its annotation."""
