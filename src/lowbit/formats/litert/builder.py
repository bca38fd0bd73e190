"""What a LiteRT file is made of: tensors, operators, and the layout in which channels come last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Operator
from ai_edge_litert.schema_py_generated import TensorType as Type

from lowbit.formats.registry import Lowerings
from lowbit.formats.xnnpack import carrier, zero_byte
from lowbit.integer.graph import Graph, Node, Pads, Shape, TensorType
from lowbit.integer.ops import Constant

_TYPES: dict[np.dtype, int] = {
    np.dtype(np.float32): Type.FLOAT32,
    np.dtype(np.int32): Type.INT32,
    np.dtype(np.int8): Type.INT8,
}
_VERSIONS = {
    Operator.CONV_2D: 6, Operator.DEPTHWISE_CONV_2D: 3, Operator.FULLY_CONNECTED: 12, Operator.DEQUANTIZE: 2,
    Operator.MAX_POOL_2D: 2, Operator.MINIMUM: 2, Operator.MAXIMUM: 2, Operator.CONCATENATION: 2, Operator.PAD: 2,
    Operator.PADV2: 2, Operator.REDUCE_MAX: 2, Operator.REDUCE_MIN: 2, Operator.STRIDED_SLICE: 2,
    Operator.TRANSPOSE: 2, Operator.GATHER: 2,
}  # fmt: skip
"""The operators' versions that take signed bytes (and groups, and scales per channel); others are at their first."""
_OPTIONS = {Operator.ADD: schema.AddOptionsT, Operator.MUL: schema.MulOptionsT, Operator.DIV: schema.DivOptionsT}


LOWERINGS = Lowerings("LiteRT")
"""Functions of a `Builder` and a node that write the node."""
INTEGERS = Lowerings("LiteRT's file of codes alone")
"""The same for files whose inputs and outputs are codes, too: LiteRT's operators on 8-bit tensors."""


def either(*kinds: type[Node]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that registers a function in both: for operations that move codes."""
    return lambda function: INTEGERS(*kinds)(LOWERINGS(*kinds)(function))


class _Buffer(schema.BufferT):
    """A buffer that starts at a multiple of 16 bytes, as the format asks; the generated class packs it unaligned."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        builder.Prep(16, 0 if self.data is None else len(self.data))
        return super().Pack(builder)


def layout(shape: Shape) -> Shape:
    """(C,) as it is; (C, L) as (1, L, C); (C, H, W) as (H, W, C)."""
    channels, *space = shape
    return (*[1] * (2 - len(space)), *space, channels) if space else (channels,)


def layout_axis(shape: Shape, axis: int) -> int:
    """Where a dimension of `shape` lies in its layout; both are counted with the batch as 0."""
    rank = len(layout(shape))
    return rank if axis == 1 else rank - len(shape) + axis - 1


def plane(values: Sequence, filler: object) -> list:
    """What belongs to one or two spatial dimensions, for height and width."""
    return [*[filler] * (2 - len(values)), *values]


def quantization(scale: list[float], zero: list[int], axis: int = 0) -> schema.QuantizationParametersT:
    """What a tensor's codes stand for: one scale and zero point, or one per index of `axis`."""
    return schema.QuantizationParametersT(scale=scale, zeroPoint=zero, quantizedDimension=axis)


def input_name(name: str) -> str:
    """What the tensor of a graph's input is called in the file."""
    return f"{name}:input"


class Builder:
    """Collects the tensors and operators of one graph; `done` makes the file's content.

    Tensors are named by their place in the file, an int.

    Args:
        graph: what is written.

    Attributes:
        values: the tensor of every input and of every node's codes (or float output), by name.
        versions: of operators, where they are not the first.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._tensors: list[schema.TensorT] = []
        self._buffers = [_Buffer()]  # the first is the empty one
        self._operators: list[schema.OperatorT] = []
        self._kinds: dict[int, int] = {}
        self._constants: dict[tuple, int] = {}
        self._steps: dict[str, int] = {}
        self._plain: dict[int, int] = {}
        self.values: dict[str, int] = {}
        self.versions = dict(_VERSIONS)

    def inputs(self, node: Node) -> list[int]:
        """The tensors of a node's inputs."""
        return [self.values[name] for name in node.inputs]

    def done(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file's content."""
        subgraph = schema.SubGraphT(self._tensors, list(inputs), list(outputs), self._operators, "lowbit")
        codes = [
            schema.OperatorCodeT(min(kind, 127), None, self.versions.get(kind, 1), kind) for kind in self._kinds
        ]  # the first field is the one older runtimes read
        model = schema.ModelT(3, codes, [subgraph], "lowbit", self._buffers)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    # ---------------------------------------------------------------- tensors

    def grid(self, y: TensorType) -> schema.QuantizationParametersT:
        """What the bytes of a tensor of codes stand for: here code − zero point, in other files the real value."""
        return quantization([1.0], [zero_byte(y)])

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: int = Type.FLOAT32,
        codes: schema.QuantizationParametersT | None = None,
    ) -> int:
        """A tensor with a batch dimension that may be resized."""
        self._tensors.append(schema.TensorT([1, *shape], kind, 0, name, codes, shapeSignature=[-1, *shape]))
        return len(self._tensors) - 1

    def constant(self, value: np.ndarray | np.generic, codes: schema.QuantizationParametersT | None = None) -> int:
        """A constant tensor; those without quantization are stored once by value."""
        value = np.asarray(value, order="C")
        key = (value.dtype, value.shape, value.tobytes())
        if codes is None and key in self._constants:
            return self._constants[key]
        tensor = self.stored(np.frombuffer(value.tobytes(), np.uint8), value.shape, _TYPES[value.dtype], codes)
        if codes is None:
            self._constants[key] = tensor
        return tensor

    def stored(
        self, content: np.ndarray, shape: Sequence[int], kind: int, codes: schema.QuantizationParametersT | None = None
    ) -> int:
        """A constant tensor of these bytes."""
        self._buffers.append(_Buffer(content))
        name, index = f":constant{len(self._buffers)}", len(self._buffers) - 1
        self._tensors.append(schema.TensorT(list(shape), kind, index, name, codes))
        return len(self._tensors) - 1

    def float_constant(self, name: str, codes: np.ndarray, scale: float) -> int:
        """scale · codes as float32, stored as int8; XNNPACK expands it once."""
        stored = self.constant(codes, quantization([scale], [0]))
        self._tensors.append(schema.TensorT(list(codes.shape), Type.FLOAT32, 0, name))
        return self.add(Operator.DEQUANTIZE, [stored], len(self._tensors) - 1, schema.DequantizeOptionsT())

    def integers(self, values: Sequence[int]) -> int:
        """A constant of int32."""
        return self.constant(np.array(values, np.int32))

    def shape(self, tensor: int) -> Shape:
        """A tensor's shape without the batch."""
        shape = self._tensors[tensor].shape
        assert shape is not None  # `tensor` gives every tensor one
        return tuple(shape[1:])

    def like(self, x: int, name: str, shape: Sequence[int]) -> int:
        """A tensor of x's type in another shape."""
        return self.tensor(name, shape, self._tensors[x].type, self._tensors[x].quantization)

    def rename(self, tensor: int, name: str) -> None:
        """Give a tensor another name."""
        self._tensors[tensor].name = name

    def constant_codes(self, node: Constant) -> int:
        """A constant's codes, one sample of them, with the node's name."""
        y, shape = node.codes_of(), node.shape_of()
        codes = (node.codes + carrier(y)).numpy().astype(np.int8)
        if len(shape) > 1:
            codes = np.moveaxis(codes, 0, -1).reshape(layout(shape))
        tensor = self.constant(codes[None], self.grid(y))
        self.rename(tensor, node.name)
        return tensor

    # ---------------------------------------------------------------- operators

    def add(self, operator: int, inputs: list[int], output: int, options: Any = None) -> int:
        """Append an operator and return its output."""
        index = self._kinds.setdefault(operator, len(self._kinds))
        written = schema.OperatorT(index, inputs, [output])
        if options is not None:
            written.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
            written.builtinOptions = options
        self._operators.append(written)
        return output

    def binary(self, operator: int, a: int, b: int, name: str) -> int:
        """ADD, MUL or DIV of two float tensors, which broadcast against each other."""
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        return self.add(operator, [a, b], self.tensor(name, shape), _OPTIONS[operator]())

    def reshape(self, x: int, output: int) -> int:
        """RESHAPE to the shape of `output`."""
        shape = self.integers([-1, *self.shape(output)])
        return self.add(Operator.RESHAPE, [x, shape], output, schema.ReshapeOptionsT())

    def transpose(self, x: int, order: Sequence[int], output: int) -> int:
        """TRANSPOSE; `order` counts the batch as 0."""
        return self.add(Operator.TRANSPOSE, [x, self.integers(order)], output, schema.TransposeOptionsT())

    def plain(self, name: str, tensor: int | None = None) -> int:
        """A node's codes, or a tensor that holds them in another type, in the order of axes of its shape."""
        tensor = self.values[name] if tensor is None else tensor
        if tensor not in self._plain:
            self._plain[tensor] = self.channels_first(
                tensor, f"{name}:plain{tensor}", self.graph.by_name[name].shape_of()
            )
        return self._plain[tensor]

    def aligned(self, node: Node, name: str, tensor: int) -> int:
        """The tensor of one of a node's inputs, in the layout of a shape with as many dimensions as the node's."""
        rank, shape = len(node.shape_of()), self.graph.by_name[name].shape_of()
        if len(shape) == rank:
            return tensor
        whole, place = (1,) * (rank - len(shape)) + shape, f"{node.name}:{name}"
        flat = self.reshape(self.plain(name, tensor), self.like(tensor, f"{place}:aligned{tensor}", whole))
        return self.channels_last(flat, f"{place}:layout{tensor}", whole)

    def with_rank(self, x: int, rank: int, name: str) -> int:
        """x with dimensions of size 1 before its own."""
        shape: Shape = self.shape(x)
        if len(shape) == rank:
            return x
        return self.reshape(x, self.like(x, name, (1,) * (rank - len(shape)) + shape))

    def channels_first(self, x: int, name: str, shape: Shape) -> int:
        """x, of the layout of `shape`, in the order of axes of `shape` itself."""
        if len(shape) == 1:
            return x
        channels, *space = shape
        if channels > 1 and math.prod(space) > 1:
            order, whole = [0, 3, 1, 2], (channels, *plane(space, 1))
            x = self.transpose(x, order, self.like(x, f"{name}:transposed", whole))
        return self.reshape(x, self.like(x, name, shape))

    def channels_last(self, x: int, name: str, shape: Shape) -> int:
        """x, of `shape`, in the layout of `shape`."""
        if len(shape) == 1:
            return x
        channels, *space = shape
        if channels > 1 and math.prod(space) > 1:
            x = self.reshape(x, self.like(x, f"{name}:plane", (channels, *plane(space, 1))))
            return self.transpose(x, [0, 2, 3, 1], self.like(x, name, layout(shape)))
        return self.reshape(x, self.like(x, name, layout(shape)))

    # ---------------------------------------------------------------- codes

    def codes(
        self,
        node: Node,
        operator: int,
        inputs: list[int],
        options: Any = None,
        *,
        clip: bool = False,
        shape: Shape | None = None,
    ) -> None:
        """The operator that makes the node's codes, and (with clip) what holds them in their range.

        By default in its layout.
        """
        y, shape = node.codes_of(), shape or layout(node.shape_of())
        ends = []
        if clip and y.qp + carrier(y) < 127:
            ends.append((Operator.MINIMUM, y.qp))
        if clip and y.qn + carrier(y) > -128:
            ends.append((Operator.MAXIMUM, y.qn))
        names = [f"{node.name}:byte{number}" for number in range(len(ends))] + [node.name]
        made = [self.tensor(name, shape, Type.INT8, self.grid(y)) for name in names]
        self.add(operator, inputs, made[0], options)
        for (limit, code), before, after in zip(ends, made, made[1:]):
            end = self.constant(np.array([code + carrier(y)], np.int8), self.grid(y))
            self.add(limit, [before, end], after, schema.MaximumMinimumOptionsT())
        self.values[node.name] = made[-1]

    def in_layout(self, node: Node, plain: int) -> None:
        """The node's codes from a tensor of them in the order of axes of its shape."""
        self.rename(plain, f"{node.name}:ordered")
        self.values[node.name] = self.channels_last(plain, f"{node.name}:layout", node.shape_of())
        self.rename(self.values[node.name], node.name)

    def quantize(self, node: Node, steps: int) -> None:
        """The node's codes from a float tensor of code − zero point: clip(rint(steps) + z)."""
        self.codes(node, Operator.QUANTIZE, [steps], schema.QuantizeOptionsT(), clip=True)

    def dequantize(self, x: int, name: str) -> int:
        """The float tensor code − zero point of a tensor of codes."""
        return self.add(Operator.DEQUANTIZE, [x], self.tensor(name, self.shape(x)), schema.DequantizeOptionsT())

    def steps(self, name: str) -> int:
        """The float tensor code − zero point of a node, made once."""
        if name not in self._steps:
            self._steps[name] = self.dequantize(self.values[name], f"{name}:steps")
        return self._steps[name]

    def index(self, node: Node, x: int, number: int = 0) -> int:
        """The bytes u = code + offset as int32."""
        shape = self.shape(x)
        wide = self.tensor(f"{node.name}:wide{number}", shape, Type.INT32)
        self.add(Operator.CAST, [x], wide, schema.CastOptionsT(Type.INT8, Type.INT32))
        output = self.tensor(f"{node.name}:index{number}", shape, Type.INT32)
        return self.add(Operator.ADD, [wide, self.integers([128])], output, schema.AddOptionsT())

    def padded(self, node: Node, x: int, padding: Pads, fill: int | None = None) -> int:
        """x (H, W, C) with height and width padded by zero points, or by the byte `fill`."""
        shape = self.shape(x)
        sizes = [before + size + after for size, (before, after) in zip(shape, padding)]
        output = self.like(x, f"{node.name}:padded", (*sizes, shape[-1]))
        pads = self.constant(np.array([(0, 0), *padding, (0, 0)], np.int32))
        if fill is None:
            return self.add(Operator.PAD, [x, pads], output, schema.PadOptionsT())
        value = self.constant(np.array([fill], np.int8), self._tensors[x].quantization)
        return self.add(Operator.PADV2, [x, pads, value], output, schema.PadV2OptionsT())


class FloatOperators:
    """The operators of `Elementwise` in LiteRT, on float32 tensors.

    Args:
        builder: collects them.
        node: whose operators they are; the names of their tensors begin with its name.
    """

    def __init__(self, builder: Builder, node: Node) -> None:
        self._builder, self._node, self._count = builder, node, 0

    def _binary(self, operator: int, a: int, b: int) -> int:
        self._count += 1
        return self._builder.binary(operator, a, b, f"{self._node.name}:float{self._count}")

    def constant(self, value: float) -> int:
        return self._builder.constant(np.array([value], np.float32))

    def add(self, a: int, b: int) -> int:
        return self._binary(Operator.ADD, a, b)

    def multiply(self, a: int, b: int) -> int:
        return self._binary(Operator.MUL, a, b)
