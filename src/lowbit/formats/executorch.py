"""ExecuTorch for phones: a .pte file whose layers run in XNNPACK's integer kernels, with the codes of the integer reference.

Codes travel as signed bytes c = code + offset − 128 (offset 2^(bits−1) for signed codes, else 0), and every one of those
tensors is declared with scale 1: the scales that `ir` states are folded, in the same float32 operations, into the weights'
scales, so that XNNPACK's requantization multiplier f(f(1 · s_w') / 1) is M itself. A hardtanh before each quantization
holds the codes' range, which XNNPACK would otherwise take to be the whole byte.

What XNNPACK computes in another way than `ir` is written as float32 operators on integers, which XNNPACK runs too: additions
(its integer addition has 21-bit multipliers), products, changes of grid. An addition for which no pair of float32 factors
gives the code of `ir` for every pair of input codes is computed in float64, outside XNNPACK; so are tables, by an index.
A float output is a float32 sum of integers below 2^24, which is exact. The file takes one sample at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import product

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchProgramManager, to_edge_transform_and_lower
from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.errors import LowbitError
from lowbit.files import atomic_write
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

_NUDGES = 8
"""How many units in the last place an addition's factors may move to make the plain float form exact."""
_MULTIPLIER_LIMIT = 256.0
"""XNNPACK takes multipliers below this."""
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
        self.register_buffer("output_scale", _f32(scale).reshape(1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = {self.graph.input: x}
        for node, step in zip(self.graph.nodes, self.steps):
            values[node.name] = step(*(values[name] for name in node.inputs))
        result, kind = values[self.graph.output], self.graph.by_name[self.graph.output].type
        if isinstance(kind, TensorType):
            result = _steps(result, kind) * self.output_scale
        return (result, *(values[name] for name in self.outputs))


# ---------------------------------------------------------------- codes


def _f32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _carrier(kind: TensorType) -> int:
    """What is added to a code to make its signed byte."""
    return kind.carrier_offset - 128


def _steps(carrier: Tensor, kind: TensorType) -> Tensor:
    """code − zero_point as float32."""
    zero = int(kind.zero_point) + _carrier(kind)
    return _q.dequantize_per_tensor(carrier, 1.0, zero, -128, 127, torch.int8)


def _quantize(steps: Tensor, y: TensorType) -> Tensor:
    """The signed byte of clip(rint(steps) + z_y)."""
    if (y.qn, y.qp) != (-y.carrier_offset, 255 - y.carrier_offset):
        steps = F.hardtanh(steps, float(y.qn - y.zero_point), float(y.qp - y.zero_point))
    return _q.quantize_per_tensor(steps, 1.0, int(y.zero_point) + _carrier(y), -128, 127, torch.int8)


# ---------------------------------------------------------------- nodes


def _step(node: Node, types: list) -> _Step:
    y = node.type
    if isinstance(node, Quantize):
        return _Step(lambda x, scale: _quantize(x / scale, y), scale=_f32(y.scale).reshape(1))
    if isinstance(node, Convolution | Linear):
        return _float_layer(node, types[0]) if isinstance(y, FloatType) else _layer(node, types[0])
    if isinstance(node, AveragePool | GlobalAveragePool):
        return _average(node, types[0])
    if isinstance(node, Add):
        return _add(node, *types)
    if isinstance(node, Multiply):
        return _multiply(node, *types)
    if isinstance(node, Requantize):
        m = _f32(types[0].scale) / _f32(y.scale)
        return _Step(lambda x, m: _quantize(_steps(x, types[0]) * m, y), m=m.reshape(1))
    if isinstance(node, Lookup):
        x = types[0]
        table = torch.zeros(256, dtype=torch.int8)
        table[x.qn + x.carrier_offset : x.qp + x.carrier_offset + 1] = (node.table + _carrier(y)).to(torch.int8)
        return _Step(lambda x, table: table[x.to(torch.int64) + 128], table=table)
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


def _convolve(node: Node, x: TensorType, codes: Tensor, multiplier: Tensor, bias: Tensor | None, **how) -> _Step:
    """An integer convolution or linear layer with multipliers M per output channel, in the pattern for XNNPACK."""
    y, space = node.type, codes.ndim - 2
    m = multiplier.expand(len(codes)).clone()
    if not bool((m.abs() < _MULTIPLIER_LIMIT).all()):
        raise LowbitError(
            f"node {node.name!r}: one step of its accumulator is {float(m.abs().max()):g} steps of its output; XNNPACK takes "
            f"less than {_MULTIPLIER_LIMIT:g}: calibrate the network again"
        )
    # XNNPACK's scales are positive: a negative one (batch-norm with γ < 0) changes the sign of the channel's integers.
    sign = m.sign().to(torch.int16)
    signed = codes.to(torch.int16) * sign.reshape(-1, *[1] * (codes.ndim - 1))
    if int(signed.max()) > 127:
        raise LowbitError(
            f"node {node.name!r}: a channel with a negative scale has the weight code −128, whose negative int8 does not "
            "hold; train with narrow weights"
        )
    constants = {"codes": signed.to(torch.int8), "scale": m.abs(), "zero": torch.zeros(len(m), dtype=torch.int64)}
    if bias is not None:
        bias = bias * sign
        real = bias.to(torch.float32) * m.abs()
        if not torch.equal(torch.round(real * (1.0 / m.abs())).to(torch.int32), bias):
            raise LowbitError(
                f"node {node.name!r}: its bias reaches {int(bias.abs().max())}, which ExecuTorch, where a bias is a float32, "
                "does not hold exactly; give the layer's input fewer bits"
            )
        constants["bias"] = real
    padding = how.pop("padding", ((0, 0),) * space)
    same = all(before == after for before, after in padding)
    flat = [size for pair in reversed(padding) for size in pair]
    layer = _dimensions(node, space, F.conv1d, F.conv2d) if space else F.linear

    def compute(carrier: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None = None) -> Tensor:
        if not same:
            carrier = F.pad(carrier, flat, value=int(x.zero_point) + _carrier(x))
        weight = _q.dequantize_per_channel(codes, scale, zero, 0, -128, 127, torch.int8)
        steps = _steps(carrier, x)
        if space:
            how["padding"] = [before if same else 0 for before, _ in padding]
        return _quantize(layer(steps, weight, bias, **how), y)

    return _Step(compute, **constants)


def _layer(node: Convolution | Linear, x: TensorType) -> _Step:
    multiplier = _f32(x.scale) * node.weight.scale / _f32(node.type.scale)
    how = {}
    if isinstance(node, Convolution):
        how = {"stride": node.stride, "padding": node.padding, "dilation": node.dilation, "groups": node.groups}
    return _convolve(node, x, node.weight.codes, multiplier, node.bias, **how)


def _float_layer(node: Convolution | Linear, x: TensorType) -> _Step:
    """The accumulator as a float32 sum of integers, times its scale."""
    codes, bias = node.weight.codes, node.bias
    reach = max(abs(x.qn - x.zero_point), abs(x.qp - x.zero_point))
    bound = codes.to(torch.int64).abs().flatten(1).sum(1) * reach
    bound = int((bound if bias is None else bound + bias.to(torch.int64).abs()).max())
    if bound >= 1 << 24:
        raise LowbitError(
            f"node {node.name!r}: the sum behind its float output can reach {bound}; ExecuTorch sums it in float32, exactly "
            f"only below {1 << 24}: give the layer fewer bits"
        )
    scale = (_f32(x.scale) * node.weight.scale).expand(len(codes)).reshape(-1, *[1] * (codes.ndim - 2)).clone()
    constants = {"weight": codes.to(torch.float32), "scale": scale}
    if bias is not None:
        constants["bias"] = bias.to(torch.float32)
    convolution = None if isinstance(node, Linear) else _dimensions(node, codes.ndim - 2, F.conv1d, F.conv2d)

    def compute(carrier: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        steps = _steps(carrier, x)
        if convolution is None:
            return F.linear(steps, weight, bias) * scale
        steps = F.pad(steps, [size for pair in reversed(node.padding) for size in pair])
        return convolution(steps, weight, bias, node.stride, 0, node.dilation, node.groups) * scale

    return _Step(compute, **constants)


def _average(node: AveragePool | GlobalAveragePool, x: TensorType) -> _Step:
    """A depthwise convolution with weights of 1: its arithmetic is the one that `ir` states."""
    channels, *space = x.shape
    if isinstance(node, GlobalAveragePool):
        kernel, how = space, {}
        m = _f32(x.scale) / (_f32(node.type.scale) * math.prod(space))
    else:
        kernel, how = node.kernel, {"stride": node.stride, "padding": node.padding}
        m = _f32(x.scale) * (1 / _f32(math.prod(kernel))) / _f32(node.type.scale)
    ones = torch.ones(channels, 1, *kernel, dtype=torch.int8)
    return _convolve(node, x, ones, m, None, groups=channels, **how)


def _max_pool(node: MaxPool, x: TensorType) -> _Step:
    pool = _dimensions(node, len(node.kernel), F.max_pool1d, F.max_pool2d)
    # Padded with the lowest code, which never wins.
    flat = [size for pair in reversed(node.padding) for size in pair]
    lowest = float(x.qn - x.zero_point)

    def compute(carrier: Tensor) -> Tensor:
        steps = _steps(carrier, x)
        if any(flat):
            steps = F.pad(steps, flat, value=lowest)
        return _quantize(pool(steps, node.kernel, node.stride, 0, node.dilation), x)

    return _Step(compute)


# ---------------------------------------------------------------- two tensors


def _add(node: Add, a: TensorType, b: TensorType) -> _Step:
    y = node.type
    r_a, r_b = (_f32(t.scale) / _f32(y.scale) for t in (a, b))
    zero_a, zero_b, zero_y = (_f32(t.zero_point + t.carrier_offset) for t in (a, b, y))
    constant = zero_y - _fma(r_a, zero_a, r_b * zero_b)
    first, second = (torch.arange(t.qn, t.qp + 1, dtype=torch.float32) - t.zero_point for t in (a, b))
    first, second = first[:, None], second[None, :]
    low, high = y.qn + y.carrier_offset, y.qp + y.carrier_offset
    expected = _fma(first + zero_a, r_a, _fma(second + zero_b, r_b, constant)).round().clamp(low, high) - zero_y
    low, high = y.qn - y.zero_point, y.qp - y.zero_point
    moves = sorted(product(range(-_NUDGES, _NUDGES + 1), repeat=2), key=lambda move: sum(map(abs, move)))
    for move in moves:
        factors = [_moved(r, count) for r, count in zip((r_a, r_b), move)]
        if torch.equal((first * factors[0] + second * factors[1]).round().clamp(low, high), expected):
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

    exact = {"r_a": r_a, "r_b": r_b, "constant": constant}
    return _Step(compute, **{name: value.to(torch.float64).reshape(1) for name, value in exact.items()})


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a · b + c rounded to float32 once."""
    return (a.to(torch.float64) * b.to(torch.float64) + c.to(torch.float64)).to(torch.float32)


def _moved(value: Tensor, count: int) -> Tensor:
    """The float32 `count` units in the last place further from 0."""
    return (value.view(torch.int32) + count).view(torch.float32)


def _multiply(node: Multiply, a: TensorType, b: TensorType) -> _Step:
    """Rounded in bytes, with the zero point: it decides which way a half goes."""
    y = node.type
    m = _f32(a.scale) * _f32(b.scale) / _f32(y.scale)
    zero = float(y.zero_point + y.carrier_offset)
    low, high = float(y.qn + y.carrier_offset), float(y.qp + y.carrier_offset)

    def compute(u: Tensor, v: Tensor, m: Tensor, zero: Tensor, rounder: Tensor, back: Tensor) -> Tensor:
        total = F.hardtanh(_steps(u, a) * _steps(v, b) * m + zero, low, high)
        return _quantize((total + rounder) - back, y)

    constants = {"m": m, "zero": _f32(zero), "rounder": _f32(_ROUNDER), "back": _f32(_ROUNDER + zero)}
    return _Step(compute, **{name: value.reshape(1) for name, value in constants.items()})
