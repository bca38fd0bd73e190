"""Where quantizers stand, by the names that a reader knows, and a way to switch them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from lowbit.errors import LowbitError
from lowbit.qat.calibrate import observed
from lowbit.quantizer.module import Quantizer

_TENSORS = {"weight_quantizer": "weight", "parameter_quantizer": "weight", "input_quantizer": "input"}


@dataclass(frozen=True, eq=False)
class Place:
    """An attribute of a module where a quantizer stands.

    Attributes:
        layer: what the tensor belongs to: the layer's name, or the quantizer's own where it stands between layers.
        tensor: "weight", "input", an operand of an attention ("q", "k", "probability", "v"), or "value" between layers.
    """

    layer: str
    tensor: str
    holder: nn.Module
    attribute: str
    quantizer: Quantizer

    @property
    def name(self) -> str:
        """Layer and tensor; a value between layers has the name alone."""
        return self.layer if self.tensor == "value" else f"{self.layer}.{self.tensor}"

    @property
    def is_weight(self) -> bool:
        """Whether it quantizes a tensor that does not depend on the data."""
        return self.quantizer.batch_dim is None

    def switch(self, *, on: bool) -> None:
        """Put the quantizer in its place, or nothing in place of it."""
        setattr(self.holder, self.attribute, self.quantizer if on else nn.Identity())


def places(model: nn.Module) -> list[Place]:
    """Every place of a quantizer, in the order of `named_modules`.

    Raises:
        LowbitError: there are no quantizers, or one has no step yet.
    """
    names = {module: name for name, module in model.named_modules()}
    found = []
    for module, name in names.items():
        for attribute, child in module.named_children():
            if not isinstance(child, Quantizer):
                continue
            if not child.initialized:
                raise LowbitError(
                    f"{child.name} has no step yet: run lowbit.calibrate(model, batches) or load a checkpoint before "
                    "a diagnosis"
                )
            tensor = _TENSORS.get(
                attribute, attribute.removesuffix("_quantizer") if attribute.endswith("_quantizer") else "value"
            )
            layer = ".".join(filter(None, (name, attribute))) if tensor == "value" else name
            found.append(Place(layer, tensor, module, attribute, child))
    if not found:
        raise LowbitError(
            "the model has no quantizers: lowbit.prepare and lowbit.calibrate come before lowbit.diagnose"
        )
    return found


@contextmanager
def float_network(model: nn.Module, all_places: Sequence[Place]) -> Iterator[None]:
    """Within: evaluation mode, no gradients, and no quantizer in its place; some may be switched on."""
    try:
        with observed(model):
            yield
    finally:  # what was switched on within is in its place again; so are shared quantizers
        for place in all_places:
            place.switch(on=True)


def layers(all_places: Sequence[Place]) -> dict[str, list[Place]]:
    """The places of each layer, in order."""
    found: dict[str, list[Place]] = {}
    for place in all_places:
        found.setdefault(place.layer, []).append(place)
    return found
