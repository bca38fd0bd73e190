"""What the recipes of several papers share."""

from __future__ import annotations

from lowbit.train.config import QuantizationConfig


def weight_decay(weights: int | None) -> float:
    """The LSQ paper's weight decay at a width: 1e-4, halved at 3 bits and quartered at 2 (and below)."""
    if weights is None or weights > 3:
        return 1e-4
    return 0.5e-4 if weights == 3 else 0.25e-4


def quantization(weights: int | None, activations: int | None, method: str) -> QuantizationConfig | None:
    """The settings at these widths; None where both sides stay in full precision."""
    if weights is None and activations is None:
        return None
    return QuantizationConfig(weights=weights, activations=activations, method=method)
