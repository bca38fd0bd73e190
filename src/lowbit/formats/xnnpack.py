"""What ExecuTorch's and LiteRT's files share: the integer graph in the arithmetic of XNNPACK, which runs both.

Codes travel as signed bytes c = code + offset − 128 (offset 2^(bits−1) for signed codes, else 0), and every one of
those tensors is declared with scale 1: the multipliers that the operations state are the weights' scales, so that
XNNPACK's requantization multiplier f(f(1 · s_w') / 1) is M itself. The lowest code is the lowest byte, which saturates
by itself unless the range is narrow; what else bounds the codes' range is up to the writer.

What XNNPACK computes in another way than the operations state is written as float32 operators on integers, one rounding
each: additions (XNNPACK's integer addition rounds its factors to about 21 bits) and products. A float output is a
float32 sum of integers small enough to be exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.formats import pairs
from lowbit.integer.graph import Node, Pads, TensorType, reach
from lowbit.integer.ops import Add, Convolution, Lookup, LookupPerChannel
from lowbit.integer.ops.layer import Layer

_MULTIPLIER_LIMIT = 256.0
"""XNNPACK takes multipliers below this."""
_EXACT = 1 << 24
"""Integers of smaller magnitude are float32 values, whatever the order they are summed in."""


@dataclass(frozen=True, eq=False)
class FoldedLayer:
    """A convolution or linear layer whose multipliers M are the weights' scales; the other tensors have scale 1.

    Attributes:
        codes: int8, (out, in/groups, *kernel) or (out, in).
        scale: float32 (out,), greater than 0.
        bias: int32 (out,) or None.
        stride, padding, dilation, groups: of a convolution.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    stride: tuple[int, ...] = ()
    padding: Pads = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Summand:
    """One of the layers that a float output is the sum of; its weights are factor · codes.

    Attributes:
        codes: int8, as the layer's.
        factor: a power of 2.
        bias: int32 (out,) or None.
    """

    codes: Tensor
    factor: int
    bias: Tensor | None


def carrier(kind: TensorType) -> int:
    """What is added to a code to make its signed byte."""
    return kind.carrier_offset - 128


def zero_byte(kind: TensorType) -> int:
    """The signed byte of the real 0."""
    return int(kind.zero_point) + carrier(kind)


def geometry(node: Convolution) -> dict[str, Any]:
    """The fields of a `FoldedLayer` that say where a convolution's windows lie."""
    return {"stride": node.stride, "padding": node.padding, "dilation": node.dilation, "groups": node.groups}


def layer(node: Layer, x: TensorType, **where: Any) -> FoldedLayer:
    """The layer with codes as output; `where` is its `geometry`.

    Raises:
        LowbitError: XNNPACK does not hold it; the message names the node.
    """
    return _folded(node, x, node.weight.codes, node.bias, **where)


def ones_layer(
    node: Node, x: TensorType, kernel: Sequence[int], stride: Sequence[int] = (), padding: Pads = ()
) -> FoldedLayer:
    """A depthwise convolution with weights of 1, for a node that requantizes the sum over each window of its input.

    Without stride and padding: stride 1, no padding. Raises as `layer`.
    """
    assert x.shape is not None
    channels, *space = x.shape
    ones = torch.ones(channels, 1, *kernel, dtype=torch.int8)
    once = (1,) * len(space)
    where = {"stride": tuple(stride) or once, "padding": padding or ((0, 0),) * len(space), "dilation": once}
    return _folded(node, x, ones, None, **where, groups=channels)


def _folded(node: Node, x: TensorType, codes: Tensor, bias: Tensor | None, **where: Any) -> FoldedLayer:
    (multiplier,) = node.multipliers([x])
    m = multiplier.single.expand(len(codes)).clone()
    if not bool((m.abs() < _MULTIPLIER_LIMIT).all()):
        raise LowbitError(
            f"node {node.name!r}: one step of its accumulator is {float(m.abs().max()):g} steps of its output; XNNPACK "
            f"takes less than {_MULTIPLIER_LIMIT:g}: calibrate the network again"
        )
    signed, scale, signed_bias = with_positive_scales(node, codes, m, bias)
    return FoldedLayer(signed, scale, signed_bias, **where)


def with_positive_scales(
    node: Node, codes: Tensor, scale: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(codes, |scale|, bias) of the same layer.

    A negative scale (batch-norm with γ < 0) changes the sign of a channel's integers.

    Args:
        scale: (out,), or one value.

    Raises:
        LowbitError: the negative of a code is none; the message names the node.
    """
    sign = scale.sign().to(torch.int16)
    signed = codes.to(torch.int16) * sign.reshape(-1, *[1] * (codes.ndim - 1))
    if int(signed.max()) > 127:
        raise LowbitError(
            f"node {node.name!r}: a channel with a negative scale has the weight code −128, whose negative int8 does "
            "not hold; train with narrow weights"
        )
    return signed.to(torch.int8), scale.abs(), None if bias is None else bias * sign


def float_layer(node: Layer, x: TensorType) -> tuple[list[Summand], Tensor]:
    """The layer's float output as f(f(Σ summands) · scale).

    The partial sums of a summand are exact in float32. There is one summand if the sum stays below 2^24. Otherwise
    there are two, the codes' multiples of 16 and the rest: sums of multiples of 16 are exact up to 2^28, and adding the
    two rounds once, as f(n) does.

    Returns:
        The summands, and the scale: float32 (out,), f(s_x · s_w).

    Raises:
        LowbitError: two summands are not enough; the message names the node.
    """
    codes, bias, farthest = node.weight.codes, node.bias, reach(x)
    scale = node.output_scale(x).expand(len(codes)).clone()
    if node.accumulator_bound([x]) < _EXACT:
        return [Summand(codes, 1, bias)], scale
    summands = []
    parts = zip(_split(codes), (None, None) if bias is None else _split(bias))
    for factor, (part, part_bias) in zip((16, 1), parts):
        bound = _reached(part, part_bias, farthest)
        if bound >= _EXACT:
            raise LowbitError(
                f"node {node.name!r}: the sum behind its float output can reach {factor * bound}, and is made in "
                f"float32, exactly only below {factor * _EXACT}: give the layer fewer bits"
            )
        summands.append(Summand(part, factor, None if part_bias is None else part_bias * factor))
    return summands, scale


def check_exact(node: Node, types: Sequence[TensorType]) -> None:
    """Raise LowbitError where a node's sums, made in float32, may not be exact; the message names the node."""
    bound = node.accumulator_bound(types)
    if bound >= _EXACT:
        raise LowbitError(
            f"node {node.name!r}: its sum can reach {bound}, and is made in float32, exactly only below {_EXACT}: "
            "give its inputs fewer bits"
        )


def _split(value: Tensor) -> tuple[Tensor, Tensor]:
    """(h, r) with value = 16 · h + r and −8 <= r < 8, in value's type."""
    wide = value.to(torch.int64)
    high = (wide + 8) >> 4
    return high.to(value.dtype), (wide - 16 * high).to(value.dtype)


def _reached(codes: Tensor, bias: Tensor | None, farthest: int) -> int:
    bound = codes.to(torch.int64).abs().flatten(1).sum(1) * farthest
    return int((bound if bias is None else bound + bias.to(torch.int64).abs()).max())


def table(node: Lookup, x: TensorType) -> Tensor:
    """int8 (256,): the output's signed byte for every byte u = code + offset of the input."""
    return _entries(node, node.table, x)


def tables(node: LookupPerChannel, x: TensorType) -> Tensor:
    """int8 (channels, 256): `table` of every channel."""
    return _entries(node, node.tables, x)


def _entries(node: Node, codes: Tensor, x: TensorType) -> Tensor:
    entries = torch.zeros(*codes.shape[:-1], 256, dtype=torch.int8)
    carried = (codes + carrier(node.codes_of())).to(torch.int8)
    entries[..., x.qn + x.carrier_offset : x.qp + x.carrier_offset + 1] = carried
    return entries


def plain_factors(node: Add, a: TensorType, b: TensorType) -> list[Tensor] | None:
    """Float32 factors near s_a / s_y and s_b / s_y with which float operators give what `Add` states, for all codes.

    They compute rint(f(f(x_a · r_a) + f(x_b · r_b))) of codes less their zero points. None where there are none nearby.
    """
    y, first, second = node.codes_of(), pairs.steps(a)[:, None], pairs.steps(b)[None, :]

    def plain(r_a: Tensor, r_b: Tensor) -> Tensor:
        return (first * r_a + second * r_b).round().add(y.zero_point).clamp(y.qn, y.qp)

    return pairs.near_factors(plain, [m.single for m in node.multipliers([a, b])], pairs.sums(node, a, b))
