"""LiteRT (TensorFlow Lite): a .tflite file whose codes, through the XNNPACK delegate, are those of the integer reference.

The codes' carriers and the arithmetic are those of `xnnpack`. LiteRT applies the delegate by default; its other kernels round
in other ways, so that codes differ by 1 there. Codes of fewer than 8 bits are held in their range by MINIMUM and MAXIMUM on
bytes. A table is a GATHER; so is an addition for which no pair of float32 factors gives the code of `ir` for every pair of
input codes, from a table of all pairs.

Input and output are float32 in the network's own order of axes; in between, channels come last. The batch may be resized.
The tensor that holds a node's codes carries the node's name; every other name has a colon in it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Operator
from ai_edge_litert.schema_py_generated import Padding
from ai_edge_litert.schema_py_generated import TensorType as Type

from lowbit.errors import LowbitError
from lowbit.files import atomic_write
from lowbit.formats import pairs, xnnpack
from lowbit.formats.pairs import f32
from lowbit.formats.xnnpack import zero_byte
from lowbit.integer.ir import (
    Add,
    AveragePool,
    ChannelShuffle,
    Concatenate,
    Convolution,
    FloatType,
    GlobalAveragePool,
    Graph,
    Linear,
    Lookup,
    MaxPool,
    Multiply,
    Node,
    PadChannels,
    Quantize,
    Requantize,
    Reshape,
    Slice,
    TensorType,
)

_TYPES = {np.dtype(np.float32): Type.FLOAT32, np.dtype(np.int32): Type.INT32, np.dtype(np.int8): Type.INT8}
_VERSIONS = {
    Operator.CONV_2D: 6, Operator.DEPTHWISE_CONV_2D: 3, Operator.FULLY_CONNECTED: 12, Operator.DEQUANTIZE: 2,
    Operator.MAX_POOL_2D: 2, Operator.MINIMUM: 2, Operator.MAXIMUM: 2, Operator.CONCATENATION: 2, Operator.PAD: 2,
    Operator.PADV2: 2, Operator.STRIDED_SLICE: 2, Operator.TRANSPOSE: 2, Operator.GATHER: 2,
}  # fmt: skip
"""The operators' versions that take signed bytes (and groups, and scales per channel); the others are at their first."""


def build(graph: Graph) -> bytes:
    """The file's content for a validated graph. Raises LowbitError for what has no exact form; the message names the node."""
    writer = _Writer(graph)
    for node in graph.nodes:
        writer.write(node)
    return writer.done()


def write(graph: Graph, path: str | os.PathLike) -> None:
    """Write a validated graph to `path`. Raises as `build`."""
    content = build(graph)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


class _Buffer(schema.BufferT):
    """A buffer that starts at a multiple of 16 bytes, as the format asks; the generated class packs it unaligned."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        builder.Prep(16, 0 if self.data is None else len(self.data))
        return super().Pack(builder)


def _layout(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C,) as it is; (C, L) as (1, L, C); (C, H, W) as (H, W, C)."""
    channels, *space = shape
    return (*[1] * (2 - len(space)), *space, channels) if space else (channels,)


def _plane(pairs: Sequence, filler: object) -> list:
    """What belongs to one or two spatial dimensions, for height and width."""
    return [*[filler] * (2 - len(pairs)), *pairs]


class _Writer:
    """Collects the tensors and operators of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors: list[schema.TensorT] = []
        self.buffers = [_Buffer()]  # the first is the empty one
        self.operators: list[schema.OperatorT] = []
        self.kinds: dict[int, int] = {}
        self.constants: dict[tuple, int] = {}
        self.real: dict[str, int] = {}
        self.values = {graph.input: self.tensor(f"{graph.input}:input", graph.input_shape)}

    def done(self) -> bytes:
        output = self.graph.by_name[self.graph.output]
        result, shape = self.values[output.name], output.type.shape
        if isinstance(output.type, TensorType):
            real, scale = self.steps(output.name), self.constant(np.float32(output.type.scale))
            result = self.add(Operator.MUL, [real, scale], self.tensor(f"{output.name}:real", _layout(shape)))
        result = self.channels_first(result, f"{self.graph.output}:output", shape)
        subgraph = schema.SubGraphT(self.tensors, [self.values[self.graph.input]], [result], self.operators, "lowbit")
        codes = [
            schema.OperatorCodeT(min(kind, 127), None, _VERSIONS.get(kind, 1), kind) for kind in self.kinds
        ]  # the first field is the one older runtimes read
        model = schema.ModelT(3, codes, [subgraph], "lowbit", self.buffers)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    # ---------------------------------------------------------------- tensors and operators

    def tensor(self, name: str, shape: Sequence[int], kind: int = Type.FLOAT32, zero: int | None = None) -> int:
        """A tensor with a batch dimension that may be resized; with a zero point, of codes."""
        quantization = None if zero is None else _quantization([1.0], [zero])
        self.tensors.append(schema.TensorT([1, *shape], kind, 0, name, quantization, shapeSignature=[-1, *shape]))
        return len(self.tensors) - 1

    def constant(self, value: np.ndarray, quantization: schema.QuantizationParametersT | None = None) -> int:
        """A constant tensor; those without quantization are stored once by value."""
        value = np.asarray(value, order="C")
        key = (value.dtype, value.shape, value.tobytes())
        if quantization is None and key in self.constants:
            return self.constants[key]
        self.buffers.append(_Buffer(np.frombuffer(value.tobytes(), np.uint8)))
        name = f":constant{len(self.buffers)}"
        kind, index = _TYPES[value.dtype], len(self.buffers) - 1
        self.tensors.append(schema.TensorT(list(value.shape), kind, index, name, quantization))
        if quantization is None:
            self.constants[key] = len(self.tensors) - 1
        return len(self.tensors) - 1

    def float_constant(self, name: str, codes: np.ndarray, scale: float) -> int:
        """scale · codes as float32, stored as int8; XNNPACK expands it once."""
        stored = self.constant(codes, _quantization([scale], [0]))
        self.tensors.append(schema.TensorT(list(codes.shape), Type.FLOAT32, 0, name))
        return self.add(Operator.DEQUANTIZE, [stored], len(self.tensors) - 1, schema.DequantizeOptionsT())

    def integers(self, values: Sequence[int]) -> int:
        return self.constant(np.array(values, np.int32))

    def add(self, operator: int, inputs: list[int], output: int, options: object = None) -> int:
        """Append an operator and return its output."""
        index = self.kinds.setdefault(operator, len(self.kinds))
        written = schema.OperatorT(index, inputs, [output])
        if options is not None:
            written.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
            written.builtinOptions = options
        self.operators.append(written)
        return output

    def shape(self, index: int) -> tuple[int, ...]:
        """A tensor's shape without the batch."""
        return tuple(self.tensors[index].shape[1:])

    def binary(self, operator: int, a: int, b: int, name: str) -> int:
        options = {Operator.ADD: schema.AddOptionsT, Operator.MUL: schema.MulOptionsT, Operator.DIV: schema.DivOptionsT}
        return self.add(operator, [a, b], self.tensor(name, self.shape(a)), options[operator]())

    def reshape(self, x: int, output: int) -> int:
        return self.add(
            Operator.RESHAPE, [x, self.integers([-1, *self.shape(output)])], output, schema.ReshapeOptionsT()
        )

    def transpose(self, x: int, order: Sequence[int], output: int) -> int:
        return self.add(Operator.TRANSPOSE, [x, self.integers(order)], output, schema.TransposeOptionsT())

    def like(self, x: int, name: str, shape: Sequence[int]) -> int:
        """A tensor of x's type in another shape."""
        kind, quantization = self.tensors[x].type, self.tensors[x].quantization
        return self.tensor(name, shape, kind, None if quantization is None else quantization.zeroPoint[0])

    def channels_first(self, x: int, name: str, shape: tuple[int, ...]) -> int:
        """x, of the layout of `shape`, in the order of axes of `shape` itself."""
        if len(shape) == 1:
            return x
        channels, *space = shape
        if channels > 1 and math.prod(space) > 1:
            plane = _plane(space, 1)
            x = self.transpose(x, [0, 3, 1, 2], self.like(x, f"{name}:transposed", (channels, *plane)))
        return self.reshape(x, self.like(x, name, shape))

    def channels_last(self, x: int, name: str, shape: tuple[int, ...]) -> int:
        """x, of `shape`, in the layout of `shape`."""
        if len(shape) == 1:
            return x
        channels, *space = shape
        if channels > 1 and math.prod(space) > 1:
            x = self.reshape(x, self.like(x, f"{name}:plane", (channels, *_plane(space, 1))))
            return self.transpose(x, [0, 2, 3, 1], self.like(x, name, _layout(shape)))
        return self.reshape(x, self.like(x, name, _layout(shape)))

    # ---------------------------------------------------------------- codes

    def codes(
        self, node: Node, operator: int, inputs: list[int], options: object = None, *, clip: bool = False
    ) -> None:
        """The operator that makes the node's codes, and (with clip) what holds them in their range."""
        y = node.type
        ends = []
        if clip and y.qp + xnnpack.carrier(y) < 127:
            ends.append((Operator.MINIMUM, y.qp))
        if clip and y.qn + xnnpack.carrier(y) > -128:
            ends.append((Operator.MAXIMUM, y.qn))
        names = [f"{node.name}:byte{number}" for number in range(len(ends))] + [node.name]
        made = [self.tensor(name, _layout(y.shape), Type.INT8, zero_byte(y)) for name in names]
        self.add(operator, inputs, made[0], options)
        for (limit, code), before, after in zip(ends, made, made[1:]):
            end = self.constant(np.array([code + xnnpack.carrier(y)], np.int8), _quantization([1.0], [zero_byte(y)]))
            self.add(limit, [before, end], after, schema.MaximumMinimumOptionsT())
        self.values[node.name] = made[-1]

    def quantize(self, node: Node, steps: int) -> None:
        """The codes of a float tensor of code − zero point."""
        self.codes(node, Operator.QUANTIZE, [steps], schema.QuantizeOptionsT(), clip=True)

    def steps(self, name: str) -> int:
        """The float tensor code − zero point of a node."""
        if name not in self.real:
            output = self.tensor(f"{name}:steps", self.shape(self.values[name]))
            self.real[name] = self.add(Operator.DEQUANTIZE, [self.values[name]], output, schema.DequantizeOptionsT())
        return self.real[name]

    def index(self, node: Node, x: int, number: int = 0) -> int:
        """The bytes u = code + offset as int32."""
        shape = self.shape(x)
        wide = self.tensor(f"{node.name}:wide{number}", shape, Type.INT32)
        self.add(Operator.CAST, [x], wide, schema.CastOptionsT(Type.INT8, Type.INT32))
        output = self.tensor(f"{node.name}:index{number}", shape, Type.INT32)
        return self.add(Operator.ADD, [wide, self.integers([128])], output, schema.AddOptionsT())

    def padded(self, node: Node, x: int, padding: Sequence[tuple[int, int]], fill: int | None = None) -> int:
        """x (H, W, C) with height and width padded by zero points, or by the byte `fill`."""
        shape = self.shape(x)
        sizes = [before + size + after for size, (before, after) in zip(shape, padding)]
        output = self.like(x, f"{node.name}:padded", (*sizes, shape[-1]))
        pads = self.constant(np.array([(0, 0), *padding, (0, 0)], np.int32))
        if fill is None:
            return self.add(Operator.PAD, [x, pads], output, schema.PadOptionsT())
        zero = self.tensors[x].quantization.zeroPoint[0]
        value = self.constant(np.array([fill], np.int8), _quantization([1.0], [zero]))
        return self.add(Operator.PADV2, [x, pads, value], output, schema.PadV2OptionsT())

    # ---------------------------------------------------------------- nodes

    def write(self, node: Node) -> None:
        if len(node.type.shape) > 3:
            raise LowbitError(f"node {node.name!r}: LiteRT's file holds one and two spatial dimensions, not three")
        types = [self.graph.by_name[name].type for name in node.inputs if name in self.graph.by_name]
        inputs = [self.values[name] for name in node.inputs]
        if isinstance(node, Quantize):
            x = self.channels_last(inputs[0], f"{node.name}:image", self.graph.input_shape)
            scale = self.constant(np.array([node.type.scale], np.float32))
            self.quantize(node, self.binary(Operator.DIV, x, scale, f"{node.name}:scaled"))
        elif isinstance(node, Convolution | Linear):
            if isinstance(node.type, FloatType):
                self.float_layer(node, inputs[0], types[0])
            else:
                self.layer(node, inputs[0], xnnpack.layer(node, types[0]))
        elif isinstance(node, Requantize) and len(types[0].shape) == 1:
            factor = self.constant((f32(types[0].scale) / f32(node.type.scale)).numpy().reshape(1))
            self.quantize(node, self.binary(Operator.MUL, self.steps(node.inputs[0]), factor, f"{node.name}:product"))
        elif isinstance(node, AveragePool | GlobalAveragePool | Requantize):
            self.layer(node, inputs[0], xnnpack.ones_layer(node, types[0]))
        elif isinstance(node, Add):
            self.addition(node, *types)
        elif isinstance(node, Multiply):
            self.product(node, *types)
        elif isinstance(node, Lookup):
            table = self.constant(xnnpack.table(node, types[0]).numpy(), _quantization([1.0], [zero_byte(node.type)]))
            self.codes(node, Operator.GATHER, [table, self.index(node, inputs[0])], schema.GatherOptionsT())
        elif isinstance(node, Concatenate):
            axis = len(_layout(node.type.shape))
            self.codes(node, Operator.CONCATENATION, inputs, schema.ConcatenationOptionsT(axis))
        elif isinstance(node, MaxPool):
            self.max_pool(node, inputs[0], types[0])
        elif isinstance(node, Reshape):
            plain = self.channels_first(inputs[0], f"{node.name}:plain", types[0].shape)
            flat = self.reshape(plain, self.like(plain, f"{node.name}:reshaped", node.type.shape))
            self.values[node.name] = self.channels_last(flat, node.name, node.type.shape)
            self.tensors[self.values[node.name]].name = node.name
        elif isinstance(node, Slice):
            self.slice(node, inputs[0], types[0])
        elif isinstance(node, PadChannels):
            rank = len(_layout(node.type.shape))
            pads = self.constant(np.array([*[(0, 0)] * rank, (node.before, node.after)], np.int32))
            self.codes(node, Operator.PAD, [inputs[0], pads], schema.PadOptionsT())
        elif isinstance(node, ChannelShuffle):
            self.shuffle(node, inputs[0])
        else:
            raise LowbitError(f"node {node.name!r}: LiteRT has no form of {type(node).__name__}")

    def layer(self, node: Node, x: int, layer: xnnpack.Layer) -> None:
        """An integer convolution or fully connected layer."""
        operator, x, codes, axis, options = self.window(node, x, layer)
        scale, zeros = layer.scale.tolist(), [0] * len(layer.scale)
        bias = np.zeros(len(zeros), np.int32) if layer.bias is None else layer.bias.numpy()
        weight = self.constant(codes, _quantization(scale, zeros, axis))
        inputs = [x, weight, self.constant(bias, _quantization(scale, zeros))]
        self.codes(node, operator, inputs, options, clip=True)

    def window(self, node: Node, x: int, layer: xnnpack.Layer) -> tuple[int, int, np.ndarray, int, object]:
        """(operator, padded x, weight codes in its order, their axis of output channels, options) of a layer."""
        codes = layer.codes.numpy()
        if codes.ndim == 2:
            return Operator.FULLY_CONNECTED, x, codes, 0, schema.FullyConnectedOptionsT()
        codes = codes.reshape(*codes.shape[:2], *_plane(codes.shape[2:], 1))
        stride, dilation, pads = _plane(layer.stride, 1), _plane(layer.dilation, 1), _plane(layer.padding, (0, 0))
        padding = Padding.VALID
        if any(map(any, pads)):
            if pads == _same(self.shape(x)[:2], codes.shape[2:], stride, dilation):
                padding = Padding.SAME
            else:
                x = self.padded(node, x, pads)
        # The schema's fields put width before height.
        how = {"padding": padding, "strideW": stride[1], "strideH": stride[0]}
        how |= {"dilationWFactor": dilation[1], "dilationHFactor": dilation[0]}
        if layer.groups > 1 and codes.shape[1] == 1:
            options = schema.DepthwiseConv2DOptionsT(depthMultiplier=len(codes) // layer.groups, **how)
            return Operator.DEPTHWISE_CONV_2D, x, codes.transpose(1, 2, 3, 0), 3, options
        return Operator.CONV_2D, x, codes.transpose(0, 2, 3, 1), 0, schema.Conv2DOptionsT(**how)

    def float_layer(self, node: Convolution | Linear, x: int, kind: TensorType) -> None:
        """The accumulator as float32 sums of integers, times its scale."""
        summands, scale = xnnpack.float_layer(node, kind)
        how = {}
        if isinstance(node, Convolution):
            how = {"stride": node.stride, "padding": node.padding, "dilation": node.dilation, "groups": node.groups}
        operator, x, _, _, options = self.window(node, x, xnnpack.Layer(node.weight.codes, scale, None, **how))
        shape = _layout(node.type.shape)
        steps = self.tensor(f"{node.name}:steps", self.shape(x))
        self.add(Operator.DEQUANTIZE, [x], steps, schema.DequantizeOptionsT())
        total = None
        for number, (codes, factor, bias) in enumerate(summands):
            codes = self.window(node, x, xnnpack.Layer(codes, scale, None, **how | {"padding": ()}))[2]
            weight = self.float_constant(f"{node.name}:weight{number}", codes, float(factor))
            bias = np.zeros(len(scale)) if bias is None else bias.numpy()
            part = self.tensor(f"{node.name}:sum{number}", shape)
            self.add(operator, [steps, weight, self.constant(bias.astype(np.float32))], part, options)
            total = part if total is None else self.binary(Operator.ADD, total, part, f"{node.name}:accumulator")
        self.values[node.name] = self.binary(Operator.MUL, total, self.constant(scale.numpy()), f"{node.name}:scaled")

    def max_pool(self, node: MaxPool, x: int, kind: TensorType) -> None:
        stride, pads, kernel = _plane(node.stride, 1), _plane(node.padding, (0, 0)), _plane(node.kernel, 1)
        if any(d > 1 for d in node.dilation):
            raise LowbitError(f"node {node.name!r}: LiteRT has no maximum pooling with dilation {node.dilation}")
        if any(map(any, pads)):
            x = self.padded(node, x, pads, fill=kind.qn + xnnpack.carrier(kind))  # the lowest code, which never wins
        options = schema.Pool2DOptionsT(Padding.VALID, stride[1], stride[0], kernel[1], kernel[0])
        self.codes(node, Operator.MAX_POOL_2D, [x], options)

    def slice(self, node: Slice, x: int, kind: TensorType) -> None:
        shape = self.shape(x)
        axis = len(shape) if node.axis == 1 else len(shape) - len(kind.shape) + node.axis - 1
        begin, end, step = [0] * (len(shape) + 1), [1, *shape], [1] * (len(shape) + 1)
        begin[axis], end[axis], step[axis] = node.start, node.stop, node.step
        inputs = [x, *map(self.integers, (begin, end, step))]
        # Bit 0 of the masks: the whole batch.
        self.codes(node, Operator.STRIDED_SLICE, inputs, schema.StridedSliceOptionsT(beginMask=1, endMask=1))

    def shuffle(self, node: ChannelShuffle, x: int) -> None:
        *space, channels = self.shape(x)
        split = (*space, node.groups, channels // node.groups)
        grouped = self.reshape(x, self.like(x, f"{node.name}:grouped", split))
        rank = len(space) + 3
        swapped = self.like(x, f"{node.name}:shuffled", (*split[:-2], split[-1], split[-2]))
        order = [*range(rank - 2), rank - 1, rank - 2]
        self.values[node.name] = self.reshape(
            self.transpose(grouped, order, swapped), self.like(x, node.name, (*space, channels))
        )

    # ---------------------------------------------------------------- two tensors

    def addition(self, node: Add, a: TensorType, b: TensorType) -> None:
        factors = xnnpack.plain_factors(node, a, b)
        if factors is not None:
            parts = [
                self.binary(
                    Operator.MUL,
                    self.steps(name),
                    self.constant(factor.numpy().reshape(1)),
                    f"{node.name}:part{number}",
                )
                for number, (name, factor) in enumerate(zip(node.inputs, factors))
            ]
            self.quantize(node, self.binary(Operator.ADD, *parts, f"{node.name}:sum"))
            return
        y, shape = node.type, _layout(node.type.shape)
        codes = np.zeros((256, 256), np.int8)
        rows, columns = (slice(t.qn + t.carrier_offset, t.qp + t.carrier_offset + 1) for t in (a, b))
        codes[rows, columns] = (pairs.sums(node, a, b) + xnnpack.carrier(y)).numpy().astype(np.int8)
        first, second = (self.index(node, self.values[name], number) for number, name in enumerate(node.inputs))
        high = self.tensor(f"{node.name}:high", shape, Type.INT32)
        self.add(Operator.MUL, [first, self.integers([256])], high, schema.MulOptionsT())
        pair = self.tensor(f"{node.name}:pair", shape, Type.INT32)
        self.add(Operator.ADD, [high, second], pair, schema.AddOptionsT())
        table = self.constant(codes.reshape(-1), _quantization([1.0], [zero_byte(y)]))
        self.codes(node, Operator.GATHER, [table, pair], schema.GatherOptionsT())

    def product(self, node: Multiply, a: TensorType, b: TensorType) -> None:
        """Rounded in bytes, with the zero point: it decides which way a half goes."""
        zero = np.array([node.type.zero_point + node.type.carrier_offset], np.float32)
        m = self.constant(pairs.product_factor(node, a, b).numpy().reshape(1))
        n = self.binary(Operator.MUL, *map(self.steps, node.inputs), f"{node.name}:product")
        total = self.binary(Operator.MUL, n, m, f"{node.name}:scaled")
        total = self.binary(Operator.ADD, total, self.constant(zero), f"{node.name}:total")
        rounded = self.add(Operator.ROUND, [total], self.tensor(f"{node.name}:rounded", self.shape(total)))
        self.quantize(node, self.binary(Operator.ADD, rounded, self.constant(-zero), f"{node.name}:moved"))


def _quantization(scale: list[float], zero: list[int], axis: int = 0) -> schema.QuantizationParametersT:
    return schema.QuantizationParametersT(scale=scale, zeroPoint=zero, quantizedDimension=axis)


def _same(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list:
    """(before, after) per dimension of what LiteRT calls SAME."""
    pads = []
    for n, k, s, d in zip(size, kernel, stride, dilation):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        pads.append((total // 2, total - total // 2))
    return pads
