"""ImageNet by LG-LSQ (Lin et al. 2022, arXiv 2202.09009), as reconstructed here from the paper's abstract."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lowbit.recipes.common import IMAGENET_IMAGES, MACS, NAMES, documented, imagenet_low_bit
from lowbit.recipes.recipe import Recipe
from lowbit.train.config import TrainConfig

# Network, bits, and the abstract's claim, short and in full.
_ABSTRACT = (
    *((f"resnet{depth}", 3, "as FP", "the accuracy of full precision") for depth in (18, 34, 50)),
    *(
        (network, 4, "FP - 1", "less than 1 point below full precision")
        for network in ("mobilenetv2", "shufflenetv2-x1.0", "shufflenetv2-x0.5")
    ),
)


def recipes() -> Iterator[Recipe]:
    """One for each network and width that the abstract names."""
    yield from (_recipe(*row) for row in _ABSTRACT)


def lg_lsq(name: str, network: str, bits: int, *, method: str = "lg-lsq") -> TrainConfig:
    """LSQ's training, see `imagenet_low_bit`, with the reconstructed quantizers on symmetric grids.

    The abstract has symmetric grids.

    From torchvision's weights, MobileNetV2 from timm's. Nothing of the authors' training is known to us.
    """
    config = imagenet_low_bit(name, network, bits, method)
    assert config.quantization is not None
    return replace(config, quantization=replace(config.quantization, narrow=True))


def _recipe(network: str, bits: int, short: str, claim: str) -> Recipe:
    name = f"lg-lsq-{network}-w{bits}a{bits}"
    about = (
        f"LG-LSQ (Lin et al. 2022, arXiv 2202.09009), {NAMES[network]} at W{bits}A{bits}: {claim}, says the abstract, "
        "which is all that we had of the paper. The method is our reconstruction, and its training here is LSQ's; a "
        "result says nothing about the authors' own."
    )
    return Recipe(
        name,
        documented(about, lg_lsq, name, network, bits),
        group="LG-LSQ on ImageNet (Lin et al. 2022): our reconstruction, claims of the abstract",
        published=short,
        images=IMAGENET_IMAGES,
        macs=MACS[network],
    )
