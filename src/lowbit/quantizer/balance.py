"""SSG's magnitude: a step that learns at the pace of a tensor (LG-LSQ, reconstructed; methods.md §4).

A backward pass brings ∂L/∂s, as LSQ scales it, and ∂L/∂w for the tensor w whose pace is kept. M_s and M_w are running
means, this pass among them, of the squares of their relative gradients, and ρ is the ratio that is wanted:

    M_s ← m·M_s + (1 − m)·(|∂L/∂s| / max(s, s₀/8))²        M_w ← m·M_w + (1 − m)·(‖∂L/∂w‖ / ‖w‖)²
    ∂L/∂s ← ∂L/∂s · ρ·√(M_w / M_s)

so that LSQ's g cancels. That is so on grids of at most 4 bits. With more, ∂L/∂s is a sum of rounding errors so small
that it is mostly noise, and held at the tensor's pace the step would walk at random.

Below an eighth of the step at the beginning, s₀, the pace gets no slower: where an optimizer has driven a step to
almost nothing, one in proportion to it would keep it there. A weight's step keeps the pace of the elements that share
it. An activation's keeps that of its layer's weight (over its steps in the mean of M_w), or of the activation itself:
w is then what all B samples have in common, whose relative gradient is √B·‖∂L/∂x‖/‖x‖.

It happens inside the backward pass: a training loop has nothing to do for it, and M_s and M_w are a buffer of the
quantizer, of which checkpoints and averages have a copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowbit.quantizer.functional import Settings, bounded_step
from lowbit.quantizer.step import FEW_BITS


def balanced(
    x: Tensor,
    step: Tensor,
    initial_step: Tensor,
    measured: Tensor,
    ratio: Tensor,
    beside: Tensor | None,
    settings: Settings,
    samples: int,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """(x, step) as they are, but for the gradient of the step.

    Args:
        measured: M_w and M_s, [2, number of steps], zero until something was measured; changed by the backward pass.
        ratio: ρ, 0-dim.
        beside: `measured` of the layer's weight where the step keeps its pace; None where it keeps that of x.
        settings: with which x is quantized.
        samples: B, or 1 for a weight.
    """
    if beside is not None:
        return x, _Balanced.apply(step, None, initial_step, measured, ratio, beside, settings, samples, momentum)[0]
    step, x = _Balanced.apply(step, x, initial_step, measured, ratio, None, settings, samples, momentum)
    return x, step


class _Balanced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Tensor, x: Tensor | None, initial_step: Tensor, *others: Any) -> tuple:
        ctx.save_for_backward(step, x, initial_step)
        # Not saved: autograd would refuse what an earlier node of the same backward pass has changed.
        ctx.measured, ctx.ratio, ctx.beside, ctx.settings, ctx.samples, ctx.momentum = others
        return step.view_as(step), None if x is None else x.view_as(x)

    @staticmethod
    # pyrefly: ignore[bad-override]  # torch declares one that takes any number of gradients
    def backward(ctx: Any, grad_step: Tensor, grad_x: Tensor | None) -> tuple[Tensor | None, ...]:
        step, x, initial_step = ctx.saved_tensors
        with torch.no_grad():
            of_step = (grad_step / torch.maximum(bounded_step(step, initial_step), initial_step * 0.125)).square()
            if x is None:
                of_tensor = ctx.beside[0].mean().expand_as(of_step)
            else:
                assert grad_x is not None
                view = ctx.settings.viewed
                of_tensor = ctx.samples * _squares(view(grad_x), step) / _squares(view(x), step)
            now, before = torch.stack([of_tensor, of_step]), ctx.measured.view(2, *step.shape)
            # Else the pass says nothing: no gradient arrived, or one that overflowed, whose step a loss scaler skips.
            usable = ((now > 0) & now.isfinite()).all(0)
            mean = torch.where(before > 0, ctx.momentum * before + (1 - ctx.momentum) * now, now)
            if x is None:  # a running mean already
                mean = torch.stack([of_tensor, mean[1]])
            of_tensor, of_step = measured = torch.where(usable, mean, before)
            ctx.measured.copy_(measured.view_as(ctx.measured))
            # Until something was measured, LSQ's own.
            factor = torch.where((of_tensor > 0) & (of_step > 0), ctx.ratio * (of_tensor / of_step).sqrt(), 1.0)
        if ctx.settings.grid.bits <= FEW_BITS:  # else measured for an activation beside it alone
            grad_step = grad_step * factor
        return grad_step, grad_x, None, None, None, None, None, None, None


def _squares(x: Tensor, step: Tensor) -> Tensor:
    """Σ x² over the elements that share a step."""
    return x.float().square().sum_to_size(step.shape)
