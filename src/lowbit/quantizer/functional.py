"""The quantizer itself: one forward and one backward for every method.

    v = (x − β) / s      c = clip(v, qn, qp)      q = round_half_even(c)      x̂ = s·q + β          (methods.md §1)

With G = ∂L/∂x̂ arriving, "inside" meaning qn < v < qp, and a method giving its surrogate gradient d, gradient scaling e
and `inside_step`:

    ∂L/∂x = G · [inside] · d(c) · e(c − q, G)
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
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lowbit.errors import LowbitError
from lowbit.grid import Grid
from lowbit.quantizer import kernels
from lowbit.quantizer.methods import Method, get_method
from lowbit.quantizer.step import elements_sharing

Bound = Tensor | float

_counted = cache(elements_sharing)


class Parameters(NamedTuple):
    """The tensors that a quantizer computes with besides its input.

    Attributes:
        step: s, as it is learned.
        initial_step: the value around which the step is bounded, or None to take the step as it is.
        offset: β, or None for zero.
        surrogate_value: the parameter of the method's surrogate gradient.
        surrogate_norm: the factor that goes with that parameter.
        scaling_value: the parameter of the method's gradient scaling.
    """

    step: Tensor
    initial_step: Tensor | None
    offset: Tensor | None
    surrogate_value: Tensor | None
    surrogate_norm: Tensor | None
    scaling_value: Tensor | None

    def bounded(self) -> Parameters:
        """The same with the step within its bounds.

        It comes before any loop over x, because a compiler would put the computation of the bounds into that loop.
        """
        if self.initial_step is None:
            return self
        return self._replace(step=bounded_step(self.step, self.initial_step), initial_step=None)


class Settings(NamedTuple):
    """What a quantizer computes with that is not a tensor.

    Attributes:
        grid: the integers that codes are taken from.
        method: the method, for its gradients.
        sharing: N, the number of elements that share a step.
        view: the shape in which x is quantized, or None for its own.
    """

    grid: Grid
    method: Method
    sharing: int
    view: tuple[int, ...] | None

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        parameters: Parameters,
        grid: Grid,
        method: Method,
        *,
        batch_dim: int | None = None,
        view: tuple[int, ...] | None = None,
    ) -> Settings:
        """The settings for an input of that shape.

        Raises:
            LowbitError: a step or offset that does not broadcast against the input, or no such batch dimension.
        """
        # A compiler's sizes may be symbols, and torch.jit.trace's are tensors.
        symbolic = torch.compiler.is_compiling() or torch.jit.is_tracing()
        count = elements_sharing if symbolic else _counted
        step, offset = parameters.step, parameters.offset
        shape = shape if view is None else view
        sharing = count(shape, step.shape, batch_dim)
        if offset is not None and offset.shape != step.shape:
            count(shape, offset.shape, batch_dim)
        return cls(grid, method, sharing, view)

    def viewed(self, x: Tensor) -> Tensor:
        """x in the shape in which it is quantized."""
        return x if self.view is None else x.reshape(self.view)


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
        step: s > 0 (not checked, because that would wait for the device), a tensor whose shape broadcasts against x;
            a scalar is one step per tensor.
        grid: the integers there are.
        offset: β, of the step's shape; None is zero.
        method: a name in `lowbit.METHODS`, or a `Method`. Its rounding and its step gradient are used. What a method
            does otherwise is the `Quantizer`'s: its initialization, its range and transform of weights (PACT, DoReFa,
            min-max), and its other method for activations (`Method.activations`).
        batch_dim: the dimension of x that is not counted in N, the number of elements that share a step. Give it for
            activations, leave it None for weights.

    Raises:
        LowbitError: x is not a floating-point tensor, an unknown method, a step or offset that does not broadcast
            against x, no such batch dimension.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise LowbitError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    for name, value in (("step", step), ("offset", offset)):
        if not isinstance(value, Tensor) and not (name == "offset" and value is None):
            raise LowbitError(f"{name} must be a tensor, got {type(value).__name__}: torch.tensor({value}) is one")
    method = get_method(method)
    value = norm = None
    if method.surrogate_gradient is not None:
        value = step.new_tensor(method.surrogate_gradient.value)
        norm = method.surrogate_gradient.norm_of(value)
    scaling = None if method.gradient_scaling is None else step.new_tensor(method.gradient_scaling.value)
    parameters = Parameters(step, None, offset, value, norm, scaling)
    check_supported(x)
    return FakeQuantize.apply(x, *parameters, Settings.of(x.shape, parameters, grid, method, batch_dim=batch_dim))


def is_recorded(module: nn.Module) -> bool:
    """Whether torch.jit records a module in evaluation.

    Then by operations that it can save, not by autograd functions.
    """
    return torch.jit.is_tracing() and not module.training


def check_supported(x: Tensor) -> None:
    """Refuse what a quantizer's own backward pass does not support.

    FakeQuantize has no `jvp`, which compilers don't take.

    Raises:
        LowbitError: within torch.func.grad, vmap, jvp and what is made of them; an x with a tangent.
    """
    if torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active():
        raise LowbitError(
            "quantizers do not support the transforms of torch.func (grad, vmap, jvp, jacrev, …): take gradients by "
            "backward() or torch.autograd.grad, and give batches instead of vmap"
        )
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise LowbitError("quantizers do not support forward-mode differentiation: take gradients by backward()")


class FakeQuantize(torch.autograd.Function):
    """x̂ of (x, *parameters, settings), by `values`; the gradients of x, step and offset, by `gradients`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        *tensors, settings = arguments
        ctx.save_for_backward(x, *tensors)
        ctx.settings = settings
        return quantized(x, Parameters(*tensors), settings)

    @staticmethod
    # pyrefly: ignore[bad-override]  # torch declares one that takes any number of gradients
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = _unpacked(ctx)
        (grid, method, sharing, _), shape = ctx.settings, x.shape
        learned = method.step_gradient is not None
        wants_x, wants_step, _, wants_offset, *_ = ctx.needs_input_grad
        wanted = (wants_x, learned and wants_step, learned and wants_offset)
        g = method.step_gradient.scale(sharing, grid.qp) if learned else 1.0
        x, gradient = ctx.settings.viewed(x), ctx.settings.viewed(gradient)
        step, _, offset, value, norm, scaling = Parameters(*tensors).bounded()
        found = kernels.fused_gradients(
            gradients, x, step, offset, value, norm, scaling, gradient, g, grid, method, wanted
        )
        if found is None:
            found = gradients(
                x, step, offset, value, norm, scaling, gradient, g, grid.qn, grid.qp, grid=grid, method=method,
                wanted=wanted, total=lambda each: each.sum_to_size(step.shape),
            )  # fmt: skip
        grad_x, grad_step, grad_offset = found
        grad_x = None if grad_x is None else grad_x.reshape(shape)
        return grad_x, grad_step, None, grad_offset, None, None, None, None


def quantized(x: Tensor, parameters: Parameters, settings: Settings) -> Tensor:
    """x̂, without gradients."""
    step, _, offset, *_ = parameters.bounded()
    viewed, grid = settings.viewed(x), settings.grid
    x_hat = kernels.fused_values(values, viewed, step, offset, grid)
    if x_hat is None:
        x_hat = values(viewed, step, offset, grid.qn, grid.qp, grid=grid)
    # A copy, because autograd lets nobody change a view that one of its functions returns.
    return x_hat if settings.view is None else x_hat.reshape(x.shape).clone()


class QuantizerNode(Protocol):
    """What autograd keeps of a call of `FakeQuantize`: the `grad_fn` of what that returned."""

    settings: Settings
    saved_tensors: tuple[Any, ...]
    unpacked: tuple[int, tuple[Any, ...]]


def node_of(x: Tensor) -> QuantizerNode | None:
    """The node of an x that `FakeQuantize` returned, unchanged and with a graph: `recomputed` gives x again.

    Or None.
    """
    node: Any = x.grad_fn
    return node if isinstance(getattr(node, "settings", None), Settings) and x._version == 0 else None


@torch.no_grad()
def recomputed(node: QuantizerNode) -> Tensor:
    """The same bits as the x̂ whose `grad_fn` is `node`, from what the node saved. To be called in a backward pass.

    Raises:
        RuntimeError: what the node saved has been changed in place since then.
    """
    saved = node.saved_tensors
    # A saved tensor can be unpacked once in a backward pass, if torch.utils.checkpoint has it, so the node's own
    # backward takes it from here.
    node.unpacked = (torch._C._current_graph_task_id(), saved)
    return FakeQuantize.apply(*saved, node.settings)


def _unpacked(node: QuantizerNode) -> tuple[Any, ...]:
    """What the node saved; if `recomputed` has unpacked it in this backward pass, what that found."""
    if torch.compiler.is_compiling() or not hasattr(node, "unpacked"):
        return node.saved_tensors
    backward_pass, saved = node.unpacked
    del node.unpacked
    return saved if backward_pass == torch._C._current_graph_task_id() else node.saved_tensors


def bounded_step(step: Tensor, initial: Tensor) -> Tensor:
    """The step brought into [initial/1024, initial·1024]; NaN becomes the lower bound.

    Far beyond anything training does, and near enough that neither a runaway learning rate nor a NaN in the parameter
    makes the step zero, negative or infinite.
    """
    # A selection, false for NaN: of fmax the compiler makes a dozen operations, and inlines them into every loop over
    # x. Literals: as a global, the factor becomes a symbol under torch.compile(dynamic=True), which can't handle it.
    low = initial * 0.0009765625
    return torch.minimum(torch.where(step > low, step, low), initial * 1024.0)


def round_to_grid(c: Tensor, grid: Grid) -> Tensor:
    """The level nearest to c, already clipped; ties go to the even level (binary grid: 0 goes to +1)."""
    if grid.binary:
        return torch.where(c >= 0, 1.0, -1.0).to(c.dtype)
    return torch.round(c)


def codes(x: Tensor, step: Tensor, offset: Tensor | None, grid: Grid) -> Tensor:
    """q, in the floating-point type that is computed in."""
    s, beta = _arithmetic(x, step, offset)
    return round_to_grid(_clipped(x, s, beta, grid.qn, grid.qp), grid)


def values(x: Tensor, step: Tensor, offset: Tensor | None, qn: Bound, qp: Bound, *, grid: Grid) -> Tensor:
    """x̂, of x's type. The grid's bounds come apart from it, as numbers or 0-dim tensors."""
    s, beta = _arithmetic(x, step, offset)
    c = _clipped(x, s, beta, qn, qp)
    x_hat = round_to_grid(c, grid) * s
    if beta is not None:
        x_hat = x_hat + beta
    # No `to` where there is nothing to change: of a function that ends so, torch 2.11 compiles no gradients.
    return x_hat if x_hat.dtype == x.dtype else x_hat.to(x.dtype)


def gradients(
    x: Tensor,
    step: Tensor,
    offset: Tensor | None,
    surrogate_value: Tensor | None,
    surrogate_norm: Tensor | None,
    scaling_value: Tensor | None,
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
    c = _clipped(x, s, beta, qn, qp)
    q = round_to_grid(c, grid)
    # G inside the range and 0 elsewhere. Selected twice, and products instead of a selection below: on a processor half
    # the time of one mask.
    inside = torch.where(c > qn, torch.where(c < qp, G, 0), 0)
    derivative = None
    if method.surrogate_gradient is not None:
        assert surrogate_value is not None
        derivative = method.surrogate_gradient.function((c - qn) / grid.spacing, surrogate_value.to(s.dtype))
        if surrogate_norm is not None:
            derivative = derivative * surrogate_norm.to(s.dtype)

    grad_x = grad_step = grad_offset = None
    wants_x, wants_step, wants_offset = wanted
    if wants_x:
        grad_x = inside if derivative is None else inside * derivative
        if method.gradient_scaling is not None:
            assert scaling_value is not None
            grad_x = grad_x * method.gradient_scaling.function((c - q) / grid.spacing, G, scaling_value.to(s.dtype))
        grad_x = grad_x.to(x.dtype)
    if wants_step:
        assert method.step_gradient is not None
        # Outside, c is the bound itself; inside, c is v.
        toward = method.step_gradient.inside(q, c, 1.0 if derivative is None else derivative)
        grad_step = (total(inside * toward + (G - inside) * c) * g).to(step.dtype)
    if wants_offset:
        assert offset is not None
        grad_offset = (total(G - inside) * g).to(offset.dtype)
    return grad_x, grad_step, grad_offset


def _arithmetic(x: Tensor, step: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(s, β) in the type that is computed in."""
    arithmetic = torch.promote_types(x.dtype, torch.float32)
    return step.to(arithmetic), None if offset is None else offset.to(arithmetic)


class _RoundZeroPoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, offset: Tensor, step: Tensor) -> Tensor:
        return -(torch.round(-offset / step) * step)

    @staticmethod
    # pyrefly: ignore[bad-override]  # torch declares one that takes any number of gradients
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def with_integer_zero_point(offset: Tensor, step: Tensor, *, trained: bool = True) -> Tensor:
    """−s·round(−β/s), the offset whose zero point is an integer; its gradient, where `trained`, goes to β unchanged."""
    step = step.detach()
    return _RoundZeroPoint.apply(offset, step) if trained else _RoundZeroPoint.forward(None, offset, step)


def _clipped(x: Tensor, s: Tensor, beta: Tensor | None, qn: Bound, qp: Bound) -> Tensor:
    """c = clip((x − β)/s, qn, qp), of s's type."""
    x = x.to(s.dtype)
    # A division, not a product with 1/s: it is what QuantizeLinear computes.
    v = (x if beta is None else x - beta) / s
    return v.clamp(qn, qp)  # pyrefly: ignore[no-matching-overload]  # both bounds are tensors, or both are numbers
