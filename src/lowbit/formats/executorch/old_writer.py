"""ExecuTorch for phones: a .pte file whose layers run in XNNPACK's integer kernels, with the codes of the integer reference.

The codes' carriers and the arithmetic are those of `xnnpack`. A hardtanh before each quantization holds the codes' range, which
XNNPACK would otherwise take to be the whole byte. Changes of grid are float32 operators on integers. An addition for which no
pair of float32 factors gives the code of `ir` for every pair of input codes is computed in float64, outside XNNPACK; so are
tables, by an index. The file takes one sample at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchProgramManager, to_edge_transform_and_lower
from torch import Tensor, nn
from torch.nn import functional as F

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

_ROUNDER = 12582912.0
"""1.5 · 2^23: adding it to a float32 of magnitude below 2^22 rounds it to an integer, half to even."""

_q = torch.ops.quantized_decomposed


def build(graph: Graph, outputs: Sequence[str] = ()) -> ExecutorchProgramManager:
    """The program of a validated graph, for one sample: the graph's output, then the codes of the nodes named in `outputs`.

    Codes come out as the signed bytes that the module's docstring describes.
    Raises LowbitError for what XNNPACK has no exact form of; the message names the node.
    """
    module = _Network(graph, tuple(outputs)).eval()
    exported = torch.export.export(module, (torch.zeros(1, *graph.input_shape),))
    return to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()


def write(graph: Graph, path: str | os.PathLike) -> None:
    """Write a validated graph to `path`. Raises as `build`."""
    program = build(graph)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        program.write_to_file(file)


class _Step(nn.Module):
    """One node: a function of its input tensors and its constants."""

    def __init__(self, function: Callable[..., Tensor], **constants: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in constants.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, **dict(self.named_buffers()))


class _Network(nn.Module):
    """The graph as torch operators, in the patterns that ExecuTorch's partitioner knows."""

    def __init__(self, graph: Graph, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.graph, self.outputs = graph, outputs
        types = {node.name: node.type for node in graph.nodes}
        self.steps = nn.ModuleList(_step(n, [types[i] for i in n.inputs if i in types]) for n in graph.nodes)
        last = types[graph.output]
        scale = last.scale if isinstance(last, TensorType) else 1.0
        self.register_buffer("output_scale", f32(scale).reshape(1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = {self.graph.input: x}
        for node, step in zip(self.graph.nodes, self.steps):
            values[node.name] = step(*(values[name] for name in node.inputs))
        result, kind = values[self.graph.output], self.graph.by_name[self.graph.output].type
        if isinstance(kind, TensorType):
            result = _steps(result, kind) * self.output_scale
        return (result, *(values[name] for name in self.outputs))


# ---------------------------------------------------------------- codes


def _steps(carrier: Tensor, kind: TensorType) -> Tensor:
    """code − zero_point as float32."""
    return _q.dequantize_per_tensor(carrier, 1.0, zero_byte(kind), -128, 127, torch.int8)


def _quantize(steps: Tensor, y: TensorType) -> Tensor:
    """The signed byte of clip(rint(steps) + z_y)."""
    if (y.qn, y.qp) != (-y.carrier_offset, 255 - y.carrier_offset):
        steps = F.hardtanh(steps, float(y.qn - y.zero_point), float(y.qp - y.zero_point))
    return _q.quantize_per_tensor(steps, 1.0, zero_byte(y), -128, 127, torch.int8)


# ---------------------------------------------------------------- nodes


def _step(node: Node, types: list) -> _Step:
    y = node.type
    if isinstance(node, Quantize):
        return _Step(lambda x, scale: _quantize(x / scale, y), scale=f32(y.scale).reshape(1))
    if isinstance(node, Convolution | Linear):
        return (
            _float_layer(node, types[0])
            if isinstance(y, FloatType)
            else _layer(node, types[0], xnnpack.layer(node, types[0]))
        )
    if isinstance(node, AveragePool | GlobalAveragePool):
        return _layer(node, types[0], xnnpack.ones_layer(node, types[0]))
    if isinstance(node, Add):
        return _add(node, *types)
    if isinstance(node, Multiply):
        return _multiply(node, *types)
    if isinstance(node, Requantize):
        m = f32(types[0].scale) / f32(y.scale)
        return _Step(lambda x, m: _quantize(_steps(x, types[0]) * m, y), m=m.reshape(1))
    if isinstance(node, Lookup):
        return _Step(lambda x, table: table[x.to(torch.int64) + 128], table=xnnpack.table(node, types[0]))
    if isinstance(node, Concatenate):
        return _Step(lambda *x: _quantize(torch.cat([_steps(each, y) for each in x], 1), y))
    if isinstance(node, MaxPool):
        return _max_pool(node, types[0])
    if isinstance(node, Reshape):
        return _Step(lambda x: x.reshape(len(x), *y.shape))
    if isinstance(node, Slice):
        return _Step(lambda x: torch.ops.aten.slice(x, node.axis, node.start, node.stop, node.step))
    if isinstance(node, PadChannels):
        sizes = [*[0, 0] * (len(y.shape) - 1), node.before, node.after]
        return _Step(lambda x: _quantize(F.pad(_steps(x, y), sizes), y))
    if isinstance(node, ChannelShuffle):
        return _Step(lambda x: x.unflatten(1, (node.groups, -1)).transpose(1, 2).flatten(1, 2))
    raise LowbitError(f"node {node.name!r}: ExecuTorch has no form of {type(node).__name__}")


def _dimensions(node: Node, space: int, *functions: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function for one or for two spatial dimensions."""
    if space > len(functions):
        raise LowbitError(f"node {node.name!r}: XNNPACK has one and two spatial dimensions, not {space}")
    return functions[space - 1]


def _layer(node: Node, x: TensorType, layer: xnnpack.Layer) -> _Step:
    """An integer convolution or linear layer in the pattern for XNNPACK."""
    y, space = node.type, layer.codes.ndim - 2
    constants = {"codes": layer.codes, "scale": layer.scale, "zero": torch.zeros(len(layer.codes), dtype=torch.int64)}
    if layer.bias is not None:
        real = layer.bias.to(torch.float32) * layer.scale
        if not torch.equal(torch.round(real * (1.0 / layer.scale)).to(torch.int32), layer.bias):
            raise LowbitError(
                f"node {node.name!r}: its bias reaches {int(layer.bias.abs().max())}, which ExecuTorch, where a bias is a "
                "float32, does not hold exactly; give the layer's input fewer bits"
            )
        constants["bias"] = real
    same = all(before == after for before, after in layer.padding)
    flat = [size for pair in reversed(layer.padding) for size in pair]
    how = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups} if space else {}
    if space:
        how["padding"] = [before if same else 0 for before, _ in layer.padding]
    function = _dimensions(node, space, F.conv1d, F.conv2d) if space else F.linear

    def compute(carrier: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None = None) -> Tensor:
        if not same:
            carrier = F.pad(carrier, flat, value=zero_byte(x))
        weight = _q.dequantize_per_channel(codes, scale, zero, 0, -128, 127, torch.int8)
        return _quantize(function(_steps(carrier, x), weight, bias, **how), y)

    return _Step(compute, **constants)


def _float_layer(node: Convolution | Linear, x: TensorType) -> _Step:
    """The accumulator as float32 sums of integers, times its scale."""
    space = node.weight.codes.ndim - 2
    convolution = None if isinstance(node, Linear) else _dimensions(node, space, F.conv1d, F.conv2d)
    summands, scale = xnnpack.float_layer(node, x)
    constants = {"scale": scale.reshape(-1, *[1] * space)}
    for number, (codes, factor, bias) in enumerate(summands):
        constants[f"weight{number}"] = codes.to(torch.float32) * factor
        constants[f"bias{number}"] = torch.zeros(len(codes)) if bias is None else bias.to(torch.float32)

    def compute(carrier: Tensor, scale: Tensor, **constants: Tensor) -> Tensor:
        steps, total = _steps(carrier, x), None
        if convolution is not None:
            steps = F.pad(steps, [size for pair in reversed(node.padding) for size in pair])
        for number in range(len(summands)):
            weight, bias = constants[f"weight{number}"], constants[f"bias{number}"]
            if convolution is None:
                part = F.linear(steps, weight, bias)
            else:
                part = convolution(steps, weight, bias, node.stride, 0, node.dilation, node.groups)
            total = part if total is None else total + part
        return total * scale

    return _Step(compute, **constants)


def _max_pool(node: MaxPool, x: TensorType) -> _Step:
    pool = _dimensions(node, len(node.kernel), F.max_pool1d, F.max_pool2d)
    flat = [size for pair in reversed(node.padding) for size in pair]

    def compute(carrier: Tensor) -> Tensor:
        # Padded with the lowest code, which never wins; on bytes, since XNNPACK refuses to pad a pool's floats with 0.
        if any(flat):
            carrier = F.pad(carrier, flat, value=x.qn + xnnpack.carrier(x))
        return _quantize(pool(_steps(carrier, x), node.kernel, node.stride, 0, node.dilation), x)

    return _Step(compute)


# ---------------------------------------------------------------- two tensors


def _add(node: Add, a: TensorType, b: TensorType) -> _Step:
    y = node.type
    factors = xnnpack.plain_factors(node, a, b)
    if factors is not None:
        return _Step(
            lambda u, v, r_a, r_b: _quantize(_steps(u, a) * r_a + _steps(v, b) * r_b, y),
            r_a=factors[0].reshape(1),
            r_b=factors[1].reshape(1),
        )

    def compute(u: Tensor, v: Tensor, r_a: Tensor, r_b: Tensor, constant: Tensor) -> Tensor:
        inner = ((v.to(torch.float64) + 128) * r_b + constant).to(torch.float32)
        total = ((u.to(torch.float64) + 128) * r_a + inner).to(torch.float32)
        bytes = total.round().clamp(y.qn + y.carrier_offset, y.qp + y.carrier_offset)
        return (bytes - 128).to(torch.int8)

    exact = dict(zip(("r_a", "r_b", "constant"), pairs.sum_constants(node, a, b)))
    return _Step(compute, **{name: value.to(torch.float64).reshape(1) for name, value in exact.items()})


def _multiply(node: Multiply, a: TensorType, b: TensorType) -> _Step:
    """Rounded in bytes, with the zero point: it decides which way a half goes."""
    y = node.type
    m = pairs.product_factor(node, a, b)
    zero = float(y.zero_point + y.carrier_offset)
    low, high = float(y.qn + y.carrier_offset), float(y.qp + y.carrier_offset)

    def compute(u: Tensor, v: Tensor, m: Tensor, zero: Tensor, rounder: Tensor, back: Tensor) -> Tensor:
        total = F.hardtanh(_steps(u, a) * _steps(v, b) * m + zero, low, high)
        return _quantize((total + rounder) - back, y)

    constants = {"m": m, "zero": f32(zero), "rounder": f32(_ROUNDER), "back": f32(_ROUNDER + zero)}
    return _Step(compute, **{name: value.reshape(1) for name, value in constants.items()})
