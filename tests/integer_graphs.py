"""Random integer networks for the tests: a builder that picks scales under which codes spread over their range."""

from __future__ import annotations

import math

import torch

from lowbit.integer.graph import FloatType, Graph, TensorType, Weight
from lowbit.integer.ops import (
    Add,
    AveragePool,
    ChannelShuffle,
    Concatenate,
    Convolution,
    GlobalAveragePool,
    Linear,
    Lookup,
    MaxPool,
    Multiply,
    PadChannels,
    Quantize,
    Requantize,
    Reshape,
    Slice,
)
from lowbit.integer.ops.lookup import lookup_table
from lowbit.integer.validate import validate


def f32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def nearly(value: float, random: torch.Generator) -> float:
    """The float32 0, 1 or 2 units in the last place above or below."""
    bits = torch.tensor(value, dtype=torch.float32).view(torch.int32)
    return float((bits + torch.randint(-2, 3, (), generator=random).int()).view(torch.float32))


def all_pairs_of_bytes() -> torch.Tensor:
    """(256, 512): every pair of −128 .. 127 once, as feature j and feature 256 + j of a sample."""
    values = torch.arange(-128.0, 128.0)
    return torch.cat([values.expand(256, 256), values[:, None].expand(256, 256)], 1)


class GraphBuilder:
    """Appends nodes one after the other; `last` is the name of the newest. Every choice comes from one seed."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.shape, self.nodes = shape, []
        self.inputs: dict[str, tuple[int, ...]] = {"image": shape}
        self.outputs: tuple[str, ...] = ()  # none: the newest node

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.random))

    def codes(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high + 1, shape, generator=self.random)

    @property
    def last(self) -> str:
        return self.nodes[-1].name

    def graph(self) -> Graph:
        return validate(Graph(inputs=self.inputs, nodes=tuple(self.nodes), outputs=self.outputs or (self.last,)))

    def type_of(self, name: str) -> TensorType:
        partial = validate(Graph(inputs=self.inputs, nodes=tuple(self.nodes), outputs=self.outputs or (self.last,)))
        return partial.by_name[name].type

    def append(self, kind: type, *inputs: str, type=None, **fields) -> str:
        self.nodes.append(kind(name=f"n{len(self.nodes)}.{kind.__name__}", inputs=inputs, type=type, **fields))
        return self.last

    def grid(self, spread: float, bits: int, signed: bool, zero: int = 0, narrow: bool = False) -> TensorType:
        """A grid whose range is about twice the standard deviation to both sides."""
        levels = 2.0**bits - 1
        return TensorType(f32(max(spread, 1e-6) * self.uniform(2, 4) / levels), zero, bits, signed, narrow)

    def quantize(self, bits: int = 8, signed: bool = True, zero: int = 0, narrow: bool = False) -> str:
        return self.append(Quantize, "image", type=self.grid(1.5, bits, signed, zero, narrow))

    def weight(self, shape: tuple[int, ...], bits: int, per_channel: bool, negative: bool = False) -> Weight:
        if bits == 1:
            codes = self.codes(0, 1, *shape) * 2 - 1
        else:
            codes = self.codes(-(1 << (bits - 1)), (1 << (bits - 1)) - 1, *shape)
        scale = 0.01 + 0.02 * torch.rand(shape[:1] if per_channel else (), generator=self.random)
        if negative:
            scale = scale * (self.codes(0, 1, *scale.shape) * 2 - 1)
        return Weight(codes.to(torch.int8), scale.float(), bits)

    def layer_grid(self, x: TensorType, weight: Weight, bits, signed, zero, narrow) -> TensorType:
        fan = math.prod(weight.codes.shape[1:])
        spread = (
            x.scale * float(weight.scale.abs().mean()) * math.sqrt(fan) * (x.qp - x.qn) / 3 * 2.0**weight.bits / 3.5
        )
        return self.grid(spread, bits, signed, zero, narrow)

    def conv(
        self,
        x: str,
        out: int,
        kernel: int = 3,
        *,
        bits: int = 4,
        weight_bits: int = 4,
        signed: bool = False,
        zero: int = 0,
        narrow: bool = False,
        per_channel: bool = False,
        negative: bool = False,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        float_output: bool = False,
    ) -> str:
        kind = self.type_of(x)
        space = len(kind.shape) - 1
        weight = self.weight((out, kind.shape[0] // groups, *[kernel] * space), weight_bits, per_channel, negative)
        reach = int(math.prod(weight.codes.shape[1:]) ** 0.5 * 2.0 ** (kind.bits + weight_bits) / 8) + 1
        pads = padding if padding is not None else (kernel // 2 * dilation,) * 2
        return self.append(
            Convolution,
            x,
            type=FloatType() if float_output else self.layer_grid(kind, weight, bits, signed, zero, narrow),
            weight=weight,
            bias=self.codes(-reach, reach, out).to(torch.int32) if bias else None,
            stride=(stride,) * space,
            padding=(pads,) * space,
            dilation=(dilation,) * space,
            groups=groups,
        )

    def linear(self, x: str, out: int, *, bits=8, weight_bits=8, per_channel=False, float_output=True) -> str:
        kind = self.type_of(x)
        weight = self.weight((out, kind.shape[0]), weight_bits, per_channel)
        output = FloatType() if float_output else self.layer_grid(kind, weight, bits, True, 0, False)
        return self.append(Linear, x, type=output, weight=weight, bias=self.codes(-500, 500, out).to(torch.int32))

    def add(self, a: str, b: str, *, bits: int = 8, signed: bool = False, zero: int = 0) -> str:
        spread = sum(t.scale * (t.qp - t.qn) / 3 for t in map(self.type_of, (a, b)))
        return self.append(Add, a, b, type=self.grid(spread, bits, signed, zero))

    def multiply(self, a: str, b: str, *, bits: int = 8, signed: bool = False, zero: int = 0) -> str:
        spread = math.prod(t.scale * (t.qp - t.qn) / 2 for t in map(self.type_of, (a, b)))
        return self.append(Multiply, a, b, type=self.grid(spread, bits, signed, zero))

    def same_range(self, kind: type, x: str, *, bits=8, signed=False, zero=0, shrink: float = 1.0, **fields) -> str:
        """A node whose output range is about its input's, divided by shrink: Requantize and the average pools."""
        t = self.type_of(x)
        return self.append(kind, x, type=self.grid(t.scale * (t.qp - t.qn) / 3 / shrink, bits, signed, zero), **fields)

    def lookup(self, x: str, function, *, bits: int = 8, signed: bool = False, zero: int = 0) -> str:
        t = self.type_of(x)
        reach = function(torch.arange(t.qn - t.zero_point, t.qp - t.zero_point + 1) * t.scale).abs().max()
        output = self.grid(float(reach) / 2, bits, signed, zero)
        return self.append(Lookup, x, type=output, table=lookup_table(function, t, output))

    def input(self, batch: int = 2) -> torch.Tensor | dict[str, torch.Tensor]:
        """A batch of random inputs: one tensor, or tensors by name where there are several inputs."""
        found = {name: torch.randn(batch, *shape, generator=self.random) for name, shape in self.inputs.items()}
        return found if len(found) > 1 else found["image"]


def resnet_like(seed: int = 0, bits: int = 4, size: int = 12, per_channel: bool = False) -> GraphBuilder:
    """First layer 8 bits, two residual blocks (identity; option-A shortcut), global pool, linear with a float output."""
    b = GraphBuilder((3, size, size), seed)
    low = {"bits": bits, "weight_bits": bits, "per_channel": per_channel}
    x = b.conv(b.quantize(8), 16, weight_bits=8, bits=8, per_channel=per_channel)
    trunk = b.same_range(Requantize, x, bits=bits)
    y = b.conv(b.conv(trunk, 16, **low), 16, **(low | {"bits": 8}), signed=True)
    x = b.add(x, y, bits=8)
    trunk = b.same_range(Requantize, x, bits=bits)
    y = b.conv(b.conv(trunk, 32, stride=2, **low), 32, **(low | {"bits": 8}), signed=True)
    short = b.append(Slice, x, axis=2, start=0, stop=size, step=2)
    short = b.append(Slice, short, axis=3, start=0, stop=size, step=2)
    short = b.append(PadChannels, short, before=8, after=8)
    x = b.add(short, y, bits=8)
    x = b.same_range(GlobalAveragePool, x, shrink=2)
    b.linear(b.append(Reshape, x, shape=(-1,)), 10)
    return b


def every_operation(seed: int = 0, bits: int = 4) -> GraphBuilder:
    """One of each operation, in the shapes of the networks that need them."""
    b = GraphBuilder((3, 14, 14), seed)
    silu = torch.nn.functional.silu
    x = b.conv(b.quantize(8, signed=False, zero=117), 16, weight_bits=8, bits=8, stride=1, zero=30, per_channel=True)
    x = b.append(MaxPool, x, kernel=(3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), dilation=(1, 1))
    # ShuffleNetV2: split, a depthwise branch, concatenation on one grid, shuffle
    left = b.append(Slice, x, axis=1, start=0, stop=8)
    right = b.append(Slice, x, axis=1, start=8, stop=16)
    right = b.conv(right, 8, bits=8, signed=True, groups=8, per_channel=True, negative=True)
    right = b.append(Requantize, right, type=TensorType(*b.type_of(left).code_type))
    x = b.append(Concatenate, left, right)
    x = b.append(ChannelShuffle, x, groups=2)
    # squeeze-and-excite with SiLU and sigmoid
    x = b.conv(x, 24, 1, bits=8, weight_bits=bits, signed=True)
    x = b.lookup(x, silu, zero=20)
    gate = b.same_range(GlobalAveragePool, x, shrink=4, zero=9)
    gate = b.lookup(b.conv(gate, 6, 1, signed=True, bits=8, padding=(0, 0)), silu, zero=11, bits=6)
    gate = b.conv(gate, 24, 1, signed=True, bits=8, weight_bits=3, padding=(0, 0))
    step = b.type_of(gate).scale
    gate = b.lookup(gate, lambda v: torch.sigmoid(v / (32 * step)), bits=8)
    x = b.multiply(x, gate, bits=max(bits, 2), signed=True)
    x = b.conv(x, 16, 3, bits=8, weight_bits=2, groups=2, stride=2, padding=(0, 1))
    x = b.same_range(AveragePool, x, kernel=(2, 2), stride=(1, 1), padding=((1, 0), (0, 1)), zero=3, shrink=1.5)
    x = b.append(Reshape, x, shape=(-1,))
    b.linear(x, 10, weight_bits=bits, per_channel=True)
    return b
