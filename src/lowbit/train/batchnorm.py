"""Batch-norm in several processes: over the images of all of them, and one set of statistics for all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from lowbit.processes import several


def synchronise_batchnorm(model: nn.Module) -> None:
    """Let every batch-norm normalise by the statistics of all processes' images while it trains, in place.

    torch's `SyncBatchNorm` works on accelerators only, and drops what subclasses do after normalising. Here a layer keeps
    its parameters and its own `forward`, in which `batch_norm` is replaced. Evaluation is as before.
    """
    for module in _batchnorms(model):
        module.__class__ = _synchronised(type(module))


def average_batchnorm(model: nn.Module) -> None:
    """Give every process the mean of all processes' running statistics."""
    average(statistic for module in _batchnorms(model) for statistic in (module.running_mean, module.running_var))


@torch.no_grad()
def average(tensors: Iterable[Tensor | None]) -> None:
    """Give every process the mean of all processes' tensors, in place."""
    if not several():
        return
    for tensor in tensors:
        if tensor is not None:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` with the mean and variance over the batches [B, C, …] of all processes.

    Mean and variance come from those of each process, so no large sums of squares are subtracted.
    """
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    dims = [dim for dim in range(x.dim()) if dim != 1]
    count = torch.tensor([x.numel() / x.shape[1]], device=x.device)
    my_var, my_mean = torch.var_mean(x.float(), dims, correction=0)
    total = _Sum.apply(torch.cat([my_mean * count, count]))
    count_all = total[-1].detach()
    mean = total[:-1] / count_all
    var = _Sum.apply(count * (my_var + (my_mean - mean).square())) / count_all
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((var * count_all / (count_all - 1)).to(running_var.dtype), momentum)
    scale = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return (x * scale.reshape(shape) + shift.reshape(shape)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """Sum over the processes; the gradient is that of the sum of all processes' losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


class _AllProcesses(TorchFunctionMode):
    """Within: `torch.nn.functional.batch_norm` is the one over all processes."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


@functools.cache
def _synchronised(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    @torch.compiler.disable  # processes that talk inside a graph can't be compiled
    def forward(self: _BatchNorm, x: Tensor) -> Tensor:
        if not (self.training and several()):
            return kind.forward(self, x)
        with _AllProcesses():
            return kind.forward(self, x)

    return type(f"Synchronised{kind.__name__}", (kind,), {"forward": forward})


def _batchnorms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
