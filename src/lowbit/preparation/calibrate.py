"""Starting every quantizer from data."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowbit.errors import LowbitError
from lowbit.preparation.layers import QuantizedLayer
from lowbit.preparation.prepare import quantized_layers, share
from lowbit.quantizer.init import Statistics
from lowbit.quantizer.module import Quantizer


def calibrate(model: nn.Module, batches: Iterable = ()) -> nn.Module:
    """Start every quantizer that has no step yet, in place; returns the model.

    Weight quantizers start from their weights, input quantizers from what the float network (batch-norm in evaluation
    mode) feeds its layers on the batches. Layers that take the same tensor, with the same setting, get one quantizer
    between them. With several processes each gives its own batches and all start equal, from all the data. When an
    error is raised, no quantizer has been started.

    Args:
        model: what `lowbit.prepare` returned.
        batches: inputs, (input, label) pairs or dictionaries of keyword arguments; the caller chooses how many. May be
            empty where only weights are quantized.

    Raises:
        LowbitError: NaN, infinity or nothing but zeros at a quantizer, a layer that no batch reaches, no batches.
    """
    layers = dict(quantized_layers(model))
    if not layers:
        raise LowbitError("the model has no quantizers: lowbit.prepare comes before lowbit.calibrate")
    waiting = {
        name: layer
        for name, layer in layers.items()
        if isinstance(layer.input_quantizer, Quantizer) and not layer.input_quantizer.started
    }
    plans = []
    for layer in layers.values():
        if isinstance(layer.weight_quantizer, Quantizer) and not layer.weight_quantizer.started:
            plans.append((layer.weight_quantizer, layer.weight_quantizer.plan_start(layer.weight)))

    shared: list[list[str]] = []
    if waiting:
        device = next(iter(layers.values())).weight.device
        with _observed(model, layers, waiting) as observers:
            seen = 0
            for batch in batches:
                _forward(model, batch, device)
                seen += 1
        if seen == 0:
            raise LowbitError("no batches to calibrate with: pass at least one batch of the network's inputs")
        unreached = [name for name, observer in observers.items() if observer.statistics.count == 0]
        if unreached:
            raise LowbitError(
                f"no batch reaches layer {unreached[0]!r}"
                + (f" and {len(unreached) - 1} more" if len(unreached) > 1 else "")
                + ": give batches that do, or leave the layer in full precision by a rule"
            )
        shared = _same_inputs(waiting, observers)
        for name, observer in observers.items():
            observer.statistics.synchronise()
            plans.append((waiting[name].input_quantizer, waiting[name].input_quantizer.plan_start(observer.statistics)))

    for quantizer, plan in plans:
        quantizer._apply_start(*plan)
    numbers = max((layer.input_quantizer.shared for layer in layers.values() if _has_quantizer(layer)), default=0)
    for number, names in enumerate(shared, start=numbers + 1):
        waiting[names[0]].input_quantizer.shared = number
        for name in names[1:]:
            share(waiting[names[0]], waiting[name])
    return model


class _Observer(nn.Module):
    """Stands where an input quantizer will, passes its input on and keeps statistics of it."""

    def __init__(self, name: str, tokens: _Tokens) -> None:
        super().__init__()
        self.name = name
        self.statistics = Statistics()
        self.tokens = tokens
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.tokens.of(x))
        self.statistics.update(x)
        if not bool(torch.isfinite(self.statistics.low).all() and torch.isfinite(self.statistics.high).all()):
            raise LowbitError(
                f"the input of layer {self.name!r} holds NaN or infinity: look for it in the network's weights and in the "
                "calibration data"
            )
        return x


class _Tokens:
    """A number for each distinct tensor: equal exactly for the same tensor object in the same state, while it lives."""

    def __init__(self) -> None:
        self._live: dict[int, tuple[weakref.ref, int, int]] = {}
        self._next = 0

    def of(self, x: Tensor) -> int:
        known = self._live.get(id(x))
        if known is not None and known[0]() is x and known[1] == x._version:
            return known[2]
        self._next += 1
        self._live[id(x)] = (weakref.ref(x), x._version, self._next)
        return self._next


@contextmanager
def _observed(
    model: nn.Module, layers: Mapping[str, QuantizedLayer], waiting: Mapping[str, QuantizedLayer]
) -> Iterator[dict[str, _Observer]]:
    """Within: evaluation mode, no gradients, no weight quantized, an observer in place of each waiting quantizer."""
    tokens = _Tokens()
    observers = {name: _Observer(name, tokens) for name in waiting}
    modes = {module: module.training for module in model.modules()}
    kept = {name: (layer.weight_quantizer, layer.input_quantizer) for name, layer in layers.items()}
    try:
        model.eval()
        for name, layer in layers.items():
            layer.weight_quantizer = nn.Identity()
            layer.input_quantizer = observers.get(name, nn.Identity())
        with torch.no_grad():
            yield observers
    finally:
        for name, layer in layers.items():
            layer.weight_quantizer, layer.input_quantizer = kept[name]
        for module, training in modes.items():
            module.training = training


def _forward(model: nn.Module, batch: object, device: torch.device) -> None:
    if isinstance(batch, Mapping):
        model(**{key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()})
        return
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(inputs, Tensor):
        raise LowbitError(
            f"a calibration batch must be a tensor, an (input, label) pair or a dictionary, got {type(batch).__name__}"
        )
    model(inputs.to(device))


def _has_quantizer(layer: QuantizedLayer) -> bool:
    return isinstance(layer.input_quantizer, Quantizer)


def _same_inputs(waiting: Mapping[str, QuantizedLayer], observers: Mapping[str, _Observer]) -> list[list[str]]:
    """Groups of two or more layers that took the same tensors at every call and quantize them alike."""
    groups: dict[tuple, list[str]] = {}
    for name, layer in waiting.items():
        quantizer = layer.input_quantizer
        key = (tuple(observers[name].seen), quantizer.bits, quantizer.narrow, quantizer.method)
        groups.setdefault(key, []).append(name)
    return [names for names in groups.values() if len(names) > 1]
