"""Where quantizers stand in a prepared network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from lowbit.layers.quantized import QuantizedLayer
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
