"""The UCI digits that scikit-learn carries, with a small convolutional network: seconds on any machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lowbit.recipes.common import quantization, weight_decay
from lowbit.train.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

_DATA = DataConfig(path="sklearn:digits", batch_size=64, channels=1, mean=(0.3,), std=(0.35,))


def recipes() -> Iterator[tuple[str, Callable[..., TrainConfig], str, str]]:
    """(name, function, published, cost) of every recipe here."""
    yield "digits-cnn-fp", full_precision, "-", "10 s on 2 cores"
    yield "digits-cnn", low_bit, "-", "10 s on 2 cores"


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
