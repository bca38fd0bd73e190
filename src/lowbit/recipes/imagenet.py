"""ImageNet in full precision: the networks that the LSQ paper trained itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lowbit.recipes.common import IMAGENET_IMAGES, MACS, NAMES, documented, imagenet_data
from lowbit.recipes.lsq import FULL_PRECISION
from lowbit.recipes.recipe import Recipe
from lowbit.train.config import ModelConfig, OptimizerConfig, TrainConfig

_NETWORKS = (*(f"preact-resnet{depth}" for depth in (18, 34, 50, 101, 152)), "squeezenext-23-2x")


def recipes() -> Iterator[Recipe]:
    """One for each network that the LSQ paper trained itself."""
    for network in _NETWORKS:
        name = f"imagenet-{network}-fp"
        top1 = FULL_PRECISION[network.removeprefix("preact-")]
        about = (
            f"{NAMES[network]} in full precision, from which `lsq-{network}-…` starts: {top1} % top-1 in LSQ's Table 1 "
            "(Esser et al., ICLR 2020, arXiv 1902.08153). The training is the usual one (He et al. 2015), with cosine "
            "decay."
        )
        yield Recipe(
            name,
            documented(about, full_precision, name, network),
            group="ImageNet in full precision, for networks that the LSQ paper trained itself (figures: its Table 1)",
            published=str(top1),
            images=IMAGENET_IMAGES,
            macs=MACS[network],
        )


def full_precision(name: str, network: str) -> TrainConfig:
    """From random weights: SGD 0.9, lr 0.1, cosine, 90 epochs, batch 256, weight decay 1e-4, random resized crops."""
    return TrainConfig(
        recipe=name,
        model=ModelConfig(name=network, num_classes=1000),
        data=replace(imagenet_data(network), augment="imagenet"),
        optimizer=OptimizerConfig(lr=0.1, weight_decay=1e-4),
        epochs=90,
    )
