"""Where quantizers stand in a prepared network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from lowbit.layers.quantized import QuantizedLayer
from lowbit.layers.rules import INSERTED, INSERTED_IN_0_1_0
from lowbit.quantizer.module import Quantizer


def quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Every quantizer of the model once, with the first name it has."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Quantizer))


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Every prepared layer of the model once, with its name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLayer))


@dataclass
class Site:
    """A place where an activation quantizer stands: an attribute of the module that holds it."""

    holder: nn.Module
    attribute: str

    @property
    def quantizer(self) -> Quantizer:
        return getattr(self.holder, self.attribute)

    @quantizer.setter
    def quantizer(self, quantizer: nn.Module) -> None:
        setattr(self.holder, self.attribute, quantizer)


def input_sites(model: nn.Module) -> Iterator[Site]:
    """Every place where an activation quantizer stands."""
    for module in model.modules():
        for attribute, child in module.named_children():
            if isinstance(child, Quantizer) and attribute != "weight_quantizer":
                yield Site(module, attribute)


def upgrade_names(model: nn.Module, state_dict: dict[str, Any], prefix: str = "", *_: object) -> None:
    """Bring the names in a 0.1.0 checkpoint of an integer-only network in line with this version's, in place."""
    if not hasattr(model, INSERTED) or hasattr(model, INSERTED_IN_0_1_0):
        return
    old = f"{prefix}{INSERTED_IN_0_1_0}."
    for key in [key for key in state_dict if key.startswith(old)]:
        state_dict[f"{prefix}{INSERTED}.{key.removeprefix(old)}"] = state_dict.pop(key)


@contextmanager
def replaced(model: nn.Module, by: Callable[[Quantizer], nn.Module]) -> Iterator[None]:
    """Within: something else in place of every quantizer of the model."""
    sites = [(site, site.quantizer) for site in input_sites(model)]
    weights = [
        (layer, layer.weight_quantizer)
        for _, layer in quantized_layers(model)
        if isinstance(layer.weight_quantizer, Quantizer)
    ]
    try:
        for site, quantizer in sites:
            site.quantizer = by(quantizer)
        for layer, quantizer in weights:
            layer.weight_quantizer = by(quantizer)
        yield
    finally:
        for site, quantizer in sites:
            site.quantizer = quantizer
        for layer, quantizer in weights:
            layer.weight_quantizer = quantizer
