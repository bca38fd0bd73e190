"""ImageNet by LSQ (Esser et al., ICLR 2020, arXiv 1902.08153): Table 1, and Table 4 with distillation."""

from __future__ import annotations

from collections.abc import Iterator

from lowbit.recipes.common import IMAGENET_IMAGES, MACS, NAMES, documented, imagenet_low_bit, published_weights
from lowbit.recipes.recipe import Recipe
from lowbit.train.config import TrainConfig

# The paper's network: its top-1 in full precision, by bits (Table 1), by bits with distillation (Table 4).
_PAPER = {
    "resnet18": (70.5, {2: 67.6, 3: 70.2, 4: 71.1, 8: 71.1}, {2: 67.9, 3: 70.6}),
    "resnet34": (74.1, {2: 71.6, 3: 73.4, 4: 74.1, 8: 74.1}, {2: 72.4, 3: 74.3}),
    "resnet50": (76.9, {2: 73.7, 3: 75.8, 4: 76.7, 8: 76.8}, {2: 74.6, 3: 76.9, 4: 77.6}),
    "resnet101": (78.2, {2: 76.1, 3: 77.5, 4: 78.3, 8: 78.1}, {}),
    "resnet152": (78.9, {2: 76.9, 3: 78.2, 4: 78.5, 8: 78.5}, {}),
    "vgg16-bn": (73.4, {2: 71.4, 3: 73.4, 4: 74.0, 8: 73.5}, {}),
    "squeezenext-23-2x": (67.3, {2: 53.3, 3: 63.7, 4: 67.4, 8: 67.0}, {}),
}

FULL_PRECISION = {network: figures[0] for network, figures in _PAPER.items()}
"""The paper's top-1 of the networks in full precision, percent."""


def recipes() -> Iterator[Recipe]:
    """One for each cell of the paper's tables; the ResNets in two forms (see `lsq`)."""
    preact = [f"preact-{network}" for network in _PAPER if network.startswith("resnet")]
    for distill in (False, True):
        for network in (*_PAPER, *preact):
            yield from (_recipe(network, bits, distill) for bits in (2, 3, 4, 8))


def lsq(name: str, network: str, bits: int, distill: bool, *, method: str = "lsq") -> TrainConfig:
    """The paper's training, see `imagenet_low_bit`.

    The paper's ResNets are of the pre-activation kind. `lsq-preact-resnet…` starts from timm's weights of such networks
    (`resnetv2_…`), which were trained longer than the paper's; of ResNet-152 there are none without other tricks, and
    it has to be trained first. `lsq-resnet…` is the same experiment on the ResNets whose weights torchvision publishes;
    in full precision those are 0.6 to 0.8 points below the paper's.
    """
    return imagenet_low_bit(name, network, bits, method, distill=distill)


def _recipe(network: str, bits: int, distill: bool) -> Recipe:
    name = f"lsq-{network}-w{bits}a{bits}{'-distill' if distill else ''}"
    papers = network.removeprefix("preact-")
    full_precision, plain, distilled = _PAPER[papers]
    top1 = (distilled if distill else plain).get(bits)
    table = "Table 4 (knowledge distillation)" if distill else "Table 1"
    about = f"LSQ (Esser et al., ICLR 2020, arXiv 1902.08153), {table}, row {NAMES[papers]} at {bits} bits: " + (
        f"{top1} % top-1 (full precision {full_precision})."
        if top1 is not None
        else f"no figure is known to us (full precision {full_precision})."
    )
    published = published_weights(network)
    if published is None:
        about += f" We know no published weights of the network: imagenet-{network}-fp trains them."
    elif network.startswith("preact"):
        about += f" From timm's {published}; imagenet-{network}-fp trains the network as the paper did."
    if network.startswith("resnet"):
        about += f" The paper's {NAMES[network]} is the pre-activation one, lsq-preact-{network}-w{bits}a{bits}."
    return Recipe(
        name,
        documented(about, lsq, name, network, bits, distill),
        group="LSQ on ImageNet with distillation (Esser et al., ICLR 2020, Table 4)"
        if distill
        else "LSQ on ImageNet (Esser et al., ICLR 2020, Table 1)",
        published="-" if top1 is None else f"{top1} (FP {full_precision})",
        images=IMAGENET_IMAGES,
        macs=MACS[network],
    )
