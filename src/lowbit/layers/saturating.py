"""1 / x and √x for tensors on a grid, which has a code for 0.

1 / 0 is the largest float32 here, for which the quantizer behind it gives the end of its grid, and 0 counts as
positive, since a code has no sign of zero. At 0 both have the gradient 0, as torch's norms have, where 0 · ∞ would be
none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.float32).max


class _Reciprocal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.reciprocal(x + 0.0).clamp_(-_LARGEST, _LARGEST)  # −0 + 0 is 0
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        slope = y * y
        return torch.where(slope.isfinite(), -grad_outputs[0] * slope, 0.0)


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.sqrt(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.where(y == 0, 0.0, grad_outputs[0] / (2 * y))


def reciprocal(x: Tensor) -> Tensor:
    """1 / x; the largest float32 at 0, with the gradient 0."""
    return _Reciprocal.apply(x)


def root(x: Tensor) -> Tensor:
    """√x; at 0 with the gradient 0."""
    return _Root.apply(x)
