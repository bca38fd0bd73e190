"""Steps that are powers of two: integers then change their scale by a shift."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lowbit.quantizer.functional import bounded_step


def nearest_power_of_two(x: Tensor) -> Tensor:
    """sign(x)·2^round(log2 |x|), elementwise and exact for normal float32 and float64 numbers; 0 stays 0."""
    kind, places = _as_bits(x)
    up_from = math.isqrt(2 << (2 * places)) + 1  # the least fraction above √2, in units of its last place
    if torch.jit.is_tracing() or torch.compiler._is_exporting_flag:
        return _nearest_power_of_two_recorded(x, up_from / (1 << places))
    # On the bits of the number, because exp2(log2 x) may be off in the last place: from √2 on, the fraction carries
    # into the exponent, and then it is cut off.
    return ((x.view(kind) + (2 << places) - up_from) & -(1 << places)).view(x.dtype)


def _nearest_power_of_two_recorded(x: Tensor, up_from: float) -> Tensor:
    """The same by operations that torch.jit and ONNX have, where 2 to an integer is exact; of normal numbers."""
    power = torch.pow(2.0, torch.round(torch.log2(x.abs())))
    # The logarithm may have been on the other side of √2; dividing by a power of two is exact.
    fraction = x.abs() / power
    power = torch.where(fraction >= up_from, power * 2, torch.where(fraction < up_from / 2, power / 2, power))
    return torch.where(x == 0, x, torch.sign(x) * power)


def nearest_with_bits(x: Tensor, bits: int) -> Tensor:
    """The number code·2^e nearest to x, elementwise, where the code's magnitude has `bits` bits, the first of them 1.

    0 stays 0.
    """
    kind, places = _as_bits(x)
    cut = places - bits + 1
    return ((x.view(kind) + (1 << (cut - 1))) & -(1 << cut)).view(x.dtype)


def codes_of_bits(x: Tensor, bits: int) -> Tensor:
    """The magnitudes of the codes of what `nearest_with_bits` gives; NaN for 0."""
    kind, places = _as_bits(x)
    below = (x.abs().view(kind) & -(1 << places)).view(x.dtype)  # the greatest power of two that is not greater
    return x.abs() / below * 2.0 ** (bits - 1)


def _as_bits(x: Tensor) -> tuple[torch.dtype, int]:
    """(the integers of as many bits, the bits of a number's fraction)."""
    return (torch.int64, 52) if x.dtype == torch.float64 else (torch.int32, 23)


class _PowerOfTwoStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Tensor, initial_step: Tensor | None) -> Tensor:
        bounded = step if initial_step is None else bounded_step(step, initial_step)
        rounded = nearest_power_of_two(bounded)
        if ctx is not None:
            ctx.save_for_backward(rounded / bounded)
        return rounded

    @staticmethod
    # pyrefly: ignore[bad-override]  # torch declares one that takes any number of gradients
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (ratio,) = ctx.saved_tensors
        return gradient * ratio, None


def power_of_two_step(step: Tensor, initial_step: Tensor | None, *, trained: bool = True) -> Tensor:
    """2^round(log2 s) of the step s within its bounds.

    The gradient goes straight through the rounding of the logarithm.

    With t = log2 s and ∂round(t)/∂t = 1, ∂/∂s of 2^round(t) is 2^round(t)/s, which lies between 1/√2 and √2.

    Args:
        step, initial_step: as `Parameters` has them.
        trained: whether a gradient is wanted; if not, no autograd function takes part.
    """
    apply = _PowerOfTwoStep.apply if trained else lambda *tensors: _PowerOfTwoStep.forward(None, *tensors)
    return apply(step, initial_step)
