"""The UCI digits that scikit-learn carries, with a small convolutional network: seconds on any machine."""

from __future__ import annotations

from collections.abc import Iterator

from lowbit.recipes.common import MACS, quantization, weight_decay
from lowbit.recipes.recipe import Recipe
from lowbit.train.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

_DATA = DataConfig(path="sklearn:digits", batch_size=64, channels=1, mean=(0.3,), std=(0.35,))


def recipes() -> Iterator[Recipe]:
    """The network in full precision, and from there at low bits."""
    for name, function in (("digits-cnn-fp", full_precision), ("digits-cnn", low_bit)):
        yield Recipe(name, function, group="Digits, in seconds", images=1437, macs=MACS["digits-cnn"])


def full_precision() -> TrainConfig:
    """The network to start from: random weights, full precision, lr 0.1, cosine."""
    return TrainConfig(
        recipe="digits-cnn-fp",
        model=ModelConfig(name="digits-cnn", num_classes=10),
        data=_DATA,
        optimizer=OptimizerConfig(lr=0.1),
        epochs=20,
        compile=False,
    )


def low_bit(*, weights: int | None = 4, activations: int | None = 4, method: str = "lsq") -> TrainConfig:
    """From trained weights (`--init RUN` of digits-cnn-fp) to low bits: lr 0.02, cosine."""
    return TrainConfig(
        recipe="digits-cnn",
        model=ModelConfig(name="digits-cnn", num_classes=10),
        data=_DATA,
        quantization=quantization(weights, activations, method),
        optimizer=OptimizerConfig(lr=0.02, weight_decay=weight_decay(weights)),
        epochs=20,
        compile=False,
    )
