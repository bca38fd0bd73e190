"""Inputs that are whole numbers, and softmax of what a mask shows: layers that recording puts into a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class WholeNumbers(nn.Module):
    """An input of indices, or a mask. A mask may come as numbers, of which 0 is False.

    Args:
        boolean: whether the network takes it as a mask of bools.
    """

    def __init__(self, boolean: bool) -> None:
        super().__init__()
        self.boolean = boolean

    def forward(self, x: Tensor) -> Tensor:
        if self.boolean:
            return x if x.dtype == torch.bool else x != 0
        return x.to(torch.int64)


class ShownSoftmax(nn.Module):
    """Softmax of scores, those of −∞ having the weight 0: also where all are, and softmax would give NaN.

    Args:
        dim: the dimension.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        nothing = input.amax(self.dim, keepdim=True) == -math.inf
        return input.masked_fill(nothing, 0).softmax(self.dim).masked_fill(nothing, 0)
