"""What the ONNX writers share: collecting nodes and initializers, and the operators that are the same in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper, save

from lowbit.files import atomic_write
from lowbit.formats.registry import Lowerings
from lowbit.integer.graph import Graph, Node, Pads, Shape, TensorType, known_shape
from lowbit.integer.ops import (
    ChannelShuffle,
    Concatenate,
    Convolution,
    Expand,
    Extremum,
    MaxPool,
    PixelShuffle,
    PixelUnshuffle,
    Reshape,
    Slice,
    Transpose,
)
from lowbit.integer.ops.pixel_shuffle import shuffle_steps, unshuffle_steps
from lowbit.integer.ops.resample import Resample
from lowbit.integer.ops.take import Take

_IR_VERSIONS = {13: 7, 21: 10, 25: 13}
"""The lowest file version an opset may be in: older runtimes refuse newer ones."""

_SHARED_FROM = 4096
"""Bytes of initializers that are looked for among those that are there."""


@dataclass
class Builder:
    """Collects ONNX nodes and initializers; `done` makes the checked model.

    Attributes:
        graph: what is written.
        packed: store weights of at most 4 bits as INT2 or INT4 tensors.
        opset: of the operators.
    """

    graph: Graph
    packed: bool = False
    opset: int = 21
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    dequantized: dict[str, str] = field(default_factory=dict)
    reshaped: set[str] = field(default_factory=set)
    large: dict[tuple, str] = field(default_factory=dict)

    def add(self, operator: str, inputs: list[str], output: str, **attributes) -> str:
        """Append a node and return the name of its output."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}:{operator}", **attributes))
        return output

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        """An initializer, stored once by name.

        Large ones of the same content once in all, and the first name is returned.
        """
        array = np.asarray(value, order="C")
        if array.nbytes >= _SHARED_FROM and name not in self.initializers:
            name = self.large.setdefault((array.dtype, array.shape, array.tobytes()), name)
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def factor(self, name: str, value: np.ndarray | np.generic, rank: int) -> str:
        """A constant that meets tensors of `rank` dimensions, the batch included, with as many of its own.

        With fewer, ONNX Runtime broadcasts element by element where a tensor's last dimension is 1, and takes up to 40
        times as long.
        """
        array = np.asarray(value)
        return self.constant(name, array.reshape((1,) * (rank - array.ndim) + array.shape))

    def integers(self, name: str, values: list[int]) -> str:
        """An INT64 initializer."""
        return self.constant(name, np.array(values, np.int64))

    def reshape(self, x: str, shape: Shape, output: str) -> str:
        """A tensor with samples of another shape, by a Reshape."""
        return self.add("Reshape", [x, self.integers(f"{output}.shape", [-1, *shape])], output)

    def for_every_sample(self, value: str, rank: int, output: str) -> str:
        """A constant tensor (1, …) of `rank` dimensions, repeated for the batch of the graph's first input."""
        batch, ends = ":batch", [self.integers(f":batch.{end}", [n]) for n, end in enumerate(("start", "stop"))]
        if not any(node.output[0] == batch for node in self.nodes):
            shape = self.add("Shape", [next(iter(self.graph.inputs))], ":input_shape")
            self.add("Slice", [shape, *ends], batch)
        ones = self.integers(f":ones{rank - 1}", [1] * (rank - 1))
        shape = self.add("Concat", [batch, ones], f"{output}:batch", axis=0)
        return self.add("Expand", [value, shape], output)

    def packed_constant(self, name: str, codes: np.ndarray, bits: int) -> str:
        """An INT2 or INT4 initializer: the first code in the lowest bits of each byte, as ONNX orders them."""
        kind, per_byte = (TensorProto.INT2, 4) if bits == 2 else (TensorProto.INT4, 2)
        flat = codes.flatten().astype(np.uint8) & np.uint8((1 << bits) - 1)
        places = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
        raw = (places << (np.arange(per_byte, dtype=np.uint8) * np.uint8(bits))).sum(1, dtype=np.uint8)
        if raw.nbytes >= _SHARED_FROM:
            name = self.large.setdefault((kind, codes.shape, raw.tobytes()), name)
        self.initializers[name] = helper.make_tensor(name, kind, codes.shape, raw.tobytes(), raw=True)
        return name

    def done(self, outputs: Sequence[tuple[str, Shape]], domains: dict[str, int]) -> ModelProto:
        """The model with these outputs, after onnx's full checker; the batch dimension is free."""
        limits = self.graph.index_limits()
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["N", *shape])
            if name in limits
            else _floats(name, shape)
            for name, shape in self.graph.inputs.items()
        ]
        results = [_floats(name, shape) for name, shape in outputs]
        graph = helper.make_graph(self.nodes, "lowbit", inputs, results, list(self.initializers.values()))
        model = helper.make_model(
            graph,
            producer_name="lowbit",
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in domains.items()],
        )
        model.ir_version = _IR_VERSIONS[domains[""]]
        checker.check_model(model, full_check=True)
        return model


def _floats(name: str, shape: Shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])


def write_model(model: ModelProto, path: Path) -> None:
    """Write the model to `path`, replacing the file in one step."""
    with atomic_write(path) as temporary:
        save(model, temporary)


class FloatOperators:
    """The operators of `Elementwise` in ONNX, on float32 tensors by name.

    Args:
        builder: collects them.
        node: whose operators they are; their names begin with its name.
    """

    def __init__(self, builder: Builder, node: Node) -> None:
        self._builder, self._node, self._count = builder, node, 0

    def _name(self) -> str:
        self._count += 1
        return f"{self._node.name}:float{self._count}"

    def constant(self, value: float) -> str:
        return self._builder.factor(self._name(), np.float32(value), len(self._node.shape_of()) + 1)

    def add(self, a: str, b: str) -> str:
        return self._builder.add("Add", [a, b], self._name())

    def multiply(self, a: str, b: str) -> str:
        return self._builder.add("Mul", [a, b], self._name())


def operands(builder: Builder, node: Node) -> list[str]:
    """The tensors of a node's inputs, with equal numbers of dimensions.

    Of size 1 behind the batch, where one has fewer.
    """
    shapes = [known_shape(kind) for kind in builder.graph.input_types(node)]
    rank, found = max(map(len, shapes)), []
    for name, shape in zip(node.inputs, shapes):
        output = name if len(shape) == rank else f"{name}:rank{rank}"
        if output not in builder.reshaped and output != name:
            builder.reshape(name, (1,) * (rank - len(shape)) + shape, output)
            builder.reshaped.add(output)
        found.append(output)
    return found


def looked_up(builder: Builder, node: Node, index: str, table: np.ndarray, output: str) -> str:
    """table[index], in samples of the node's shape; the index is a tensor of whole numbers of any type.

    By GatherElements on one dimension, which ONNX Runtime executes in 0.7 ns an element where Gather takes 12.
    """
    name = node.name
    flat = builder.reshape(index, (), f"{name}:flat_index")
    places = builder.add("Cast", [flat], f"{name}:index", to=TensorProto.INT32)
    values = builder.add(
        "GatherElements", [builder.constant(f"{name}:table", table), places], f"{name}:entries", axis=0
    )
    return builder.reshape(values, node.shape_of(), output)


def pads(padding: Pads) -> list[int]:
    """Padding in ONNX's order: all befores, all afters."""
    return [before for before, _ in padding] + [after for _, after in padding]


def conv_attributes(node: Convolution) -> dict:
    """Attributes of a Conv or ConvInteger."""
    return {
        "kernel_shape": list(node.weight.codes.shape[2:]),
        "strides": list(node.stride),
        "pads": pads(node.padding),
        "dilations": list(node.dilation),
        "group": node.groups,
    }


def resampled(builder: Builder, node: Resample, steps: str, x: TensorType) -> str:
    """f(Σ w · steps) of a resampling, float32: a MatMul per dimension.

    Partial sums are whole numbers, exact in float32 below 2^24; in float64 where they may be larger.
    """
    wide, shape, total = node.accumulator_bound([x]) >= 1 << 24, list(known_shape(x)), steps
    if wide:
        total = builder.add("Cast", [total], f"{node.name}:wide", to=TensorProto.DOUBLE)
    for axis, whole_numbers in node.matrices(known_shape(x)).items():
        matrix = whole_numbers.numpy().astype(np.float64 if wide else np.float32)
        name, shape[axis - 1] = f"{node.name}:weight{axis}", len(matrix)
        last = axis == len(shape)
        flat = axis < len(shape) - 1  # the dimensions behind it are one
        if flat:
            merged = builder.integers(f"{name}.flat", [*[0] * (axis + 1), int(np.prod(shape[axis:]))])
            total = builder.add("Reshape", [total, merged], f"{node.name}:flat{axis}")
        weight = builder.constant(name, matrix.T if last else matrix)
        total = builder.add("MatMul", [total, weight] if last else [weight, total], f"{node.name}:sum{axis}")
        if flat:
            whole = builder.integers(f"{name}.whole", [0, *shape])
            total = builder.add("Reshape", [total, whole], f"{node.name}:whole{axis}")
    return builder.add("Cast", [total], f"{node.name}:narrow", to=TensorProto.FLOAT) if wide else total


def register_moves(lowerings: Lowerings) -> None:
    """Register the operations that move codes and are written alike, whatever stands for a code."""
    lowerings(Concatenate)(_concatenate)
    lowerings(MaxPool)(_max_pool)
    lowerings(Reshape)(_reshape)
    lowerings(Slice)(_slice)
    lowerings(Transpose)(_transpose)
    lowerings(Expand)(_expand)
    lowerings(Extremum)(_extremum)
    lowerings(ChannelShuffle)(_shuffle)
    lowerings(PixelShuffle, PixelUnshuffle)(_shuffle_pixels)
    lowerings(Take)(_take)


def _concatenate(builder: Builder, node: Concatenate) -> None:
    builder.add("Concat", list(node.inputs), node.name, axis=node.axis)


def _max_pool(builder: Builder, node: MaxPool) -> None:
    attributes = {"strides": list(node.stride), "pads": pads(node.padding), "dilations": list(node.dilation)}
    builder.add("MaxPool", list(node.inputs), node.name, kernel_shape=list(node.kernel), **attributes)


def _reshape(builder: Builder, node: Reshape) -> None:
    shape = builder.integers(f"{node.name}:shape", [-1, *node.shape_of()])
    builder.add("Reshape", [*node.inputs, shape], node.name)


def _slice(builder: Builder, node: Slice) -> None:
    ends = zip(("start", "stop", "axis", "step"), (node.start, node.stop, node.axis, node.step))
    places = [builder.integers(f"{node.name}:{end}", [value]) for end, value in ends]
    builder.add("Slice", [*node.inputs, *places], node.name)


def _transpose(builder: Builder, node: Transpose) -> None:
    builder.add("Transpose", list(node.inputs), node.name, perm=[0, *node.order])


def _expand(builder: Builder, node: Expand) -> None:
    builder.add("Expand", [*node.inputs, builder.integers(f"{node.name}:shape", [1, *node.shape])], node.name)


def _extremum(builder: Builder, node: Extremum) -> None:
    operator = "ReduceMax" if node.function == "maximum" else "ReduceMin"
    axes, keepdims = list(node.axes), {"keepdims": int(node.keepdim)}
    if builder.opset < 18:  # then they are an attribute
        builder.add(operator, list(node.inputs), node.name, axes=axes, **keepdims)
    else:
        builder.add(operator, [*node.inputs, builder.integers(f"{node.name}:axes", axes)], node.name, **keepdims)


def _shuffle(builder: Builder, node: ChannelShuffle) -> None:
    """Reshape, Transpose, Reshape."""
    channels, *space = node.shape_of()
    split = builder.integers(f"{node.name}:groups", [-1, node.groups, channels // node.groups, *space])
    whole = builder.integers(f"{node.name}:shape", [-1, channels, *space])
    grouped = builder.add("Reshape", [node.inputs[0], split], f"{node.name}:grouped")
    order = [0, 2, 1, *range(3, 3 + len(space))]
    shuffled = builder.add("Transpose", [grouped], f"{node.name}:shuffled", perm=order)
    builder.add("Reshape", [shuffled, whole], node.name)


def _shuffle_pixels(builder: Builder, node: PixelShuffle | PixelUnshuffle) -> None:
    """Reshape, Transpose, Reshape."""
    (kind,), steps = (
        builder.graph.input_types(node),
        shuffle_steps if isinstance(node, PixelShuffle) else unshuffle_steps,
    )
    split, order, whole = steps(known_shape(kind), node.factors)
    grouped = builder.reshape(node.inputs[0], split, f"{node.name}:grouped")
    shuffled = builder.add("Transpose", [grouped], f"{node.name}:shuffled", perm=[0, *order])
    builder.reshape(shuffled, whole, node.name)


def _take(builder: Builder, node: Take) -> None:
    """A Gather per dimension of which something is taken."""
    (x,), (kind,) = node.inputs, builder.graph.input_types(node)
    taken = node.indices(known_shape(kind))
    for number, (axis, places) in enumerate(taken.items(), 1):
        index = builder.integers(f"{node.name}:places{axis}", list(places))
        last = number == len(taken)
        x = builder.add("Gather", [x, index], node.name if last else f"{node.name}:taken{axis}", axis=axis)
    if not taken:
        builder.add("Identity", [x], node.name)
