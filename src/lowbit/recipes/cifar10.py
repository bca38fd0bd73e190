"""CIFAR-10 with the ResNets of He et al. 2015 (arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from lowbit.recipes.common import quantization, weight_decay
from lowbit.train.config import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig

# Depth: test accuracy (%) in full precision (He et al.), and at low bits where papers have it; million MACs an image.
_PUBLISHED = {
    20: ("91.25", "2/3/4 bits: APoT 90.96/92.49/92.45, PACT 88.9/90.6/90.8", 41),
    32: ("92.49", "-", 69),
    44: ("92.83", "-", 97),
    56: ("93.03", "-", 125),
    110: ("93.57", "-", 253),
}


def recipes() -> Iterator[tuple[str, partial[TrainConfig], str, str]]:
    """(name, function, published, cost) of every recipe here."""
    for depth, (full, low, macs) in _PUBLISHED.items():
        work = f"epochs, {macs} M MACs an image"
        yield f"cifar10-resnet{depth}-fp", partial(full_precision, depth), full, f"180 {work}"
        yield f"cifar10-resnet{depth}", partial(low_bit, depth), low, f"90 {work}"


def low_bit(depth: int, *, weights: int | None = 4, activations: int | None = 4, method: str = "lsq") -> TrainConfig:
    """From trained weights to low bits: lr 0.02, cosine, weight decay by width as in the LSQ paper.

    Batch 128, crops of the image padded by 4, horizontal flips. Needs `--init` with the network's trained weights.
    """
    return TrainConfig(
        recipe=f"cifar10-resnet{depth}",
        model=ModelConfig(name=f"cifar-resnet{depth}", num_classes=10),
        data=DataConfig(path="", batch_size=128, augment="cifar"),
        quantization=quantization(weights, activations, method),
        optimizer=OptimizerConfig(lr=0.02, weight_decay=weight_decay(weights)),
        epochs=90,
        bn_batches=100,
    )


def full_precision(depth: int) -> TrainConfig:
    """From random weights in full precision: lr 0.1 after one epoch of warm-up, cosine, weight decay 1e-4."""
    return TrainConfig(
        recipe=f"cifar10-resnet{depth}-fp",
        model=ModelConfig(name=f"cifar-resnet{depth}", num_classes=10),
        data=DataConfig(path="", batch_size=128, augment="cifar"),
        optimizer=OptimizerConfig(lr=0.1, weight_decay=1e-4, nesterov=True),
        schedule=ScheduleConfig(warmup_epochs=1),
        epochs=180,
    )
