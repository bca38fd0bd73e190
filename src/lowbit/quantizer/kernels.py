"""Fused kernels for networks that run uncompiled.

Uncompiled, each operation of the quantizer reads and writes the whole tensor. Here torch.compile fuses the quantizer's
own functions (`functional.values` and `functional.gradients`), one kernel each, for tensors that are worth it; a
compiled network gets fusion by itself. One kernel serves every shape and grid: a tensor is taken as groups of elements
that share a step, in the order in which they lie in memory, and the grid's bounds are tensors.

Values are the same bits as without; sums over elements are made in another order. Where the compiler does not work, the
plain functions run, and a warning says so once. `torch.compiler.set_stance("force_eager")` switches the kernels off.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from lowbit.grid import Grid

if TYPE_CHECKING:
    from lowbit.quantizer.methods import Method

# Elements below which a tensor is not worth the compilation: few such layers cost a network much.
smallest = 2**15

_works = True


def fused_values(function: Callable, x: Tensor, step: Tensor, offset: Tensor | None, grid: Grid) -> Tensor | None:
    """What `function` (`functional.values`) returns, by one kernel; None where the plain function is to run."""
    groups = _groups(x, step)
    if groups is None:
        return None
    x_hat = torch.empty_like(x)
    out = _flat(x_hat, groups)
    ran = _run(
        _values_kernel(function, _any_of(grid), _variant(x, groups)), out, _flat(x, groups), _column(step, groups),
        _column(offset, groups),
        *_bounds(grid, x.device),
    )  # fmt: skip
    return None if ran is None else x_hat


def fused_gradients(
    function: Callable,
    x: Tensor,
    step: Tensor,
    offset: Tensor | None,
    surrogate_value: Tensor | None,
    surrogate_norm: Tensor | None,
    scaling_value: Tensor | None,
    gradient: Tensor,
    g: float,
    grid: Grid,
    method: Method,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """What `function` (`functional.gradients`) returns, by one kernel; None where the plain function is to run."""
    groups = _groups(x, step)
    if groups is None:
        return None
    if gradient.stride() != x.stride():
        gradient = torch.empty_like(x, dtype=gradient.dtype).copy_(gradient)
    grad_x = torch.empty_like(x) if wanted[0] else None
    sums = _run(
        _gradients_kernel(function, _any_of(grid), method, wanted, _variant(x, groups)),
        None if grad_x is None else _flat(grad_x, groups),
        _flat(x, groups), _column(step, groups), _column(offset, groups), surrogate_value, surrogate_norm,
        scaling_value,
        _flat(gradient, groups), _number(g, x.device), *_bounds(grid, x.device),
    )  # fmt: skip
    if sums is None:
        return None
    grad_step, grad_offset = (None if total is None else total.reshape(step.shape) for total in sums)
    return grad_x, grad_step, grad_offset


def _groups(x: Tensor, step: Tensor) -> int | None:
    """How many groups of elements that share a step lie one after the other in memory; None where no kernel serves."""
    usable = (
        _works
        and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()  # a backward pass that is differentiated again
        and not is_in_torch_dispatch_mode()  # somebody records or counts operations
        and not torch.jit.is_tracing()
        and x.numel() >= smallest
        and type(x) in (Tensor, nn.Parameter)
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and x.device.type in ("cpu", "cuda")
    )
    if not usable:
        return None
    groups = step.numel()
    aligned = (1,) * (x.dim() - step.dim()) + tuple(step.shape)
    leading = next((dim for dim, size in enumerate(aligned) if size == 1), x.dim())
    if groups > 1 and math.prod(x.shape[:leading]) != groups:
        return None
    if x.is_contiguous():
        return groups
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])
    return groups if last and (groups == 1 or leading == 1) else None


def _flat(x: Tensor, groups: int) -> Tensor:
    """[n], or [groups, n/groups], in the order of memory."""
    n = x.numel()
    return _alias(x, (n,), (1,)) if groups == 1 else _alias(x, (groups, n // groups), (n // groups, 1))


def _column(values: Tensor | None, groups: int) -> Tensor | None:
    """A value per group: a scalar, or [groups, 1]."""
    if values is None:
        return None
    values = values.detach().contiguous()
    return _alias(values, (), ()) if groups == 1 else _alias(values, (groups, 1), (1, 1))


def _alias(x: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """x's memory as another tensor, not as a view of x.

    Of a view, a compiled kernel would be tied to x's shape and strides.

    What is written there does not count as a change of x in place either.
    """
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage(), x.storage_offset(), size, stride)


def _variant(x: Tensor, groups: int) -> tuple[torch.dtype, bool]:
    """What a kernel is compiled for. A code object each, since the compiler allows each few compilations."""
    return x.dtype, groups > 1


@cache
def _number(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, device=device)


def _bounds(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    return _number(float(grid.qn), device), _number(float(grid.qp), device)


@cache
def _any_of(grid: Grid) -> Grid:
    """One grid for all that differ in their bounds alone."""
    return Grid(1, signed=True) if grid.binary else Grid(2, signed=True)


@cache
def _values_kernel(function: Callable, grid: Grid, variant: tuple[torch.dtype, bool]) -> Callable:
    def kernel(out: Tensor, *tensors: Tensor | None) -> tuple:
        out.copy_(function(*tensors, grid=grid))
        return ()

    return _compiled(kernel)


@cache
def _gradients_kernel(
    function: Callable, grid: Grid, method: Method, wanted: tuple[bool, bool, bool], variant: tuple[torch.dtype, bool]
) -> Callable:
    def total(each: Tensor) -> Tensor:
        return each.sum() if each.dim() == 1 else each.sum(1, keepdim=True)

    def kernel(out: Tensor | None, *tensors: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        grad_x, grad_step, grad_offset = function(*tensors, grid=grid, method=method, wanted=wanted, total=total)
        if out is not None:
            out.copy_(grad_x)
        return grad_step, grad_offset

    return _compiled(kernel)


def _compiled(kernel: FunctionType) -> Callable:
    # A code object of its own: the compiler counts recompilations, of which there may be few, by code object.
    own = FunctionType(
        kernel.__code__.replace(), kernel.__globals__, kernel.__name__, kernel.__defaults__, kernel.__closure__
    )
    # Not "the whole graph or an error": where the compiler is switched off it runs as it is.
    return torch.compile(own, dynamic=True)


def _run(kernel: Callable, *tensors: Tensor | None) -> tuple | None:
    """What the kernel returns; None, and no kernels from now on, where it can't be compiled."""
    global _works
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    try:
        if torch.is_autocast_enabled(device):  # would be one more thing that a kernel is compiled for
            with torch.autocast(device, enabled=False):
                return kernel(*tensors)
        return kernel(*tensors)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _works = False
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"lowbit's quantizers run unfused, and slower: torch.compile does not work here ({reason})", stacklevel=2
        )
        return None
