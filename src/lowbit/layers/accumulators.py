"""Weights whose sums of products fit an accumulator of a given width, whatever the input's codes are.

A P-bit accumulator holds every sum and partial sum of an output channel, with its bias b on the accumulator's grid, if

    Σ|q_w| · max|q_x − z_x| + |b|  ≤  2^(P−1) − 1

which bounds the L1 norm of the channel's codes (Colbert et al., ICCV 2023, A2Q, arXiv 2308.13504; the bound there is on
the products, and the weights are kept to it by another parametrization). Here a channel that is within the bound is
left exactly as it is, and one that is not is projected onto it: its weights are moved toward 0 by the same threshold τ,
in steps, the least that serves, so that small weights become 0 and large ones stay apart. The gradient goes to the
weights as if they had not been moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from lowbit.errors import LowbitError
from lowbit.quantizer.module import Quantizer, as_quantizer

if TYPE_CHECKING:
    from lowbit.layers.quantized import QuantizedLayer
    from lowbit.layers.rules import Setting

_HALVINGS = 14  # of the interval in which τ is searched: to 1/100 of a step at 8 bits


def check_accumulators(name: str, layer: nn.Module, setting: Setting) -> None:
    """Refuse a width of accumulators that a layer's setting can't keep.

    Raises:
        LowbitError: no such width, a side in full precision, binary weights, steps that the method sets from the
            weight.
    """
    bits = setting.accumulator_bits
    if bits is None:
        return
    without = f"leave it out with lowbit.Rule({name!r}, accumulator_bits=None)"
    if type(bits) is not int or not 2 <= bits <= 32:
        raise LowbitError(
            f"layer {name!r}: accumulator_bits must be a whole number from 2 to 32, or None, got {bits!r}"
        )
    if setting.weights is None or setting.activations is None:
        raise LowbitError(f"layer {name!r} has a side in full precision, so that it has no accumulator: {without}")
    if setting.weights == 1:
        raise LowbitError(f"layer {name!r}: codes of one bit, -1 and 1, have no smaller sums: {without}")
    if setting.method.range is not None or setting.method.transform is not None:
        raise LowbitError(
            f"layer {name!r}: method {setting.method.name!r} sets the weight's step or codes from the whole weight, "
            f"which a bound on its sums would change: use a method that learns its steps, or {without}"
        )


def within_accumulator(layer: QuantizedLayer, weight: Tensor) -> Tensor:
    """`weight`, or what is nearest to it with codes whose sums, bias included, fit `layer.accumulator_bits`."""
    quantizer, inputs = layer.weight_quantizer, layer.input_quantizer
    ready = isinstance(quantizer, Quantizer) and isinstance(inputs, Quantizer)
    if layer.accumulator_bits is None or not ready or not (quantizer.initialized and inputs.initialized):
        return weight
    with torch.no_grad():
        bias = None if layer.accumulator_bias is None else layer.accumulator_bias(layer)
        most = _largest_norms(inputs, layer.accumulator_bits, bias)
        moved = _projected(layer, weight.detach(), most)
    # Exactly the moved weight in the forward pass: weight + (moved − weight) may be off in the last place.
    return _StraightThrough.apply(weight, moved)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, moved: Tensor) -> Tensor:
        return moved

    @staticmethod
    # pyrefly: ignore[bad-override]  # torch declares one that takes any number of gradients
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _largest_norms(inputs: Quantizer, bits: int, bias: Tensor | None) -> Tensor:
    """The largest Σ|q_w| of an output channel: float64, one for all or [out]."""
    grid, zero = inputs.grid, inputs.zero_point.double()
    assert grid is not None
    reach = torch.maximum((grid.qn - zero).abs(), (grid.qp - zero).abs()).ceil().max()
    room = 2.0 ** (bits - 1) - 1 - (torch.zeros_like(reach) if bias is None else bias.abs())
    return (room / reach).floor().clamp(min=0)


def _projected(layer: QuantizedLayer, weight: Tensor, most: Tensor) -> Tensor:
    quantizer = as_quantizer(layer.weight_quantizer)
    grid, step = quantizer.grid, quantizer.step
    assert grid is not None
    if quantizer.view is not None:
        step = step.expand(quantizer.view).reshape(weight.shape)
    v = (weight / step).abs()
    positive = weight > 0

    def norms(threshold: Tensor) -> Tensor:
        """Σ|q| of every channel, with weights moved by the threshold; [out]."""
        codes = (v - _along(layer, threshold)).clamp(min=0).round()
        codes = torch.where(positive, codes.clamp(max=grid.qp), codes.clamp(max=-grid.qn))
        return _channels(layer, codes).sum(1, dtype=torch.float64)

    low = torch.zeros_like(_channels(layer, v)[:, 0])
    fits = norms(low) <= most
    high = _channels(layer, v).amax(1)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = norms(middle) <= most
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    # A little more, so that the quantizer's own division, rounded otherwise, can't give a larger code.
    threshold = high + 2.0**-12 + high * 2.0**-18
    moved = torch.where(v > _along(layer, threshold), weight - weight.sign() * _along(layer, threshold) * step, 0.0)
    return torch.where(_along(layer, fits), weight, moved.to(weight.dtype))


def _channels(layer: nn.Module, weight: Tensor) -> Tensor:
    """[out, everything that is summed in an output channel]."""
    if not isinstance(layer, _ConvTransposeNd):
        return weight.flatten(1)
    grouped = weight.reshape(layer.groups, weight.shape[0] // layer.groups, *weight.shape[1:])
    return grouped.transpose(1, 2).flatten(0, 1).flatten(1)


def _along(layer: nn.Module, values: Tensor) -> Tensor:
    """A value per output channel, to broadcast against the weight."""
    assert isinstance(layer.weight, Tensor)
    shape = layer.weight.shape
    if not isinstance(layer, _ConvTransposeNd):
        return values.reshape(-1, *[1] * (len(shape) - 1))
    per_group = values.reshape(layer.groups, 1, shape[1]).expand(-1, shape[0] // layer.groups, -1)
    return per_group.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))
