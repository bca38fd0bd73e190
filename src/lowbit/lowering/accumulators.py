"""Weight and bias of an integer layer, on the accumulator's grid, in 32 bits.

A bias may be larger than that: what a layer's products give is then next to nothing beside it, as behind a batch-norm
whose statistics are tiny, or after a step of training that was too long. Where the output's code is the same for every
sum that the channel's inputs can give, the channel is that code: its weights are 0, its multiplier is 1 and its bias
the code less the zero point. Nothing is lost by that, and the bound that proves it is the one over the actual weights.
A channel whose code does depend on its sum, beside a bias of more than 32 bits, is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import FloatType, TensorType, Weight, reach
from lowbit.integer.ops.layer import magnitudes
from lowbit.integer.validate import ACCUMULATOR_MAX

_ROUNDED = 2.0**-20
"""How far the trained network's float32 sum may be from the real one, of its magnitude."""


def weight_and_bias(
    where: str, codes: Tensor, scale: Tensor, bits: int, bias: Tensor, x: TensorType, y: TensorType | FloatType
) -> tuple[Weight, Tensor]:
    """The layer's weight, and its bias as int32.

    Args:
        where: the layer, for messages.
        codes, bits: of its weight, int8 (out, …).
        scale: float32 (out,), with batch-norm's gain in it.
        bias: float64 (out,), whole numbers.
        x, y: of input and output.

    Raises:
        LowbitError: a bias is not finite or does not fit 32 bits.
    """
    if isinstance(y, TensorType) and bool(torch.isfinite(bias).all()):
        sums = magnitudes(codes).double() * reach(x)
        constant, steps = _constant_channels(scale, sums, bias, x, y)
        if bool(constant.any()):
            codes = torch.where(constant.reshape(-1, *[1] * (codes.ndim - 1)), 0, codes)
            scale = torch.where(constant, torch.tensor(y.scale).float() / torch.tensor(x.scale).float(), scale)
            bias = torch.where(constant, steps, bias)
    if not bool(torch.isfinite(bias).all()) or bool((bias.abs() >= 2**31).any()):
        raise LowbitError(
            f"{where}: its bias does not fit 32 bits on the accumulator's grid (largest "
            f"{float(bias.abs().max()):.3g}): what "
            "its input and weight give is next to nothing beside its bias, or its batch-norm's statistics; train the "
            "network, or calibrate it again on data like the training's"
        )
    bits = max(bits, 2) if bool((codes == 0).any()) else bits  # 1-bit codes have no 0
    scale = scale[:1].reshape(()) if bool((scale == scale[0]).all()) else scale
    return Weight(codes, scale, bits), bias.to(torch.int32)


def _constant_channels(
    scale: Tensor, sums: Tensor, bias: Tensor, x: TensorType, y: TensorType
) -> tuple[Tensor, Tensor]:
    """(channels whose bias does not fit and that have one code for every sum up to `sums`, that code in steps)."""
    multiplier = scale.double() * x.scale / y.scale
    ends = torch.stack([(bias - sums) * multiplier, (bias + sums) * multiplier])
    slack = _ROUNDED * ends.abs().amax(0)
    low, high = (
        end.round().clamp(y.qn - y.zero_point, y.qp - y.zero_point)
        for end in (ends.amin(0) - slack, ends.amax(0) + slack)
    )
    return (bias.abs() + sums > ACCUMULATOR_MAX) & (low == high), low
