"""The bit-exact reference executor: what every node of `ir` computes, on torch integer tensors, on the CPU.

Every tensor between two nodes is an integer tensor. Inside a convolution or linear layer the sum of products runs through
a floating-point matrix product, because integer ones are ten times slower in torch; it is exact all the same: every factor
is an integer and every partial sum is at most `check.accumulator_bound`, so float32 holds each one exactly when the bound is
below 2^24, and float64 always does (the bound is below 2^31). No Winograd or Fourier form is used, whose partial results are
no integers. The result is stored as int32 before anything else is done with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.check import accumulator_bound, multipliers
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
    Pads,
    Quantize,
    Requantize,
    Reshape,
    Slice,
    TensorType,
)

Requantization = Literal["float", "fixed"]

_WINDOW_ELEMENTS = 1 << 22  # of the gathered windows at once: about a cache's worth


def code_dtype(kind: TensorType) -> torch.dtype:
    """uint8 for unsigned codes, int8 for signed ones."""
    return torch.int8 if kind.signed else torch.uint8


def run(graph: Graph, x: Tensor, requantize: Requantization = "float") -> Iterator[tuple[str, Tensor]]:
    """Yield every node's tensor by name, in order: codes (uint8 or int8), or float32 for a float output.

    graph: from `check.validate`. x: float32 (batch, *graph.input_shape).
    Raises LowbitError for an input of the wrong shape or type, with NaN in it, or an unknown requantization.
    """
    if requantize not in ("float", "fixed"):
        raise LowbitError(f"requantize={requantize!r}: there are 'float' and 'fixed'")
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.device.type != "cpu":
        kind = f"{x.dtype} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
        raise LowbitError(f"the network's input must be a float32 tensor on the CPU, not {kind}")
    if x.ndim == 0 or tuple(x.shape[1:]) != graph.input_shape:
        expected = ", ".join(["batch", *map(str, graph.input_shape)])
        raise LowbitError(f"the network's input has shape {tuple(x.shape)}; it must be ({expected})")
    if len(x) == 0:
        raise LowbitError("the batch is empty; give at least one sample")
    if bool(x.isnan().any()):
        raise LowbitError("the network's input holds NaN, which has no code; clean the data")
    last_use = {name: node.name for node in graph.nodes for name in node.inputs}
    values: dict[str, Tensor] = {graph.input: x.detach()}
    types: dict[str, TensorType] = {}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        values[node.name] = _compute(node, inputs, [types.get(name) for name in node.inputs], requantize == "fixed")
        types[node.name] = node.type
        yield node.name, values[node.name]
        for name in node.inputs:
            if last_use[name] == node.name:
                values.pop(name, None)


def _compute(node: Node, inputs: list[Tensor], types: list[TensorType], fixed: bool) -> Tensor:
    x, y = inputs[0], node.type
    if isinstance(node, Quantize):
        steps = torch.round(x / _f32(y.scale))
        return (steps.clamp_(y.qn - y.zero_point, y.qp - y.zero_point) + y.zero_point).to(code_dtype(y))
    if isinstance(node, Convolution | Linear):
        return _layer(node, x, types[0], fixed)
    if isinstance(node, Add):
        return _add(node, inputs, types, fixed)
    if isinstance(node, Multiply):
        return _multiply(node, inputs, types, fixed)
    if isinstance(node, Requantize):
        codes = torch.arange(types[0].qn, types[0].qp + 1, dtype=torch.int32) - types[0].zero_point
        m = _f32(types[0].scale) / _f32(y.scale)
        return _look_up(_requantize(codes, m, multipliers(node, types, y)[0], y, fixed), x, types[0])
    if isinstance(node, Lookup):
        return _look_up(node.table.to(code_dtype(y)), x, types[0])
    if isinstance(node, AveragePool):
        count = math.prod(node.kernel)
        total = _average_window_sum(node, x, types[0])
        m = _f32(types[0].scale) * (1 / _f32(count)) / _f32(y.scale)
        return _requantize(total, m, multipliers(node, types, y)[0], y, fixed)
    if isinstance(node, GlobalAveragePool):
        count = math.prod(x.shape[2:])
        spatial = tuple(range(2, x.ndim))
        total = x.sum(spatial, keepdim=True, dtype=torch.int32) - count * types[0].zero_point
        m = _f32(types[0].scale) / (_f32(y.scale) * count)
        return _requantize(total, m, multipliers(node, types, y)[0], y, fixed)
    if isinstance(node, MaxPool):
        padded = _padded(x, node.padding, types[0].qn)
        out = y.shape[1:]
        best = None
        for window in _shifts(padded, out, node.kernel, node.stride, node.dilation):
            best = window.clone() if best is None else torch.maximum(best, window)
        return best
    if isinstance(node, Concatenate):
        return torch.cat(inputs, 1)
    if isinstance(node, Reshape):
        return x.reshape(len(x), *y.shape)
    if isinstance(node, Slice):
        index = [slice(None)] * x.ndim
        index[node.axis] = slice(node.start, node.stop, node.step)
        return x[tuple(index)]
    if isinstance(node, PadChannels):
        padded = x.new_full((len(x), *y.shape), types[0].zero_point)
        padded[:, node.before : node.before + x.shape[1]] = x
        return padded
    if isinstance(node, ChannelShuffle):
        return x.unflatten(1, (node.groups, -1)).transpose(1, 2).flatten(1, 2)
    raise LowbitError(f"node {node.name!r}: no arithmetic for {type(node).__name__}")


def _f32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _look_up(table: Tensor, x: Tensor, kind: TensorType) -> Tensor:
    return table[x.to(torch.int32) - kind.qn]


# ---------------------------------------------------------------- requantization


def fixed_multiplier(m: Tensor) -> tuple[Tensor, Tensor]:
    """(mantissa, shift) of |m|: int64 mantissa = rint(|m| · 2^shift) with 2^30 <= mantissa < 2^31, elementwise.

    m: float64, finite, not 0, |m| < 2^30 (so that shift >= 1).
    """
    fraction, exponent = torch.frexp(m.abs())  # |m| = fraction · 2^exponent, fraction in [1/2, 1)
    shift = 31 - exponent.to(torch.int64)
    mantissa = torch.round(fraction * 2.0**31).to(torch.int64)
    carried = mantissa == 1 << 31  # a fraction just below 1 rounds up to 1
    return torch.where(carried, mantissa >> 1, mantissa), torch.where(carried, shift - 1, shift)


def _shift_half_away(n: Tensor, shift: Tensor) -> Tensor:
    """sign(n) · ((|n| + 2^(shift−1)) >> shift); 0 where shift > 62."""
    k = shift.clamp(max=62)
    rounded = (n.abs() + (torch.ones_like(k) << (k - 1))) >> k
    return torch.where(shift > 62, 0, n.sign() * rounded)


def _requantize(n: Tensor, m: Tensor, exact: Tensor, y: TensorType, fixed: bool) -> Tensor:
    """Codes of the int32 accumulator n (batch, channels, …): `requant` of `ir`.

    m: the float32 multiplier, exact: the same in float64; one value or one per channel.
    """
    low, high = y.qn - y.zero_point, y.qp - y.zero_point
    if fixed:
        mantissa, shift = fixed_multiplier(_per_channel(exact, n))
        steps = _shift_half_away(n.to(torch.int64) * (_per_channel(exact, n).sign().to(torch.int64) * mantissa), shift)
    else:
        steps = n.to(torch.float32).mul_(_per_channel(m, n)).round_()
    return steps.clamp_(low, high).add_(y.zero_point).to(code_dtype(y))


def _per_channel(value: Tensor, like: Tensor) -> Tensor:
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (like.ndim - 2))


# ---------------------------------------------------------------- sums of products


def _padded(x: Tensor, padding: Pads, value: int) -> Tensor:
    flat = [size for pair in reversed(padding) for size in pair]
    return torch.nn.functional.pad(x, flat, value=value) if any(flat) else x


def _shifts(
    x: Tensor, out: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Iterator[Tensor]:
    """For every position in the kernel, row-major, the view of the padded x that meets it: (batch, channels, *out)."""
    for position in product(*(range(k) for k in kernel)):
        index = [slice(p * d, p * d + (o - 1) * s + 1, s) for p, d, o, s in zip(position, dilation, out, stride)]
        yield x[(slice(None), slice(None), *index)]


def _average_window_sum(node: AveragePool, x: Tensor, kind: TensorType) -> Tensor:
    padded = _padded(x.to(torch.int32) - kind.zero_point, node.padding, 0)
    total = None
    for window in _shifts(padded, node.type.shape[1:], node.kernel, node.stride, (1,) * len(node.kernel)):
        total = window.clone() if total is None else total.add_(window)
    return total


def _layer(node: Convolution | Linear, x: Tensor, kind: TensorType, fixed: bool) -> Tensor:
    # Float matrix products may be run at reduced precision on request; then only float64 is exact.
    exact32 = accumulator_bound(node, kind) < 1 << 24 and torch.get_float32_matmul_precision() == "highest"
    dtype = torch.float32 if exact32 else torch.float64
    scale = _f32(kind.scale) * node.weight.scale
    rows = len(x) if isinstance(node, Linear) else _rows_at_once(node, kind)
    parts = []
    for part in x.split(rows):
        total = (
            _convolve(node, part, kind, dtype)
            if isinstance(node, Convolution)
            else _multiply_rows(node, part, kind, dtype)
        )
        if node.bias is not None:
            total += _per_channel(node.bias, total)
        if isinstance(node.type, FloatType):
            parts.append(total.to(torch.float32) * _per_channel(scale, total))
        else:
            (exact,) = multipliers(node, [kind], node.type)
            parts.append(_requantize(total, scale / _f32(node.type.scale), exact, node.type, fixed))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows_at_once(node: Convolution, kind: TensorType) -> int:
    per_sample = kind.shape[0] * math.prod(node.weight.codes.shape[2:]) * math.prod(node.type.shape[1:])
    return max(1, _WINDOW_ELEMENTS // per_sample)


def _multiply_rows(node: Linear, x: Tensor, kind: TensorType, dtype: torch.dtype) -> Tensor:
    centred = x.to(dtype) - kind.zero_point
    return (centred @ node.weight.codes.to(dtype).T).to(torch.int32)


def _convolve(node: Convolution, x: Tensor, kind: TensorType, dtype: torch.dtype) -> Tensor:
    """int32 accumulators (batch, out, *space), without the bias: gathered windows times the weight matrix."""
    weight, groups, out = node.weight.codes, node.groups, node.type.shape[1:]
    kernel = tuple(weight.shape[2:])
    padded = _padded(x.to(dtype) - kind.zero_point, node.padding, 0)
    columns = padded.new_empty(len(x), x.shape[1], math.prod(kernel), *out)
    for position, window in enumerate(_shifts(padded, out, kernel, node.stride, node.dilation)):
        columns[:, :, position] = window
    columns = columns.reshape(len(x), groups, -1, math.prod(out))
    total = weight.to(dtype).reshape(groups, weight.shape[0] // groups, -1) @ columns
    return total.to(torch.int32).reshape(len(x), weight.shape[0], *out)


# ---------------------------------------------------------------- two tensors


def _add(node: Add, inputs: list[Tensor], types: list[TensorType], fixed: bool) -> Tensor:
    y = node.type
    if fixed:
        ratios = [float(m) for m in multipliers(node, types, y)]
        _, shift = fixed_multiplier(torch.tensor(max(ratios), dtype=torch.float64))
        m = [round(math.ldexp(ratio, int(shift))) for ratio in ratios]
        total = sum((x.to(torch.int64) - t.zero_point) * each for x, t, each in zip(inputs, types, m))
        return (_shift_half_away(total, shift) + y.zero_point).clamp_(y.qn, y.qp).to(code_dtype(y))
    (za, zb, zy) = (t.zero_point + t.carrier_offset for t in (*types, y))
    ra, rb = (_f32(t.scale) / _f32(y.scale) for t in types)
    constant = zy - _fma(ra, _f32(za), rb * zb)
    a, b = (x.to(torch.float32) + t.carrier_offset for x, t in zip(inputs, types))
    total = _fma(a, ra, _fma(b, rb, constant)).round_()
    return (total - y.carrier_offset).clamp_(y.qn, y.qp).to(code_dtype(y))


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a · b + c rounded to float32 once.

    By way of float64. a or b is a byte, so that the product has at most 32 bits and is exact there; so is the sum, unless c is
    more than 2^21 times the product or 2^28 times below it: then the second rounding could show in the last place alone.
    """
    return torch.addcmul(c.to(torch.float64), a.to(torch.float64), b.to(torch.float64)).to(torch.float32)


def _multiply(node: Multiply, inputs: list[Tensor], types: list[TensorType], fixed: bool) -> Tensor:
    y = node.type
    a, b = (x.to(torch.int32) - t.zero_point for x, t in zip(inputs, types))
    n = a * b
    m = _f32(types[0].scale) * _f32(types[1].scale) / _f32(y.scale)
    if fixed:
        return _requantize(n, m, multipliers(node, types, y)[0], y, True)
    # In bytes, the zero point is added before rounding: it decides which way a half goes.
    total = (n.to(torch.float32) * m + float(y.zero_point + y.carrier_offset)).round_()
    return (total - y.carrier_offset).clamp_(y.qn, y.qp).to(code_dtype(y))
