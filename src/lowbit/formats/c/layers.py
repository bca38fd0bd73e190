"""Convolutions and linear layers in C.

a constant that says what the layer is, and a call of the kernel that computes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.formats.c import packing
from lowbit.formats.c.memory import is_depthwise
from lowbit.formats.c.operations import LOWERINGS
from lowbit.formats.c.roundings import arithmetic
from lowbit.formats.c.source import Builder
from lowbit.formats.c.tensors import Place
from lowbit.integer.graph import FloatType
from lowbit.integer.ops import Convolution, Linear
from lowbit.integer.ops.layer import Layer

_SPACE_MAX = 3
_LAYER_BYTES = 58  # of a layer's constant on a processor of 32 bits, and 20 for every dimension of positions
_LENGTH_MAX = 65_000  # of a window: its length has 16 bits


@dataclass(frozen=True)
class _Geometry:
    """Where a layer's windows lie, with one number per dimension of positions.

    Attributes:
        axis: of the channels, in input and output.
        inner, outer: sizes of the input's and the output's positions.
        before: padding before the first position.
        channels: of a window: of one group, or all where every channel is convolved by itself.
    """

    axis: int
    inner: Sequence[int]
    outer: Sequence[int]
    kernel: Sequence[int]
    stride: Sequence[int]
    dilation: Sequence[int]
    before: Sequence[int]
    groups: int
    channels: int
    depthwise: bool

    @property
    def length(self) -> int:
        """Codes of a window."""
        return self.channels * math.prod(self.kernel)


@LOWERINGS(Convolution)
def _convolution(builder: Builder, node: Convolution) -> None:
    x, y = builder.place(node.inputs[0]), builder.place(node.name)
    before = [pair[0] for pair in node.padding]
    kernel, depthwise = tuple(node.weight.codes.shape[2:]), is_depthwise(node)
    channels = x.shape[0] if depthwise else node.weight.codes.shape[1]
    where = (x.shape[1:], y.shape[1:], kernel, node.stride, node.dilation, before, node.groups, channels, depthwise)
    taps = node.weight.codes.flatten(2)
    # A window has its channels innermost; where each is convolved by itself, a row of weights is a tap of all channels.
    _layer(builder, node, _Geometry(0, *where), taps.flatten(1).T if depthwise else taps.transpose(1, 2).flatten(1))


@LOWERINGS(Linear)
def _linear(builder: Builder, node: Linear) -> None:
    shape = builder.place(node.name).shape[:-1]
    once, none = [1] * len(shape), [0] * len(shape)
    codes = node.weight.codes
    _layer(builder, node, _Geometry(-1, shape, shape, once, once, once, none, 1, codes.shape[1], False), codes)


def _layer(builder: Builder, node: Layer, where: _Geometry, rows: Tensor) -> None:
    """Define the layer's constant, and call its kernel."""
    if len(where.outer) > builder.space or builder.space > _SPACE_MAX:
        raise LowbitError(
            f"node {node.name!r}: C's layers have at most {_SPACE_MAX} dimensions beside the channels, not "
            f"{len(where.outer)}"
        )
    if where.length > _LENGTH_MAX:
        raise LowbitError(
            f"node {node.name!r}: a window of {where.length} codes; C's layers have at most {_LENGTH_MAX}"
        )
    bits, kernel = node.weight.bits, "depthwise" if where.depthwise else "dense"
    if where.depthwise:
        padded = -(-where.channels // 4) * 4  # of a row of taps
        builder.taps = max(builder.taps, math.prod(where.kernel))
        builder.tap_rows = max(builder.tap_rows, padded * math.prod(where.kernel))
    else:
        padded = packing.padded_length(where.length, bits)
        builder.columns = max(builder.columns, 2 * padded)
    builder.uses |= {kernel, f"weights{bits}"}
    fields = {"weights": f"weights + {len(builder.weights)}", "planes": f"planes{bits}"}
    words = packing.words(rows, bits, 1 if where.depthwise else len(rows) // where.groups)
    builder.weights += words
    builder.spend(4 * len(words) + _LAYER_BYTES + 20 * builder.space)
    fields |= _requantization(builder, node) | _positions(builder, node, where)
    fields |= {"length": str(where.length), "padded": str(padded)} | _codes(builder, node)
    fields |= {"plane_count": str(len(packing.PLANES[bits])), "offset": str(packing.offset(bits))}
    number, body = builder.number(node), "\n".join(f"    .{name} = {value}," for name, value in fields.items())
    builder.constants.append(f"static const layer_t layer{number} = {{\n{body}\n}};")
    x, y = builder.place(node.inputs[0]), builder.place(node.name)
    builder.line(f"{kernel}(&layer{number}, {builder.pointer(x)}, {builder.pointer(y, writable=True)});")


def _positions(builder: Builder, node: Layer, where: _Geometry) -> dict[str, str]:
    """The members that say where a window's codes and an output's code lie."""
    x, y = builder.place(node.inputs[0]), builder.place(node.name)
    missing = builder.space - len(where.outer)
    fields = {f"{name}_strides": _strides(place, where.axis, missing) for name, place in (("x", x), ("y", y))}
    alone = where.axis == 0 and x.shape[0] == 1  # taps of a single channel are read as channels beside each other are
    if alone:
        fields["x_strides"] = _listed([x.strides[-1], *[0] * missing, *x.strides[1:]])
    for name, values, fill in (
        ("in", where.inner, 1), ("out", where.outer, 1), ("kernel", where.kernel, 1), ("stride", where.stride, 1),
        ("dilation", where.dilation, 1), ("pad", where.before, 0),
    ):  # fmt: skip
        fields[name] = _listed([*[fill] * missing, *values])
    # Taps beside each other lie in one piece where channels do, and a window has all of a position's.
    whole = where.axis == 0 and len(x.shape) > 1 and x.strides[0] == 1 and x.strides[-1] == where.channels
    joined = (whole or alone) and where.dilation[-1] == 1
    outputs = y.shape[where.axis] // where.groups
    numbers = {"groups": where.groups, "channels": where.channels, "outputs": outputs, "joined": int(joined)}
    return fields | {name: str(value) for name, value in numbers.items()}


def _codes(builder: Builder, node: Layer) -> dict[str, str]:
    """The members that say what the codes of input and output are."""
    x, y = builder.place(node.inputs[0]), builder.place(node.name)
    (kind,) = builder.graph.input_types(node)
    floats = isinstance(node.type, FloatType)
    builder.uses |= {x.storage, "int32" if floats else "codes"} | ({"y_packed"} if y.storage == "packed" else set())
    if x.storage == "packed":
        builder.uses.add(f"packed{x.width}")
    fields = {"x_more": str((x.low if x.storage == "packed" else 0) - int(kind.zero_point))}
    if not floats:
        kind = node.codes_of()
        fields |= {"y_zero": str(kind.zero_point), "low": str(kind.qn), "high": str(kind.qp), "y_low": str(y.low)}
    return fields | {"x_storage": _storage(x), "y_storage": _storage(y)}


def _strides(place: Place, channel_axis: int, missing: int) -> str:
    own = [stride for axis, stride in enumerate(place.strides) if axis != channel_axis % len(place.shape)]
    return _listed([place.strides[channel_axis], *[0] * missing, *own])


def _listed(values: Sequence[int]) -> str:
    return "{" + ", ".join(map(str, values)) + "}"


def _storage(place: Place) -> str:
    return f"PACKED + {place.width}" if place.storage == "packed" else place.storage.upper()


def _requantization(builder: Builder, node: Layer) -> dict[str, str]:
    """Biases, multipliers and shifts, each an array with an entry per output channel.

    No multipliers where all are powers of two.
    """
    number, count, fields = builder.number(node), len(node.weight.codes), {}
    if node.bias is not None:
        values = node.bias.tolist()
        builder.constant(f"int32_t bias{number}", values)
        fields["bias"] = f"bias{number}"
    if not isinstance(node.type, FloatType):
        types = builder.graph.input_types(node)
        (m,) = node.multipliers(types)
        fields |= arithmetic(builder).layer(m, node.codes_of(), number, count, node.accumulator_bound(types))
    return fields
