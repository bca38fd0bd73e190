"""Normalization of what hardly varies: its gradient is weakened where the variation is smaller than its rounding.

Batch-norm and layer-norm divide by the deviation of their block: the channel's in the batch, the token's. Where
rounding has made the elements of a block equal, or leaves next to nothing, the deviation is √ε, and the
straight-through gradient of what is before comes out up to 1/√ε times as large, although nothing there changes the
output. One such layer behind the other makes a gradient of 10^20 of one of 1. So with v the mean square of x − its mean
in the block (of x itself, where no mean is subtracted), and r the mean square of x's rounding error, which is s²/12 on
a grid with step s,

    ∂L/∂x ← ∂L/∂x · min(1, v/r)

In a block whose variation is more than its rounding nothing changes: the factor is 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowbit.quantizer.module import Quantizer


class _Weakened(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rounding: Tensor, shape: tuple[int, ...], over: tuple[int, ...], mean: bool
    ) -> Tensor:
        ctx.save_for_backward(x, rounding)
        ctx.block = shape, over, mean
        return x.view_as(x)

    @staticmethod
    # pyrefly: ignore[bad-override]  # torch declares one that takes any number of gradients
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, rounding = ctx.saved_tensors
        shape, over, mean = ctx.block
        # In units of √r: in a network whose signal has died away, v and r alone would be zero in float32.
        x = x.reshape(shape).float() * rounding.rsqrt().float()
        if mean:  # before squaring, whose last bit is more than r where a fine grid's block is far from zero
            x = x - x.mean(over, keepdim=True)
        factor = x.square().mean(over, keepdim=True).clamp_max(1).to(gradient.dtype)
        return (gradient.reshape(shape) * factor).reshape(gradient.shape), None, None, None, None


def rounding_of(quantizer: Quantizer) -> Tensor:
    """r of what the quantizer gives: s²/12, 0-dim, in float64."""
    return quantizer.step.double().square() / 12


def weakened(
    x: Tensor, rounding: Tensor, shape: tuple[int, ...], over: tuple[int, ...], *, mean: bool = True
) -> Tensor:
    """x itself, with the gradient that is stated above.

    Args:
        rounding: r, which broadcasts against a tensor of `shape`.
        shape: in which blocks are what lies along the dimensions `over`.
        mean: whether the block's mean is subtracted.
    """
    return _Weakened.apply(x, rounding, shape, over, mean) if x.requires_grad else x
