"""The shape of the images that a network is trained on, before they are read."""

from __future__ import annotations

import torch
from torch import nn

from lowbit.data import DataSet, ImageSource
from lowbit.data.decode import common_size
from lowbit.data.own import OwnSplit
from lowbit.data.stream import image_shape
from lowbit.errors import LowbitError
from lowbit.inputs import Inputs
from lowbit.models import NETWORKS
from lowbit.train.config import TrainConfig


def example_inputs(config: TrainConfig, model: nn.Module, dataset: DataSet | None = None) -> Inputs:
    """Inputs of one sample, [1, …], as the network gets it: zeros of an image's shape, or the first sample of own data.

    The shape is from the config's image size, or the size in which the data set stores its first image, or, where there is no data
    set yet, the network's own.

    Raises:
        LowbitError: none of them says it, or no image can be read.
    """
    data = config.data
    dataset = dataset or DataSet(data)
    if dataset.is_own:
        train = dataset.train
        assert isinstance(train, OwnSplit)
        return train.example()[0]
    return torch.zeros(1, *_image_shape(config, model, dataset))


def _image_shape(config: TrainConfig, model: nn.Module, dataset: DataSet) -> tuple[int, ...]:
    data = config.data
    if data.image_size is not None or not data.in_memory:
        return image_shape(data)
    source = dataset.train if data.path else None
    if isinstance(source, ImageSource):
        height, width = common_size(source, range(len(source)))
        return (data.channels, height, width)
    network = NETWORKS.get(config.model.name.replace("_", "-"))
    # timm's networks say it themselves.
    shape = network.input_shape if network else getattr(model, "pretrained_cfg", {}).get("input_size")
    if shape is None:
        raise LowbitError(
            f"the size of images is not known: {config.model.name} has none of its own; give data.image_size or data.path"
        )
    return tuple(shape)
