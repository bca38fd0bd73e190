"""What stands in for the derivative of round() in the backward pass.

round() has derivative zero almost everywhere, so every method of quantization-aware training replaces it. The straight-
through estimator (STE) takes 1. The others are a product of at most two factors, each a `GradientFunction`:

- a *surrogate gradient* d(c): the derivative of a soft round, a function of the position c on the grid alone (ASR,
  DSQ);
- a *gradient scaling* e(c − q, G): it depends on the rounding error c − q and the arriving gradient G (MDE, EWGS).

    ∂L/∂c = G · d(c) · e(c − q, G)

Positions are in units of the grid's spacing, so that a cell (the interval between two neighbouring levels) has length 1
and |c − q| ≤ ½.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit._deprecated import renamed_in_module
from lowbit.errors import LowbitError


def annealed(value: float, final: float | None, fraction: float) -> float:
    """What goes from `value` to `final` in a straight line, when `fraction` (0 to 1) is done; None stays at `value`."""
    return value if final is None else value + (final - value) * min(max(fraction, 0.0), 1.0)


@dataclass(frozen=True)
class GradientFunction:
    """One factor of the backward pass: a function of tensors and of one parameter, which may change over training.

    Args:
        function: elementwise, `value` being a 0-dim tensor: of a surrogate gradient `function(position, value)`, of a
            gradient scaling `function(error, gradient, value)`.
        value: the parameter (ASR's k, MDE's δ) at the start of training.
        final: the parameter at the end of training; linear in between. None keeps it as it is.
        bounds: the open-below, open-above range the parameter must stay in.
        norm: a function of `value` alone that multiplies a surrogate gradient, so that its integral over a cell is 1.
            Apart from `function`, because it is the same for every element and computed once. None is 1.
    """

    function: Callable[..., Tensor]
    value: float
    final: float | None = None
    bounds: tuple[float, float] = (float("-inf"), float("inf"))
    norm: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        low, high = self.bounds
        for value in (self.value, self.final):
            if value is not None and not low <= value < high:
                raise LowbitError(f"the parameter of {self.function.__name__} must be in [{low}, {high}), got {value}")

    def at(self, fraction: float) -> float:
        """The parameter when `fraction` (0 to 1) of the training is done."""
        return annealed(self.value, self.final, fraction)

    def norm_of(self, value: Tensor) -> Tensor | None:
        """The norm for a value of the parameter, 0-dim; None is 1."""
        return None if self.norm is None else self.norm(value)


def arctan_derivative(position: Tensor, k: Tensor) -> Tensor:
    """ASR: the derivative of the arctangent soft round but for `arctan_norm` (methods.md §4; LG-LSQ, reconstructed).

        soft(c)  = ⌊c⌋ + ½ + arctan(k·u) / (2·arctan(k/2)),   u = c − ⌊c⌋ − ½
        soft'(c) = k / (2·arctan(k/2)) · 1 / (1 + k²·u²)

    Positive everywhere; its integral over each cell is 1; k → 0 gives 1 (STE), k → ∞ the hard round.
    """
    u = position - torch.floor(position) - 0.5
    return 1 / (1 + (k * u) ** 2)


def arctan_norm(k: Tensor) -> Tensor:
    """k / (2·arctan(k/2))."""
    return k / (2 * torch.atan(k / 2))


def arctan_value(position: Tensor, k: float) -> Tensor:
    """The arctangent soft round ⌊c⌋ + ½ + arctan(k·u)/(2·arctan(k/2)); its derivative is `arctan_derivative`."""
    cell = torch.floor(position) + 0.5
    return cell + torch.atan(k * (position - cell)) / (2 * math.atan(k / 2))


def tanh_derivative(position: Tensor, k: Tensor) -> Tensor:
    """DSQ: the derivative of the hyperbolic-tangent soft round but for `tanh_norm`.

    Gong et al., ICCV 2019, arXiv 1908.05033, Eq. 3–5:

        soft(c)  = ⌊c⌋ + ½ + tanh(k·u) / (2·tanh(k/2)),   u = c − ⌊c⌋ − ½
        soft'(c) = k / (2·tanh(k/2)) · (1 − tanh²(k·u))

    DSQ's characteristic α is 1 − tanh(k/2), so k = ln(2/α − 1).
    """
    u = position - torch.floor(position) - 0.5
    e = torch.exp(-2 * (k * u).abs())
    return 4 * e / (1 + e) ** 2  # 1 − tanh²(k·u), cheaper to compute than tanh and without its cancellation


def tanh_norm(k: Tensor) -> Tensor:
    """k / (2·tanh(k/2))."""
    return k / (2 * torch.tanh(k / 2))


def error_scaling(error: Tensor, gradient: Tensor, delta: Tensor) -> Tensor:
    """MDE and EWGS: 1 + δ·sign(G)·(c − q).

    A descent step that brings c nearer to its level is made longer, one that takes it away shorter. EWGS (Lee et al.,
    CVPR 2021, arXiv 2104.00903, Eq. 4) sets δ from the curvature of the loss; MDE (LG-LSQ, reconstructed in
    methods.md §4) reads the same factor as a descent on the discretization error. 0 ≤ δ < 2 keeps it positive.
    """
    return 1 + delta * torch.sign(gradient) * error


def asr(k: float = 2.0, final: float | None = None) -> GradientFunction:
    """Arctangent soft round with sharpness k > 0."""
    return GradientFunction(arctan_derivative, k, final, bounds=(1e-3, float("inf")), norm=arctan_norm)


def dsq(k: float = 2.197) -> GradientFunction:
    """Differentiable soft quantization; the default k is DSQ's α = 0.2."""
    return GradientFunction(tanh_derivative, k, bounds=(1e-3, float("inf")), norm=tanh_norm)


def mde(delta: float = 0.05, final: float | None = None) -> GradientFunction:
    """Minimising the discretization error with strength 0 ≤ δ < 2."""
    return GradientFunction(error_scaling, delta, final, bounds=(0.0, 2.0))


def ewgs(delta: float = 1e-3) -> GradientFunction:
    """Element-wise gradient scaling with strength 0 ≤ δ < 2 (1e-3 is the paper's fixed value)."""
    return GradientFunction(error_scaling, delta, bounds=(0.0, 2.0))


__getattr__ = renamed_in_module(
    __name__,
    {
        "Factor": "GradientFunction",
        "arctan_slope": "arctan_derivative",
        "tanh_slope": "tanh_derivative",
        "error_pull": "error_scaling",
    },
)
