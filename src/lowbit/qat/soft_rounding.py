"""Learned rounding of weights (AdaRound: Nagel et al., ICML 2020, arXiv 2004.10568)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowbit.quantizer.module import Quantizer

# Eq. 23: the sigmoid is stretched beyond 0 and 1, so that it reaches both.
_LOW, _HIGH = -0.1, 1.1

_MARGIN = 0.05
"""How far from where its rounding turns a decided weight stays, in steps."""


class SoftRounding(nn.Module):
    """ŵ = s·clip(⌊w/s⌋ + h(v), qn, qp) with a learned h(v) in [0, 1] for each weight, in place of its quantizer.

    h(v) = clip(σ(v)·1.2 − 0.1, 0, 1). It begins as the fraction of w/s, so that ŵ begins as w within the range.

    Args:
        quantizer: of the weight; initialized, without an offset, a range or a transform of the method's.
        weight: w.
    """

    def __init__(self, quantizer: Quantizer, weight: Tensor) -> None:
        super().__init__()
        grid = quantizer.grid
        assert grid is not None
        self.bounds = grid.qn, grid.qp
        w, step = quantizer.transform(weight.detach()), quantizer.step
        self.register_buffer("step", step)
        self.register_buffer("floor", torch.floor(w / step).clamp(grid.qn, grid.qp))
        fraction = (w / step - self.floor).clamp(0.01, 0.99)
        self.v = nn.Parameter(torch.logit((fraction - _LOW) / (_HIGH - _LOW)))

    def up(self) -> Tensor:
        """h(v), in the shape in which the weight is quantized."""
        return (torch.sigmoid(self.v) * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """ŵ, softly rounded."""
        return self._rounded(self.up()).reshape(weight.shape)

    def undecided(self, sharpness: float) -> Tensor:
        """Σ 1 − |2h(v) − 1|^sharpness (Eq. 24), which is zero where every h(v) is 0 or 1."""
        return (1 - (2 * self.up() - 1).abs().pow(sharpness)).sum()

    @torch.no_grad()
    def decided(self, weight: Tensor) -> Tensor:
        """The nearest to `weight` that its quantizer rounds to ŵ with every h(v) brought to 0 or 1.

        Not ŵ itself: training that goes on from it would have lost how near each weight is to its next level.
        """
        low, high = self.bounds
        levels = (self.floor + (self.up() >= 0.5)).clamp(low, high)
        reach = 0.5 - _MARGIN
        # What lies beyond the range is clipped to its end wherever it is.
        least = torch.where(levels == low, -torch.inf, levels - reach)
        most = torch.where(levels == high, torch.inf, levels + reach)
        w = weight.reshape(levels.shape) / self.step
        return (self.step * w.clamp(least, most)).reshape(weight.shape)

    def _rounded(self, up: Tensor) -> Tensor:
        return self.step * (self.floor + up).clamp(*self.bounds)
