"""ImageNet with a vision transformer: DeiT-tiny (Touvron et al., ICML 2021, arXiv 2012.12877) at low bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lowbit.recipes.common import (
    IMAGENET_IMAGES,
    MACS,
    NAMES,
    documented,
    imagenet_data,
    imagenet_model,
    quantization,
)
from lowbit.recipes.recipe import Recipe
from lowbit.train.config import OptimizerConfig, ScheduleConfig, TrainConfig

_NETWORK = "deit-tiny"


def recipes() -> Iterator[Recipe]:
    """Two, three and four bits, each with distillation too."""
    for distill in (False, True):
        for bits in (2, 3, 4):
            name = f"{_NETWORK}-w{bits}a{bits}{'-distill' if distill else ''}"
            about = (
                f"{NAMES[_NETWORK]} with weights and activations of {bits} bits, from timm's weights (72.2 % top-1 in "
                "full precision, arXiv 2012.12877). Optimizer, schedule and length are those with which low-bit DeiTs "
                "are usually trained (Liu et al., ICML 2023, arXiv 2302.02210); their other quantizers and their "
                "network with a distillation token are not in it, and no figure of this setting is known to us."
            )
            yield Recipe(
                name,
                documented(about, low_bit, name, bits, distill),
                group="DeiT on ImageNet, at low bits by any method (--method)",
                images=IMAGENET_IMAGES,
                macs=MACS[_NETWORK],
            )


def low_bit(name: str, bits: int, distill: bool, *, method: str = "lsq") -> TrainConfig:
    """AdamW, lr 5e-4 at batch 512, weight decay 0.05, five epochs of warm-up, cosine, 300 epochs, random resized crops.

    With `distill` half of the loss is cross-entropy with the full-precision network's probabilities. Shorter trainings:
    `--epochs`.
    """
    return TrainConfig(
        recipe=name,
        model=imagenet_model(_NETWORK),
        data=replace(imagenet_data(_NETWORK), augment="imagenet", batch_size=512),
        quantization=quantization(bits, bits, method),
        optimizer=OptimizerConfig(name="adamw", lr=5e-4, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_epochs=5),
        task="distill" if distill else "classify",
        epochs=300,
    )
