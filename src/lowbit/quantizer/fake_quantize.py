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

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.quantizer import kernels
from lowbit.quantizer.grid import Grid
from lowbit.quantizer.methods import Method, get_method
from lowbit.quantizer.step import elements_sharing

Bound = Tensor | float

_counted = cache(elements_sharing)


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
    return quantize_with(x, step, None, offset, grid, method, slope, norm, pull, batch_dim)


def quantize_with(
    x: Tensor,
    step: Tensor,
    start: Tensor | None,
    offset: Tensor | None,
    grid: Grid,
    method: Method,
    slope_value: Tensor | None,
    slope_norm: Tensor | None,
    pull_value: Tensor | None,
    batch_dim: int | None,
) -> Tensor:
    """`fake_quantize` with the rounding's parameters as tensors, and the step bounded around `start` where given."""
    count = elements_sharing if torch.compiler.is_compiling() else _counted  # a compiler's sizes may be symbols
    sharing = count(x.shape, step.shape, batch_dim)
    if offset is not None and offset.shape != step.shape:
        count(x.shape, offset.shape, batch_dim)
    if not torch.is_grad_enabled():
        return _forward(x, *_arithmetic(x, step, start, offset), grid)
    return _FakeQuantize.apply(x, step, start, offset, slope_value, slope_norm, pull_value, grid, method, sharing)


def bounded_step(step: Tensor, start: Tensor) -> Tensor:
    """The step brought into [start/1024, start·1024]; NaN becomes the lower bound.

    Far beyond anything training does, and near enough that neither a runaway learning rate nor a NaN in the parameter
    makes the step zero, negative or infinite.
    """
    # Literals: as a global, the factor becomes a symbol under torch.compile(dynamic=True), which it can't handle here.
    return torch.fmin(torch.fmax(step, start * 0.0009765625), start * 1024.0)


def round_to_grid(c: Tensor, grid: Grid) -> Tensor:
    """The level nearest to c, already clipped; ties go to the even level (binary grid: 0 goes to +1)."""
    if grid.binary:
        return torch.where(c >= 0, 1.0, -1.0).to(c.dtype)
    return torch.round(c)


def values(x: Tensor, s: Tensor, beta: Tensor | None, qn: Bound, qp: Bound, *, grid: Grid) -> Tensor:
    """x̂, of x's type. The grid's bounds come apart from it, as numbers or 0-dim tensors."""
    c = _position(x.to(s.dtype), s, beta).clamp(qn, qp)
    x_hat = round_to_grid(c, grid) * s
    if beta is not None:
        x_hat = x_hat + beta
    return x_hat.to(x.dtype)


def gradients(
    x: Tensor,
    s: Tensor,
    beta: Tensor | None,
    gradient: Tensor,
    slope_value: Tensor | None,
    slope_norm: Tensor | None,
    pull_value: Tensor | None,
    qn: Bound,
    qp: Bound,
    *,
    grid: Grid,
    method: Method,
    wanted: tuple[bool, bool, bool],
    total: Callable[[Tensor], Tensor],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(∂L/∂x, ∂L/∂s / g, ∂L/∂β / g), each None where it is not `wanted`; `total` sums over the elements that share a step."""
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
        grad_step = total(inside * toward + (G - inside) * c)
    if wants_offset:
        grad_offset = total(G - inside)
    return grad_x, grad_step, grad_offset


def _arithmetic(x: Tensor, step: Tensor, start: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(s, β) in the type that is computed in."""
    arithmetic = torch.promote_types(x.dtype, torch.float32)
    s = step if start is None else bounded_step(step, start)
    return s.to(arithmetic), None if offset is None else offset.to(arithmetic)


def _forward(x: Tensor, s: Tensor, beta: Tensor | None, grid: Grid) -> Tensor:
    fused = kernels.fused_values(values, x, s, beta, grid)
    return values(x, s, beta, grid.qn, grid.qp, grid=grid) if fused is None else fused


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step, start, offset, slope_value, slope_norm, pull_value, grid, method, sharing):
        s, beta = _arithmetic(x, step, start, offset)
        ctx.save_for_backward(x, s, beta, slope_value, slope_norm, pull_value)
        ctx.grid, ctx.method, ctx.sharing = grid, method, sharing
        ctx.step_like = (step.dtype, step.shape)
        ctx.offset_like = None if offset is None else (offset.dtype, offset.shape)
        return _forward(x, s, beta, grid)

    @staticmethod
    def backward(ctx, gradient):
        x, s, beta, *parameters = ctx.saved_tensors
        grid, method = ctx.grid, ctx.method
        wants_x, wants_step, _, wants_offset = ctx.needs_input_grad[:4]
        learned = method.step_gradient is not None
        wanted = (wants_x, learned and wants_step, learned and wants_offset)
        found = kernels.fused_gradients(gradients, x, s, beta, gradient, parameters, grid, method, wanted)
        if found is None:
            found = gradients(
                x, s, beta, gradient, *parameters, grid.qn, grid.qp, grid=grid, method=method, wanted=wanted,
                total=lambda each: each.sum_to_size(s.shape),
            )  # fmt: skip
        grad_x, grad_step, grad_offset = found
        g = method.step_gradient.scale(ctx.sharing, grid.qp) if learned else None
        if grad_step is not None:
            grad_step = _like(grad_step * g, *ctx.step_like)
        if grad_offset is not None:
            grad_offset = _like(grad_offset * g, *ctx.offset_like)
        return grad_x, grad_step, None, grad_offset, None, None, None, None, None, None


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


def _like(gradient: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return gradient.reshape(shape).to(dtype)
