"""Activations computed again in the backward pass instead of kept (Chen et al. 2016, arXiv 1604.06174)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def stages(model: nn.Module) -> list[nn.Module]:
    """The blocks that a network is a sequence of: the members of its top-level `Sequential`s and `ModuleList`s."""
    containers = [child for child in model.children() if isinstance(child, nn.Sequential | nn.ModuleList)]
    return [block for container in containers for block in container if any(True for _ in block.parameters())]


def recompute_activations(model: nn.Module) -> None:
    """Keep only the inputs of the network's stages for the backward pass, in place; loss and gradients stay the same.

    A network without containers of stages is taken layer by layer. timm's own `set_grad_checkpointing` is not used: it
    would let batch-norm count every batch twice.
    """
    for stage in stages(model) or [child for child in model.children() if any(True for _ in child.parameters())]:
        stage.__class__ = _recomputed(type(stage))


@functools.cache
def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return kind.forward(self, *arguments, **named)
        call = functools.partial(kind.forward, self)
        if torch.compiler.is_compiling():  # the compiler keeps what changes in place out of the second pass by itself
            return checkpoint(call, *arguments, use_reentrant=False, **named)
        return checkpoint(
            call, *arguments, use_reentrant=False, context_fn=lambda: (_pass(self), _pass(self, again=True)), **named
        )

    return type(f"Recomputed{kind.__name__}", (kind,), {"forward": forward})


@contextmanager
def _pass(stage: nn.Module, *, again: bool = False) -> Iterator[None]:
    """Around a pass through a stage: batch-norm counts its batch once."""
    norms = [
        (m, m.momentum, count, count.clone())
        for m in stage.modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats and (count := m.num_batches_tracked) is not None
    ]
    for norm, *_ in norms if again else ():
        norm.momentum = 0.0  # what is tracked stays, to the bit
    try:
        yield
    finally:
        for norm, momentum, count, before in norms if again else ():
            norm.momentum = momentum
            count.copy_(before)
