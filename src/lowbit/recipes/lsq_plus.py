"""ImageNet by LSQ+ (Bhalgat et al., CVPRW 2020, arXiv 2004.09576): three networks in the paper's configurations."""

from __future__ import annotations

from collections.abc import Iterator

from lowbit.recipes.common import IMAGENET_IMAGES, MACS, NAMES, documented, imagenet_low_bit
from lowbit.recipes.recipe import Recipe
from lowbit.train.config import TrainConfig

_METHODS = {
    "lsq+": "configuration 4 where activations go negative, 1 elsewhere",
    "lsq+1": "configuration 1, activations unsigned without offset",
    "lsq+2": "configuration 2, activations signed without offset",
    "lsq+3": "configuration 3, activations signed with offset",
    "lsq+4": "configuration 4, activations unsigned with offset",
}

_TOP1 = {("efficientnet-b0", 4): 73.8, ("mixnet-s", 4): 71.7}
_GAIN = {("efficientnet-b0", 4): "1.8 points above LSQ", ("efficientnet-b0", 2): "up to 5.6 points above LSQ"}


def recipes() -> Iterator[Recipe]:
    """Each network at 4, 3 and 2 bits, by the method as it is used and by each of its configurations."""
    for network in ("efficientnet-b0", "mixnet-s", "resnet18"):
        for method in _METHODS:
            yield from (_recipe(network, bits, method) for bits in (4, 3, 2))


def lsq_plus(name: str, network: str, bits: int, own: str, *, method: str | None = None) -> TrainConfig:
    """LSQ's training, see `imagenet_low_bit`, with LSQ+'s quantizers.

    The schedule that the paper used is not known to us.

    From timm's weights (resnet18.tv_in1k, efficientnet_b0.ra_in1k, mixnet_s.ft_in1k), which are not the paper's.
    """
    return imagenet_low_bit(name, network, bits, method or own)


def _recipe(network: str, bits: int, method: str) -> Recipe:
    name = f"{method}-{network}-w{bits}a{bits}"
    # The paper's best is what the method without a number stands for.
    top1 = _TOP1.get((network, bits)) if method == "lsq+" else None
    gain = _GAIN.get((network, bits)) if method == "lsq+" else None
    known = ", ".join(filter(None, (f"{top1} % top-1" if top1 else None, gain))) or "no figure is known to us"
    about = (
        f"LSQ+ (Bhalgat et al., CVPRW 2020, arXiv 2004.09576), row {NAMES[network]} at W{bits}A{bits}, "
        f"{_METHODS[method]}: {known}. Trained as LSQ was; the paper's own schedule is not known to us."
    )
    return Recipe(
        name,
        documented(about, lsq_plus, name, network, bits, method),
        group="LSQ+ on ImageNet (Bhalgat et al., CVPRW 2020)",
        published=str(top1) if top1 else gain or "-",
        images=IMAGENET_IMAGES,
        macs=MACS[network],
    )
