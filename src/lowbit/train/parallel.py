"""How several processes hold one network in training: each the whole of it (DDP), or each a part (FSDP2).

Both average gradients over the processes. A batch is cut into equal parts, so that is the gradient of the mean loss over
the whole batch; the factor of LSQ's step gradients does not count the batch, and needs no correction.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

import lowbit
from lowbit.train.recompute import stages


class Whole:
    """Every process holds the whole network; gradients are averaged while they are computed."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def divide(self, model: nn.Module) -> None:
        """Leave every process its part of the parameters, in place: here all of them."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """What a training step calls in place of the divided network."""
        with warnings.catch_warnings():
            # torch 2.13 has a new name for `broadcast_buffers`, which torch 2.11 does not know.
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
            return self.accelerator.prepare(model)

    def groups(self, groups: list[dict]) -> list[dict]:
        """Parameter groups as an optimizer takes them."""
        return groups

    @contextmanager
    def batch(self, wrapped: nn.Module) -> Iterator[None]:
        """Around the passes of one batch: gradients are averaged in the last of an optimizer step."""
        with self.accelerator.accumulate(wrapped):
            yield

    def finish_gradients(self, parameters: Iterable[nn.Parameter], largest_norm: float | None) -> None:
        """After the last backward pass of an optimizer step: average what is not averaged yet, and clip."""
        if largest_norm is not None:
            self.accelerator.clip_grad_norm_(parameters, largest_norm)


class Sharded(Whole):
    """Every process holds a part of weights, gradients and optimizer state (`fully_shard`, FSDP2).

    Weights are gathered stage by stage while they are used. Parameters of quantizers, and others without dimensions,
    which FSDP2 does not take, stay whole on every process; they are few.
    """

    def divide(self, model: nn.Module) -> None:
        mesh = init_device_mesh(self.accelerator.device.type, (self.accelerator.num_processes,))
        whole = {p for _, quantizer in lowbit.quantizers(model) for p in quantizer.parameters()}
        whole |= {p for p in model.parameters() if p.dim() == 0}
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP2 takes no channels-last weights
        for module in (*stages(model), model):
            fully_shard(module, mesh=mesh, ignored_params=whole)

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def groups(self, groups: list[dict]) -> list[dict]:
        # Optimizers work on many tensors at once, and then all of them must be parts or all whole.
        return [
            {**group, "params": members}
            for group in groups
            for divided in (True, False)
            if (members := [p for p in group["params"] if isinstance(p, DTensor) is divided])
        ]

    @contextmanager
    def batch(self, wrapped: nn.Module) -> Iterator[None]:
        assert isinstance(wrapped, FSDPModule)
        with self.accelerator.accumulate(wrapped):
            wrapped.set_requires_gradient_sync(self.accelerator.sync_gradients)
            yield

    @torch.no_grad()
    def finish_gradients(self, parameters: Iterable[nn.Parameter], largest_norm: float | None) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        whole = [g for g in gradients if not isinstance(g, DTensor)]
        parts = [g.to_local() for g in gradients if isinstance(g, DTensor)]
        if whole:
            flat = torch.cat([g.flatten() for g in whole])
            dist.all_reduce(flat)
            flat /= self.accelerator.num_processes
            for g, mean in zip(whole, flat.split([g.numel() for g in whole])):
                g.copy_(mean.reshape(g.shape))
        if largest_norm is None:
            return
        square = torch.stack(torch._foreach_norm(parts)).square().sum()
        dist.all_reduce(square)
        if whole:
            square += torch.stack(torch._foreach_norm(whole)).square().sum()
        torch._foreach_mul_(parts + whole, (largest_norm / (square.sqrt() + 1e-6)).clamp(max=1.0))


def gathered(state: Any, *, keep: bool) -> Any:
    """Nested state with whole tensors in place of parts; all processes must call it, those that don't keep it get None."""
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, dict):
        return {key: gathered(value, keep=keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value, keep=keep) for value in state)
    return state if keep else None


def divided_like(parameter: Tensor, value: Tensor, name: str) -> Tensor:
    """A whole tensor of the parameter's shape, divided and laid out in memory as the parameter is.

    Raises:
        ValueError: it is of another shape or type, and would be broadcast or rounded; the message has its `name`.
    """
    value = like(parameter, value, name)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter).copy_(value)


def like(wanted: Tensor, value: Tensor, name: str) -> Tensor:
    """The value. Raises ValueError, with its `name`, unless it is of the wanted shape and type."""
    if value.shape != wanted.shape or value.dtype != wanted.dtype:
        raise ValueError(
            f"{name} is {value.dtype} of shape {tuple(value.shape)}, not {wanted.dtype} of {tuple(wanted.shape)}"
        )
    return value
