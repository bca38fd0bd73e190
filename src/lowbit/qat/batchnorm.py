"""Batch-norm statistics of the quantized network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    norms = tracking(model.modules())
    if not norms:
        return
    before = kept(running(norms))
    device = _statistics(norms[0])[0].device
    done = False
    try:
        with evaluation(model), averaging(norms):
            for batch in batches:
                run_batch(model, batch, device)
                done = True
            if not done:
                raise LowbitError("no batches to re-estimate batch-norm with")
    except BaseException:
        put_back(before)
        raise


def tracking(modules: Iterable[nn.Module]) -> list[_BatchNorm]:
    """Those of the modules that are batch-norms with running statistics, each once."""
    return list(dict.fromkeys(m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats))


@contextmanager
def averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Within, running statistics begin anew and are the plain average over what is run."""
    momenta = [norm.momentum for norm in norms]
    try:
        with by_batches(norms):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's cumulative average
            yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


@contextmanager
def by_batches(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Within, batch-norms normalize by the statistics of each batch, as in training."""
    modes = {norm: norm.training for norm in norms}
    try:
        for norm in modes:
            norm.training = True
        yield
    finally:
        for norm, training in modes.items():
            norm.training = training


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[bool]:
    """Within, running statistics may change, and are put back at the end; yields whether there are any."""
    before = kept(running(tracking(model.modules())))
    try:
        yield bool(before)
    finally:
        put_back(before)


def kept(tensors: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """Tensors, each with a copy of what it holds."""
    return {tensor: tensor.detach().clone() for tensor in tensors}


@torch.no_grad()
def put_back(before: Mapping[Tensor, Tensor]) -> None:
    """Into each tensor what it held."""
    for tensor, value in before.items():
        tensor.copy_(value)


def running(norms: Iterable[_BatchNorm]) -> list[Tensor]:
    """Their running statistics."""
    return [each for norm in norms for each in _statistics(norm)]


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Running mean and variance, and how many batches they are of."""
    mean, variance, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None and variance is not None and count is not None
    return mean, variance, count
