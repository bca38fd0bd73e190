"""CIFAR-10 with the ResNets of He et al. 2015 (arXiv 1512.03385, section 4.2) and VGG-Small, by any method."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from lowbit.recipes.common import MACS, documented, quantization, weight_decay
from lowbit.recipes.recipe import Recipe
from lowbit.train.config import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig

_IMAGES = 50_000

# Network: its name in recipes, and test accuracy (%) in full precision and at low bits where papers have it.
_PUBLISHED = {
    "cifar-resnet20": (
        "resnet20",
        "91.25 (He et al. 2015)",
        "2/3/4 bits: APoT 90.96/92.49/92.45, PACT 88.9/90.6/90.8, LCQ FP - 1.6/0.6/0.2",
    ),
    "cifar-resnet32": ("resnet32", "92.49 (He et al. 2015)", "-"),
    "cifar-resnet44": ("resnet44", "92.83 (He et al. 2015)", "-"),
    "cifar-resnet56": ("resnet56", "93.03 (He et al. 2015)", "-"),
    "cifar-resnet110": ("resnet110", "93.57 (He et al. 2015)", "-"),
    "vgg-small": ("vgg-small", "-", "-"),
}


def recipes() -> Iterator[Recipe]:
    """Each network in full precision, and from there at low bits by the method that is asked for."""
    for network, (short, full, low) in _PUBLISHED.items():
        for name, function, published in (
            (f"cifar10-{short}-fp", full_precision, full),
            (f"cifar10-{short}", low_bit, low),
        ):
            figure = "no figure is known to us" if published == "-" else f"published: {published}"
            about = f"{inspect.getdoc(function)}\n\nTest accuracy in percent, {figure}."
            yield Recipe(
                name,
                documented(about, function, name, network),
                group="CIFAR-10, at low bits by any method (--bits, --method)",
                published=published,
                images=_IMAGES,
                macs=MACS[network],
            )


def low_bit(
    name: str, network: str, *, weights: int | None = 4, activations: int | None = 4, method: str = "lsq"
) -> TrainConfig:
    """From trained weights to low bits: lr 0.05, cosine, weight decay by width as in the LSQ paper.

    Steps of activations that a method would start by LSQ's rule start at the least squared error. Batch 128, crops of
    the image padded by 4, horizontal flips. Needs `--init` with the network's trained weights.
    """
    return TrainConfig(
        recipe=name,
        model=ModelConfig(name=network, num_classes=10),
        data=DataConfig(path="", batch_size=128, augment="cifar"),
        quantization=quantization(weights, activations, method, least_squares=True),
        # Never worse than 0.02, and better at 2 and 3 bits (docs/results/accuracy.md, table "rates").
        optimizer=OptimizerConfig(lr=0.05, weight_decay=weight_decay(weights)),
        epochs=90,
        bn_batches=100,
    )


def full_precision(name: str, network: str) -> TrainConfig:
    """From random weights in full precision: lr 0.1 after one epoch of warm-up, cosine, weight decay 1e-4."""
    return TrainConfig(
        recipe=name,
        model=ModelConfig(name=network, num_classes=10),
        data=DataConfig(path="", batch_size=128, augment="cifar"),
        optimizer=OptimizerConfig(lr=0.1, weight_decay=1e-4, nesterov=True),
        schedule=ScheduleConfig(warmup_epochs=1),
        epochs=180,
    )
