"""What ExecuTorch's and LiteRT's files share: the integer graph in the arithmetic of XNNPACK, which runs both.

Codes travel as signed bytes c = code + offset − 128 (offset 2^(bits−1) for signed codes, else 0), and every one of those
tensors is declared with scale 1: the scales that `ir` states are folded, in the same float32 operations, into the weights'
scales, so that XNNPACK's requantization multiplier f(f(1 · s_w') / 1) is M itself. The lowest code is the lowest byte, which
a narrow range apart saturates by itself; what else bounds the codes' range is up to the writer.

What XNNPACK computes in another way than `ir` is written as float32 operators on integers, one rounding each: additions
(XNNPACK's integer addition rounds its factors to about 21 bits) and products. A float output is a float32 sum of integers
small enough to be exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.formats import pairs
from lowbit.formats.pairs import f32
from lowbit.integer.ir import (
    Add,
    AveragePool,
    Convolution,
    GlobalAveragePool,
    Linear,
    Lookup,
    Node,
    Pads,
    Requantize,
    TensorType,
)

_MULTIPLIER_LIMIT = 256.0
"""XNNPACK takes multipliers below this."""
_EXACT = 1 << 24
"""Integers of smaller magnitude are float32 values, whatever the order they are summed in."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or linear layer whose multipliers M are the weights' scales; the other tensors have scale 1.

    codes: int8, (out, in/groups, *kernel) or (out, in). scale: float32 (out,), greater than 0. bias: int32 (out,) or None.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    stride: tuple[int, ...] = ()
    padding: Pads = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


def carrier(kind: TensorType) -> int:
    """What is added to a code to make its signed byte."""
    return kind.carrier_offset - 128


def zero_byte(kind: TensorType) -> int:
    """The signed byte of the real 0."""
    return int(kind.zero_point) + carrier(kind)


def layer(node: Convolution | Linear, x: TensorType) -> Layer:
    """The layer with codes as output. Raises LowbitError for what XNNPACK does not hold, naming the node."""
    multiplier = f32(x.scale) * node.weight.scale / f32(node.type.scale)
    how = {}
    if isinstance(node, Convolution):
        how = {"stride": node.stride, "padding": node.padding, "dilation": node.dilation, "groups": node.groups}
    return _folded(node, node.weight.codes, multiplier, node.bias, **how)


def ones_layer(node: AveragePool | GlobalAveragePool | Requantize, x: TensorType) -> Layer:
    """A depthwise convolution with weights of 1, whose arithmetic is the one that `ir` states for the node."""
    channels, *space = x.shape
    kernel, stride, padding = [1] * len(space), (1,) * len(space), ((0, 0),) * len(space)
    m = f32(x.scale) / f32(node.type.scale)
    if isinstance(node, GlobalAveragePool):
        kernel, m = space, f32(x.scale) / (f32(node.type.scale) * math.prod(space))
    elif isinstance(node, AveragePool):
        kernel, stride, padding = node.kernel, node.stride, node.padding
        m = f32(x.scale) * (1 / f32(math.prod(kernel))) / f32(node.type.scale)
    ones = torch.ones(channels, 1, *kernel, dtype=torch.int8)
    return _folded(node, ones, m, None, stride=stride, padding=padding, dilation=(1,) * len(space), groups=channels)


def _folded(node: Node, codes: Tensor, multiplier: Tensor, bias: Tensor | None, **how) -> Layer:
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
    return Layer(signed.to(torch.int8), m.abs(), None if bias is None else bias * sign, **how)


def float_layer(node: Convolution | Linear, x: TensorType) -> tuple[list[tuple[Tensor, int, Tensor | None]], Tensor]:
    """(summands, scale): the layer's float output is f(f(Σ summands) · scale).

    A summand is (int8 codes, factor, int32 bias or None): a layer with the weights factor · codes, whose partial sums are
    exact in float32. There is one if the sum stays below 2^24. Else there are two, the codes' multiples of 16 and the rest:
    sums of multiples of 16 are exact up to 2^28, and adding the two rounds once, as f(n) does.
    scale: float32 (out,), f(s_x · s_w). Raises LowbitError, naming the node, where two summands are not enough.
    """
    codes, bias = node.weight.codes, node.bias
    reach = max(abs(x.qn - x.zero_point), abs(x.qp - x.zero_point))
    scale = (f32(x.scale) * node.weight.scale).expand(len(codes)).clone()
    if _reached(codes, bias, reach) < _EXACT:
        return [(codes, 1, bias)], scale
    summands = []
    parts = zip(_split(codes), (None, None) if bias is None else _split(bias))
    for factor, (part, part_bias) in zip((16, 1), parts):
        bound = _reached(part, part_bias, reach)
        if bound >= _EXACT:
            raise LowbitError(
                f"node {node.name!r}: the sum behind its float output can reach {factor * bound}, and is made in float32, "
                f"exactly only below {factor * _EXACT}: give the layer fewer bits"
            )
        summands.append((part, factor, None if part_bias is None else part_bias * factor))
    return summands, scale


def _split(value: Tensor) -> tuple[Tensor, Tensor]:
    """(h, r) with value = 16 · h + r and −8 <= r < 8, in value's type."""
    wide = value.to(torch.int64)
    high = (wide + 8) >> 4
    return high.to(value.dtype), (wide - 16 * high).to(value.dtype)


def _reached(codes: Tensor, bias: Tensor | None, reach: int) -> int:
    bound = codes.to(torch.int64).abs().flatten(1).sum(1) * reach
    return int((bound if bias is None else bound + bias.to(torch.int64).abs()).max())


def table(node: Lookup, x: TensorType) -> Tensor:
    """int8 (256,): the output's signed byte for every byte u = code + offset of the input."""
    entries = torch.zeros(256, dtype=torch.int8)
    entries[x.qn + x.carrier_offset : x.qp + x.carrier_offset + 1] = (node.table + carrier(node.type)).to(torch.int8)
    return entries


def plain_factors(node: Add, a: TensorType, b: TensorType) -> list[Tensor] | None:
    """Float32 factors near s_a / s_y and s_b / s_y for which rint(f(f(x_a · r_a) + f(x_b · r_b))), on codes less their zero
    points, is the sum that `ir.Add` states for every pair of codes; None where there are none nearby.
    """
    y, first, second = node.type, pairs.steps(a)[:, None], pairs.steps(b)[None, :]

    def plain(r_a: Tensor, r_b: Tensor) -> Tensor:
        return (first * r_a + second * r_b).round().add(y.zero_point).clamp(y.qn, y.qp)

    return pairs.near_factors(plain, list(pairs.sum_constants(node, a, b)[:2]), pairs.sums(node, a, b))
