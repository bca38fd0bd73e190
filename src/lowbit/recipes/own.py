"""One's own network and data: what is usual, fitted to both when a run starts."""

from __future__ import annotations

from collections.abc import Iterator

from lowbit.models.create import has_published_weights
from lowbit.recipes.common import quantization, weight_decay
from lowbit.recipes.recipe import Recipe
from lowbit.train.config import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig

_DATA = DataConfig(path="", batch_size=64, augment="auto", mean=(), std=(), validation=0.1)


def recipes() -> Iterator[Recipe]:
    """Training in full precision, and from there at low bits."""
    group = "Your own network and data (--model, --data)"
    yield Recipe("own-fp", full_precision, group=group)
    yield Recipe("own", low_bit, group=group)


def full_precision(*, model: str = "") -> TrainConfig:
    """Your network in full precision, from the weights that timm or torchvision publishes for it, else random ones.

    SGD 0.9, cosine after one epoch of warm-up, lr 0.01 from published weights and 0.05 from random ones, batch 64, for
    as many epochs as the number of training images calls for (`lowbit.train.resolve.epochs_for`). A tenth of the
    training images, the same share of every class, is held out to choose the best checkpoint by.
    """
    published = bool(model) and has_published_weights(model)
    return TrainConfig(
        recipe="own-fp",
        model=ModelConfig(name=model, pretrained=published),
        data=_DATA,
        optimizer=OptimizerConfig(lr=0.01 if published else 0.05, weight_decay=1e-4, nesterov=True),
        schedule=ScheduleConfig(warmup_epochs=1),
        epochs=0,
    )


def low_bit(
    *, model: str = "", weights: int | None = 4, activations: int | None = 4, method: str = "lsq"
) -> TrainConfig:
    """Your trained network at low bits: from `--init`, or the weights that timm or torchvision publishes for it.

    SGD 0.9, cosine, lr 0.01, weight decay by width as in the LSQ paper, batch 64, for as many epochs as the number of
    training images calls for (`lowbit.train.resolve.epochs_for`). Steps of activations that a method would start by
    LSQ's rule start at the least squared error. Batch-norm statistics are re-estimated at the end, and kept where they
    are better. A tenth of the training images, the same share of every class, is held out for both
    choices.
    """
    return TrainConfig(
        recipe="own",
        model=ModelConfig(name=model, pretrained=bool(model) and has_published_weights(model)),
        data=_DATA,
        quantization=quantization(weights, activations, method, least_squares=True),
        optimizer=OptimizerConfig(lr=0.01, weight_decay=weight_decay(weights)),
        epochs=0,
        bn_batches=50,
    )
