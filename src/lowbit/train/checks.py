"""Whether config, network and images fit together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from lowbit.data import Loader, num_classes
from lowbit.errors import LowbitError
from lowbit.layers.modes import evaluation
from lowbit.train.config import TrainConfig


def resolve(config: TrainConfig) -> TrainConfig:
    """The config with the number of classes of the data in it, where it doesn't say one."""
    if config.model.num_classes is not None:
        return config
    return replace(config, model=replace(config.model, num_classes=num_classes(config.data)))


def with_data(config: TrainConfig, path: str | None, *, allow_remote: bool) -> TrainConfig:
    """The config of a run, perhaps somebody else's, with the data at `path`, or where the config has it.

    Raises:
        LowbitError: the config has it at a URL, and that is not allowed.
    """
    if path is None and "://" in config.data.path and not allow_remote:
        raise LowbitError(
            f"the run's images are at {config.data.path!r}, which would be contacted: allow it with --allow-remote, or "
            "give images that are here with --data"
        )
    return replace(config, data=replace(config.data, path=path or config.data.path))


def check_start(config: TrainConfig) -> None:
    """Refuse a network at low bits that starts from nothing."""
    if config.quantization is not None and not config.model.trained and not config.model.from_scratch:
        raise LowbitError(
            f"{config.model.name} would start at low bits from random weights: give trained ones (--init FILE or the "
            "folder of a run in full precision; --model.pretrained where its library has them), or "
            "--model.from-scratch if random ones are meant"
        )


def check_classes(config: TrainConfig, num_classes: int, *, fewer: bool = False) -> None:
    """Refuse data of more classes than the network's, and of `fewer` where those may stand for others.

    Raises:
        LowbitError: the numbers don't fit.
    """
    wanted = config.model.num_classes
    assert wanted is not None  # of a resolved config
    if num_classes > wanted or (num_classes < wanted and not fewer):
        raise LowbitError(
            f"{config.data.path}: {num_classes} classes, but the network has {wanted} (model.num_classes); give data with "
            f"as many, or train with --model.num-classes {num_classes}"
        )


@torch.no_grad()
def check_shape(config: TrainConfig, network: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse images that the network cannot take.

    Raises:
        LowbitError: one of this shape (channels, height, width) does not go through it.
    """
    try:
        with evaluation(network):
            network(torch.zeros(1, *shape))
    except Exception as error:  # networks refuse in their own ways, often in a layer far behind the input
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LowbitError(
            f"{config.model.name} does not take images of {'x'.join(map(str, shape))} ({reason}): set data.channels and "
            "data.image_size to what it takes"
        ) from error


def check_test(config: TrainConfig, network: nn.Module, test: Loader) -> None:
    """Refuse test images of other classes or another shape than the network's, where training images don't tell.

    Raises:
        LowbitError: they don't fit.
    """
    # Where classes are numbered in the order of their names, one that is missing shifts the numbers of others.
    check_classes(config, test.num_classes, fewer=test.class_names is None)
    check_shape(config, network, test.image_shape)
