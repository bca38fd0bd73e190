"""What a config leaves to the network and the data: classes, epochs, and how images are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lowbit.data import DataSet, ImageSource
from lowbit.data.decode import common_size
from lowbit.errors import LowbitError
from lowbit.models import NETWORKS
from lowbit.models.create import is_own, published_settings
from lowbit.train.config import DataConfig, ModelConfig, ScheduleConfig, TrainConfig
from lowbit.train.tasks import kind_of

_IMAGES, _FEWEST, _MOST = 500_000, 5, 60
_SMALL = 96  # pixels; smaller images are kept in memory as they are


def epochs_for(images: int) -> int:
    """Epochs for a training split of so many samples: those in which it sees 500,000, but 5 at least and 60 at most."""
    return min(max(round(_IMAGES / images), _FEWEST), _MOST)


def resolve(config: TrainConfig, data: DataSet) -> TrainConfig:
    """The config with what it leaves open in it, which `data` is told too.

    The number of classes is the data's. Where `epochs` is 0, `epochs_for` says it. Where `data.augment` is "auto", or
    `data.mean` and `data.std` are empty (own data is taken as it is), images are read as in the run that `model.init`
    or `quantization.start` is the folder of; else with the mean and standard deviation that the network's published
    weights were trained with (else ImageNet's), small ones as they are stored with "cifar", larger ones at the
    network's own size with "imagenet". Full precision is that of the run in `quantization.start` where `model` names
    no trained weights. A blockwise task ("reconstruct") is one epoch, without what belongs to training, from steps by
    least squares.

    Raises:
        LowbitError: as `DataSet` does; no network is named, or no such task.
    """
    if not config.model.name:
        raise LowbitError(
            "model.name: name a network (--model): a short name, timm's, torchvision's, or your own, package.module:name"
        )
    before = None if config.quantization is None else _run(config.quantization.start)
    if before is not None and not config.model.trained:  # what it goes on from has a teacher, and is compared with it
        config = replace(
            config, model=replace(config.model, init=before.model.init, pretrained=before.model.pretrained)
        )
    model, task = config.model, kind_of(config.task)
    if model.num_classes is None and task.takes_classes and _has_classes(model.name):
        model = replace(model, num_classes=data.train.num_classes)
    settings = config.data
    if settings.augment == "auto" or not settings.mean or not settings.std:
        settings = data.config = _as_read(config.model, data, before or _run(config.model.init))
    epochs = config.epochs or epochs_for(min(len(data.train), settings.limit or len(data.train)))
    config = replace(config, model=model, data=settings, epochs=epochs)
    return _in_one_pass(config) if task.blockwise else config


def _in_one_pass(config: TrainConfig) -> TrainConfig:
    """A reconstruction's: none of what belongs to training, and steps by least squares where no rule is named."""
    quantization = config.quantization
    if quantization is not None:
        quantization = replace(
            quantization,
            init_weights=quantization.init_weights or "least-squares",
            init_activations=quantization.init_activations or "least-squares",
        )
    return replace(config, quantization=quantization, epochs=1, bn_batches=0, schedule=ScheduleConfig(), compile=False)


def _has_classes(name: str) -> bool:
    network = NETWORKS.get(name.replace("_", "-"))
    return network is None or network.num_classes is not None


def _as_read(model: ModelConfig, data: DataSet, run: TrainConfig | None) -> DataConfig:
    settings = data.config
    if data.is_own:  # its samples are taken as they are
        ours = {name: getattr(settings, name) or getattr(DataConfig, name) for name in ("mean", "std")}
        return replace(settings, augment="none" if settings.augment == "auto" else settings.augment, **ours)
    before = None if run is None else run.data
    published = _published(model.name)
    statistics: dict[str, Any] = {
        name: getattr(settings, name)
        or (getattr(before, name) if before else tuple(published.get(name) or getattr(DataConfig, name)))
        for name in ("mean", "std")
    }
    chosen: dict[str, Any] = {}
    if settings.augment == "auto":
        if before is not None:
            chosen = {name: getattr(before, name) for name in ("augment", "crop_padding", "image_size", "channels")}
        elif isinstance(data.train, ImageSource) and min(common_size(data.train, range(len(data.train)))) < _SMALL:
            chosen = {"augment": "cifar"}
        else:
            size = (published.get("input_size") or (3, 224, 224))[-1]
            chosen = {"augment": "imagenet", "image_size": size}
        given = {name: getattr(settings, name) for name in ("crop_padding", "image_size")}
        chosen |= {name: value for name, value in given.items() if value is not None}
    return replace(settings, **statistics, **chosen)


def _run(folder: str | None) -> TrainConfig | None:
    """The config of a run, where it is one."""
    if folder is None or not (Path(folder) / "config.json").is_file():
        return None
    return TrainConfig.load(Path(folder) / "config.json")


def _published(name: str) -> dict[str, Any]:
    """mean, std and input_size that timm publishes with a network's weights; torchvision's are ImageNet's."""
    if is_own(name):
        return {}
    network = NETWORKS.get(name.replace("_", "-"))
    if network is not None and not isinstance(network.build, str):
        return {"input_size": network.input_shape}
    return published_settings(name)
