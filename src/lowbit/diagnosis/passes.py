"""The runs of the network.

In full precision, quantized, with one layer quantized alone, and on batch-norm's own statistics.

Nothing of the network changes: what is looked at is looked at by hooks, and quantizers are taken out of their places
and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from lowbit.diagnosis.measure import decibels
from lowbit.errors import LowbitError


def inputs_of(batch: Any, device: torch.device) -> tuple[tuple, dict[str, Any], Tensor | None]:
    """(arguments, keyword arguments, class numbers or None) of a batch as `lowbit.calibrate` takes it.

    Raises:
        LowbitError: anything else, or an empty batch.
    """
    inputs, labels = batch, None
    if isinstance(batch, tuple | list):
        inputs, labels = batch[0] if batch else None, batch[1] if len(batch) == 2 else None
    if isinstance(inputs, Mapping):
        moved = {key: each.to(device) if isinstance(each, Tensor) else each for key, each in inputs.items()}
        arguments, keywords = (), moved
    elif isinstance(inputs, Tensor):
        arguments, keywords = (inputs.to(device),), {}
    else:
        raise LowbitError(
            f"a batch must be a tensor, an (input, label) pair or a dictionary of inputs, got {type(batch).__name__}"
        )
    tensors = [each for each in (*arguments, *keywords.values()) if isinstance(each, Tensor)]
    if not tensors or any(each.numel() == 0 for each in tensors):
        raise LowbitError("a batch is empty: pass batches with at least one sample")
    is_classes = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
    return arguments, keywords, labels.to(device) if is_classes else None


def outputs_of(output: Any) -> list[Tensor]:
    """The floating-point tensors that a network gives, in order."""
    values = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [each.detach() for each in tree_leaves(values) if isinstance(each, Tensor) and each.is_floating_point()]


@contextmanager
def hooked(modules: Mapping[str, nn.Module], see: Callable[[str, nn.Module, tuple, Any], Any]) -> Iterator[None]:
    """Within: `see(name, module, arguments, output)` after each call; what it returns takes the output's place."""
    hooks = []
    try:
        for name, module in modules.items():

            def hook(module: nn.Module, arguments: tuple, output: Any, name: str = name) -> Any:
                return see(name, module, arguments, output)

            hooks.append(module.register_forward_hook(hook))
        yield
    finally:
        for each in hooks:
            each.remove()


class Outputs:
    """The outputs of modules in one run: a list for each, one entry per call."""

    def __init__(self) -> None:
        self.of: dict[str, list[Tensor]] = {}

    def see(self, name: str, module: nn.Module, arguments: tuple, output: Any) -> None:
        self.of.setdefault(name, []).extend(outputs_of(output))


class Errors:
    """Energy and squared error of tensors by name, over batches."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, name: str, expected: Iterable[Tensor], found: Iterable[Tensor]) -> None:
        """Compare tensors; those of other shapes are not compared."""
        for a, b in zip(expected, found):
            if a.shape == b.shape:
                sums = self.sums.setdefault(name, [0.0, 0.0])
                sums[0] += float(a.double().square().sum())
                sums[1] += float((b.double() - a.double()).square().sum())

    def sqnr(self, name: str) -> float | None:
        """In dB; None where nothing was compared."""
        return decibels(*self.sums[name]) if name in self.sums else None


_FAR = 10.0  # divergence of one channel, beyond which it says nothing more


class NormStatistics:
    """Statistics of the inputs of batch-norms.

    Each normalizes with those of its batch while they are gathered.
    """

    def __init__(self, model: nn.Module) -> None:
        self.norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
        }
        self.sums: dict[str, Tensor] = {}  # [3, channels]: mean, variance, batches

    def see(self, name: str, norm: nn.Module, arguments: tuple, output: Tensor) -> Tensor | None:
        x = arguments[0].detach()
        if x.numel() // x.shape[1] < 2:
            return None
        mean, variance = x.double().transpose(0, 1).flatten(1).mean(1), x.double().transpose(0, 1).flatten(1).var(1)
        now = torch.stack([mean, variance, torch.ones_like(mean)])
        self.sums[name] = self.sums[name] + now if name in self.sums else now
        assert isinstance(norm, _BatchNorm)
        again = F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
        return again.to(output.dtype)

    def against_stored(self, name: str) -> tuple[float, float, float]:
        """(drift, mean_shift, std_ratio): see `NormRecord`."""
        norm, (mean, variance, count) = self.norms[name], self.sums[name]
        assert norm.running_mean is not None and norm.running_var is not None
        mean, variance = mean / count, variance / count
        alive = variance > norm.eps  # a constant channel has no statistics to speak of
        if not alive.any():
            return 0.0, 0.0, 1.0
        mean, variance = mean[alive], variance[alive] + norm.eps
        quotient = (norm.running_var.double()[alive] + norm.eps) / variance
        shift = (norm.running_mean.double()[alive] - mean).square() / variance
        drift = (0.5 * (shift + quotient - 1 - quotient.log())).clamp(max=_FAR)
        return float(drift.mean()), float(shift.sqrt().mean()), float((0.5 * quotient.log().mean()).exp())
