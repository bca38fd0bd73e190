"""The shape of the images that a network is trained on, before they are read."""

from __future__ import annotations

from torch import nn

from lowbit.data import ImageSource, training_split
from lowbit.data.decode import common_size
from lowbit.data.stream import image_shape
from lowbit.errors import LowbitError
from lowbit.models import NETWORKS
from lowbit.train.config import TrainConfig


def sample_shape(config: TrainConfig, model: nn.Module) -> tuple[int, ...]:
    """The shape of one sample as the network gets it.

    From the config's image size, or the size in which the data set stores its first image, or, where there is no data
    set yet, the network's own.

    Raises:
        LowbitError: none of them says it, or no image can be read.
    """
    data = config.data
    if data.image_size is not None or not data.in_memory:
        return image_shape(data)
    source = training_split(data) if data.path else None
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
