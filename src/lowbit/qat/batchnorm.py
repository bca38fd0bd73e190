"""Batch-norm statistics of the quantized network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.errors import LowbitError
from lowbit.layers.modes import evaluation
from lowbit.qat.calibrate import run_batch


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable) -> None:
    """Set running means and variances to their plain average over the batches, in place.

    At low bits, weights that oscillate between two levels leave the running statistics behind (Nagel et al., ICML 2022,
    arXiv 2203.11086, §3.1). Dropout and the like are off while it runs; when an error is raised, nothing has changed.

    Raises:
        LowbitError: no batches.
    """
    norms = _tracking(model)
    if not norms:
        return
    before, momenta = _kept(norms), [norm.momentum for norm in norms]
    device = _statistics(norms[0])[0].device
    done = False
    with evaluation(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's cumulative average
                norm.training = True
            for batch in batches:
                run_batch(model, batch, device)
                done = True
            if not done:
                raise LowbitError("no batches to re-estimate batch-norm with")
        except BaseException:
            _put_back(before)
            raise
        finally:
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[bool]:
    """Within, running statistics may change, and are put back at the end; yields whether there are any."""
    kept = _kept(_tracking(model))
    try:
        yield bool(kept)
    finally:
        _put_back(kept)


def _kept(norms: Iterable[_BatchNorm]) -> list[tuple[Tensor, Tensor]]:
    """Running statistics, each with a copy."""
    return [(each, each.clone()) for norm in norms for each in _statistics(norm)]


def _put_back(kept: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for each, value in kept:
            each.copy_(value)


def _tracking(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Running mean and variance, and how many batches they are of."""
    mean, variance, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None and variance is not None and count is not None
    return mean, variance, count
