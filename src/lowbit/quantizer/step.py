"""The gradient of the step: its form inside the range, and how it is scaled.

Outside the range every method agrees: ∂x̂/∂s is the bound itself, qn or qp. Inside, `inside(q, v, derivative)` gives it
from the level q, the real position v = (x − β)/s and the surrogate gradient d of rounding (1 for STE).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from lowbit._deprecated import renamed_arguments, renamed_property
from lowbit.errors import LowbitError
from lowbit.quantizer.rounding import annealed, arctan_value

FEW_BITS = 4
"""Up to which LSQ learns steps as published, from whatever start, and `Balance` balances them.

With more, ∂L/∂s is a sum of small rounding errors, mostly noise, until a value is cut off, which counts qp times as
much.
"""


def lsq_inside(q: Tensor, v: Tensor, derivative: Tensor | float) -> Tensor:
    """q − v: the derivative of s·round(x/s) with the straight-through estimator (LSQ, Eq. 3)."""
    return q - v


def ssg_inside(q: Tensor, v: Tensor, derivative: Tensor | float) -> Tensor:
    """q − v·d: the derivative of the soft quantizer s·soft(x/s) (LG-LSQ's SSG; a reconstruction, methods.md §4).

    Gradient scaling must not enter d: it would add −δ·Σ|G|·d·(c − q)², negative always, and the step would only grow.
    """
    return q - v * derivative


@cache
def soft_value_inside(k: float) -> Callable[[Tensor, Tensor, Tensor | float], Tensor]:
    """soft_k(v) − v: the soft round's value in place of its derivative.

    It is another reading of LG-LSQ's SSG (methods.md §4).

    Zero in the middle between two levels and at each level; q − v as k → ∞. For grids whose levels are 1 apart.
    """

    def inside(q: Tensor, v: Tensor, derivative: Tensor | float) -> Tensor:
        return arctan_value(v, k) - v

    return inside


def clip_inside(q: Tensor, v: Tensor, derivative: Tensor | float) -> Tensor:
    """0: only clipped elements move the range (PACT, Choi et al. 2018, arXiv 1805.06085, Eq. 3)."""
    return torch.zeros_like(q)


def lsq_scale(sharing: int, qp: int) -> float:
    """g = 1/sqrt(N·qp), N the number of elements that share the step (LSQ, §2.2)."""
    return (sharing * qp) ** -0.5


def size_scale(sharing: int, qp: int) -> float:
    """g = 1/sqrt(N): LSQ's ablation without the width."""
    return sharing**-0.5


def unit_scale(sharing: int, qp: int) -> float:
    """g = 1: LSQ's ablation without scaling."""
    return 1.0


def clip_scale(sharing: int, qp: int) -> float:
    """g = 1/qp²: descent on s = α/qp then moves the clip α exactly as descent on α itself (PACT)."""
    return 1.0 / qp**2


@renamed_arguments(memory="momentum")
@dataclass(frozen=True)
class Balance:
    """How a step's gradient is held at the pace of a tensor, up to 4 bits: SSG's magnitude, see `balance`.

    Args:
        ratio: ρ, the step's relative gradient over the tensor's, at the beginning of training.
        final: ρ at the end of training; linear in between. None keeps it as it is.
        momentum: m of the running means, mean ← m·mean + (1 − m)·value.
        against: whose pace the step of an activation keeps, that of its layer's "weight" or its "own". A weight's step
            has its own, and so has an activation beside which no weight is measured.

    Raises:
        LowbitError: a ratio that is not positive, a momentum outside [0, 1), or another word for `against`.
    """

    ratio: float = 1.0
    final: float | None = None
    momentum: float = 0.9
    against: Literal["weight", "own"] = "weight"

    def __post_init__(self) -> None:
        for ratio in (self.ratio, self.final):
            if ratio is not None and not 0 < ratio < float("inf"):
                raise LowbitError(f"the ratio of a balance must be positive, got {ratio}")
        if not 0 <= self.momentum < 1:
            raise LowbitError(f"the momentum of a balance must be in [0, 1), got {self.momentum}")
        if self.against not in ("weight", "own"):
            raise LowbitError(f"a balance is against 'weight' or 'own', got {self.against!r}")

    memory = renamed_property("Balance", "memory", "momentum")

    def at(self, fraction: float) -> float:
        """ρ when `fraction` (0 to 1) of the training is done."""
        return annealed(self.ratio, self.final, fraction)


@dataclass(frozen=True)
class StepGradient:
    """How a method learns its step.

    Args:
        inside: ∂x̂/∂s for elements strictly inside the range, from (q, v, derivative).
        scale: g from (N, qp); multiplies the gradients of step and offset.
        balance: how the step's gradient is held at the pace of a tensor (SSG's magnitude) instead of scaled by g alone.
        decayed: whether weight decay applies to the step (PACT's regulariser on the clip).
    """

    inside: Callable[[Tensor, Tensor, Tensor | float], Tensor] = lsq_inside
    scale: Callable[[int, int], float] = lsq_scale
    balance: Balance | None = None
    decayed: bool = False


def elements_sharing(shape: Sequence[int], step_shape: Sequence[int], batch_dim: int | None) -> int:
    """N: how many elements of a tensor of `shape` share one step of `step_shape`, the batch dimension not counted.

    For a weight that is the tensor, the channel or the group; for an activation the features of one sample.

    Raises:
        LowbitError: `step_shape` does not broadcast to `shape`, or there is no dimension `batch_dim`.
    """
    missing = len(shape) - len(step_shape)
    aligned = (1,) * missing + tuple(step_shape)
    if missing < 0 or not all([s == 1 or s == n for s, n in zip(aligned, shape)]):
        raise LowbitError(
            f"a step of shape {tuple(step_shape)} does not broadcast against a tensor of shape {tuple(shape)}: "
            "use a scalar for one step per tensor, or one size per dimension (1 where elements share the step)"
        )
    if batch_dim is not None and not -len(shape) <= batch_dim < len(shape):
        raise LowbitError(f"batch_dim {batch_dim} is not a dimension of a tensor of shape {tuple(shape)}")
    counted = 1
    for dim in range(len(shape)):
        if aligned[dim] == 1 and (batch_dim is None or dim != batch_dim % len(shape)):
            counted = counted * shape[dim]
    return counted
