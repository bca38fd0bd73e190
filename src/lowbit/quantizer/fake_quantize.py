"""The quantizer itself: one forward and one backward for every method.

    v = (x − β) / s      c = clip(v, qn, qp)      q = round_half_even(c)      x̂ = s·q + β          (methods.md §1)

With G = ∂L/∂x̂ arriving, inside meaning qn < v < qp, and a method's row giving slope d, pull and `inside_step`:

    ∂L/∂x = G · [inside] · d(c) · pull(c − q, G)
    ∂L/∂s = g · Σ G · (inside_step(q, v, d) if inside; qn if v ≤ qn; qp if v ≥ qp)
    ∂L/∂β = g · Σ G · [not inside]                         (LSQ+, Eq. 6)

The sums run over the elements that share the step. Arithmetic is float32, or float64 for a float64 input, whatever the
input's type; the result has the input's type. Between forward and backward only x, s and β are kept: the rest is
elementwise and cheaper to compute again than to store.

`values` and `gradients` are the whole mathematics. They run as they stand, inside a compiled network, or fused into one
kernel each (`kernels`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.grid import Grid
from lowbit.quantizer import kernels
from lowbit.quantizer.methods import Method, get_method
from lowbit.quantizer.step import elements_sharing

Bound = Tensor | float

_counted = cache(elements_sharing)


class Parameters(NamedTuple):
    """The tensors that a quantizer computes with beside its input."""

    step: Tensor
    start: Tensor | None  # where the step started, and is bounded around; None: it is taken as it is
    offset: Tensor | None
    slope: Tensor | None  # values of the method's factors
    slope_norm: Tensor | None
    pull: Tensor | None

    def bounded(self) -> Parameters:
        """The same with the step within its bounds: before any loop over x, into which a compiler would put them."""
        return self if self.start is None else self._replace(step=bounded_step(self.step, self.start), start=None)


class Fixed(NamedTuple):
    """What is no tensor."""

    grid: Grid
    method: Method
    sharing: int  # N


def fake_quantize(
    x: Tensor,
    step: Tensor,
    grid: Grid,
    *,
    offset: Tensor | None = None,
    method: str | Method = "lsq",
    batch_dim: int | None = None,
) -> Tensor:
    """x̂ = s·round(clip((x − β)/s, qn, qp)) + β, with the gradients of `method` for x, step and offset.

    Args:
        x: any floating-point tensor.
        step: s > 0 (not checked: that would wait for the device), a tensor whose shape broadcasts against x (scalar: one step per tensor).
        grid: the integers there are.
        offset: β, of the step's shape; None is zero.
        method: a name in `lowbit.METHODS`, or a `Method`. The row's rounding and step gradient are used.
            What a method does otherwise is the `Quantizer`'s: its starting rule, its range and transform of weights (PACT,
            DoReFa, min-max), and its other row for activations (`Method.activations`).
        batch_dim: the dimension of x that is not counted in N, the number of elements that share a step. Give it for
            activations, leave it None for weights.

    Raises:
        LowbitError: x is no floating-point tensor, an unknown method, a step or offset that does not broadcast against x, no such batch dimension.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise LowbitError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    for name, value in (("step", step), ("offset", offset)):
        if not isinstance(value, Tensor) and not (name == "offset" and value is None):
            raise LowbitError(f"{name} must be a tensor, got {type(value).__name__}: torch.tensor({value}) is one")
    method = get_method(method)
    slope = None if method.slope is None else step.new_tensor(method.slope.value)
    norm = None if slope is None else method.slope.norm_of(slope)
    pull = None if method.pull is None else step.new_tensor(method.pull.value)
    parameters = Parameters(step, None, offset, slope, norm, pull)
    return quantize_with(x, parameters, fixed_for(x, parameters, grid, method, batch_dim))


def fixed_for(x: Tensor, parameters: Parameters, grid: Grid, method: Method, batch_dim: int | None) -> Fixed:
    """Raises LowbitError: a step or offset that does not broadcast against x, no such batch dimension."""
    count = elements_sharing if torch.compiler.is_compiling() else _counted  # a compiler's sizes may be symbols
    step, offset = parameters.step, parameters.offset
    sharing = count(x.shape, step.shape, batch_dim)
    if offset is not None and offset.shape != step.shape:
        count(x.shape, offset.shape, batch_dim)
    return Fixed(grid, method, sharing)


def quantize_with(x: Tensor, parameters: Parameters, fixed: Fixed) -> Tensor:
    """`fake_quantize` with the rounding's parameters as tensors, and the step bounded around `start` where given."""
    if torch.is_grad_enabled():
        return _FakeQuantize.apply(x, *parameters, fixed)
    step, _, offset, *_ = parameters.bounded()
    grid = fixed.grid
    fused = kernels.fused_values(values, x, step, offset, grid)
    return values(x, step, offset, grid.qn, grid.qp, grid=grid) if fused is None else fused


def gradients_with(
    x: Tensor, parameters: Parameters, fixed: Fixed, gradient: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """For the gradient of `quantize_with`'s result those of x and of each of `parameters`; None where not `wanted` or not learned."""
    grid, method, sharing = fixed
    learned = method.step_gradient is not None
    wants_x, wants_step, _, wants_offset, *_ = wanted
    wanted = (wants_x, learned and wants_step, learned and wants_offset)
    g = method.step_gradient.scale(sharing, grid.qp) if learned else 1.0
    step, _, *others = parameters.bounded()
    found = kernels.fused_gradients(gradients, x, step, *others, gradient, g, grid, method, wanted)
    if found is None:
        found = gradients(
            x, step, *others, gradient, g, grid.qn, grid.qp, grid=grid, method=method, wanted=wanted,
            total=lambda each: each.sum_to_size(step.shape),
        )  # fmt: skip
    grad_x, grad_step, grad_offset = found
    return grad_x, *Parameters(grad_step, None, grad_offset, None, None, None)


def bounded_step(step: Tensor, start: Tensor) -> Tensor:
    """The step brought into [start/1024, start·1024]; NaN becomes the lower bound.

    Far beyond anything training does, and near enough that neither a runaway learning rate nor a NaN in the parameter
    makes the step zero, negative or infinite.
    """
    # A selection, false for NaN: of fmax the compiler makes a dozen operations, and inlines them into every loop over x.
    # Literals: as a global, the factor becomes a symbol under torch.compile(dynamic=True), which it can't handle here.
    low = start * 0.0009765625
    return torch.minimum(torch.where(step > low, step, low), start * 1024.0)


def round_to_grid(c: Tensor, grid: Grid) -> Tensor:
    """The level nearest to c, already clipped; ties go to the even level (binary grid: 0 goes to +1)."""
    if grid.binary:
        return torch.where(c >= 0, 1.0, -1.0).to(c.dtype)
    return torch.round(c)


def values(x: Tensor, step: Tensor, offset: Tensor | None, qn: Bound, qp: Bound, *, grid: Grid) -> Tensor:
    """x̂, of x's type. The grid's bounds come apart from it, as numbers or 0-dim tensors."""
    s, beta = _arithmetic(x, step, offset)
    c = _position(x.to(s.dtype), s, beta).clamp(qn, qp)
    x_hat = round_to_grid(c, grid) * s
    if beta is not None:
        x_hat = x_hat + beta
    return x_hat.to(x.dtype)


def gradients(
    x: Tensor,
    step: Tensor,
    offset: Tensor | None,
    slope_value: Tensor | None,
    slope_norm: Tensor | None,
    pull_value: Tensor | None,
    gradient: Tensor,
    g: Bound,
    qn: Bound,
    qp: Bound,
    *,
    grid: Grid,
    method: Method,
    wanted: tuple[bool, bool, bool],
    total: Callable[[Tensor], Tensor],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(∂L/∂x, ∂L/∂s, ∂L/∂β), each None where it is not `wanted`; `total` sums over the elements that share a step."""
    s, beta = _arithmetic(x, step, offset)
    G = gradient.to(s.dtype)
    c = _position(x.to(s.dtype), s, beta).clamp(qn, qp)
    q = round_to_grid(c, grid)
    # G inside the range and 0 elsewhere. Selected twice, and products instead of a selection below: on a processor half
    # the time of one mask.
    inside = torch.where(c > qn, torch.where(c < qp, G, 0), 0)
    slope = None
    if method.slope is not None:
        slope = method.slope.function((c - qn) / grid.spacing, slope_value.to(s.dtype))
        if slope_norm is not None:
            slope = slope * slope_norm.to(s.dtype)

    grad_x = grad_step = grad_offset = None
    wants_x, wants_step, wants_offset = wanted
    if wants_x:
        grad_x = inside if slope is None else inside * slope
        if method.pull is not None:
            grad_x = grad_x * method.pull.function((c - q) / grid.spacing, G, pull_value.to(s.dtype))
        grad_x = grad_x.to(x.dtype)
    if wants_step:
        # Outside, c is the bound itself; inside, c is v.
        toward = method.step_gradient.inside(q, c, 1.0 if slope is None else slope)
        grad_step = (total(inside * toward + (G - inside) * c) * g).to(step.dtype)
    if wants_offset:
        grad_offset = (total(G - inside) * g).to(offset.dtype)
    return grad_x, grad_step, grad_offset


def _arithmetic(x: Tensor, step: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(s, β) in the type that is computed in."""
    arithmetic = torch.promote_types(x.dtype, torch.float32)
    return step.to(arithmetic), None if offset is None else offset.to(arithmetic)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *arguments):
        *parameters, fixed = arguments
        ctx.save_for_backward(x, *parameters)
        ctx.fixed = fixed
        return quantize_with(x, Parameters(*parameters), fixed)

    @staticmethod
    def backward(ctx, gradient):
        x, *parameters = ctx.saved_tensors
        return *gradients_with(x, Parameters(*parameters), ctx.fixed, gradient, ctx.needs_input_grad), None


class _SnapOffset(torch.autograd.Function):
    @staticmethod
    def forward(ctx, offset, step):
        return -(torch.round(-offset / step) * step)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def snapped_offset(offset: Tensor, step: Tensor) -> Tensor:
    """−s·round(−β/s): the offset that an integer zero point stands for; its gradient goes to β unchanged."""
    return _SnapOffset.apply(offset, step.detach())


def _position(x: Tensor, s: Tensor, beta: Tensor | None) -> Tensor:
    """v = (x − β)/s. A division, not a product with 1/s: it is what QuantizeLinear computes."""
    return (x if beta is None else x - beta) / s
