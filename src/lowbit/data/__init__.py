"""Data sets by path.

`open_dataset` finds what a path holds (images in folders, parquet in the hub's layout, scikit-learn's digits), and
`open_shards` an index of tar shards; `loaders` turns it into training and test batches as a `DataConfig` says. Small
images are decoded once and augmented a batch at a time (`InMemoryImages`); large ones are decoded by worker processes
(`StreamedImages`), and so are those of shards (`StreamedShards`). All are a `Loader`.
"""

from __future__ import annotations

from typing import Any

import torch

from lowbit.data.config import DataConfig
from lowbit.data.loader import Loader
from lowbit.data.memory import InMemoryImages
from lowbit.data.shard_stream import StreamedShards
from lowbit.data.shards import Shards, holds_shards, index_shards, open_shards
from lowbit.data.sources import ImageSource, open_dataset
from lowbit.data.stream import StreamedImages
from lowbit.errors import LowbitError

__all__ = [
    "DataConfig",
    "ImageSource",
    "InMemoryImages",
    "Loader",
    "Shards",
    "StreamedImages",
    "StreamedShards",
    "eval_loader",
    "index_shards",
    "loaders",
    "num_classes",
    "open_dataset",
    "open_shards",
    "training_split",
]


def loaders(
    config: DataConfig, *, seed: int = 0, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
) -> tuple[Loader, Loader]:
    """The training and the test loader of a data set.

    `seed` fixes order and augmentation. `rank` of `world_size` processes gets its part of every training batch and of
    the test images. Batches come on `device`.

    Raises:
        LowbitError: the path, a split, the labels or an image is unusable (see `open_dataset`); too few images
            for one batch; test labels that the training split does not have; images that don't fit in memory.
    """
    train, test = _open(config, config.train_split), _open_test(config)
    if isinstance(train, ImageSource):
        _check_labels(train, test)
    place = dict(rank=rank, world_size=world_size, device=device)
    return (
        _loader(train, config, train=True, num_classes=train.num_classes, seed=seed, **place),
        _loader(test, config, train=False, num_classes=train.num_classes, seed=seed, **place),
    )


def eval_loader(
    config: DataConfig, *, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
) -> Loader:
    """The test loader alone, for a data set whose training split is not needed or not there.

    Its `num_classes` is what the test split itself tells. Raises as `loaders` does.
    """
    test = _open_test(config)
    return _loader(
        test, config, train=False, num_classes=test.num_classes, rank=rank, world_size=world_size, device=device
    )


def num_classes(config: DataConfig) -> int:
    """Classes of the training split. Raises as `open_dataset` and `open_shards` do."""
    return training_split(config).num_classes


def training_split(config: DataConfig) -> ImageSource | Shards:
    """The training split, opened: its length is the number of images. Raises as `open_dataset` and `open_shards` do."""
    return _open(config, config.train_split)


def _open(config: DataConfig, *splits: str) -> ImageSource | Shards:
    if holds_shards(config.path):
        return open_shards(config.path, *splits, num_classes=config.num_classes)
    return open_dataset(config.path, *splits, train_split=config.train_split)


def _open_test(config: DataConfig) -> ImageSource | Shards:
    return _open(config, *((config.test_split,) if config.test_split else ("test", "validation", "val")))


def _loader(source: ImageSource | Shards, config: DataConfig, **arguments: Any) -> Loader:
    if isinstance(source, Shards):
        return StreamedShards(source, config, **arguments)
    return (InMemoryImages if config.in_memory else StreamedImages)(source, config, **arguments)


def _check_labels(train: ImageSource, test: ImageSource) -> None:
    """Refuse a class without training images, and test images of no class, or of classes with other numbers."""
    if train.missing_label is not None:
        name = f" ({train.class_names[train.missing_label]})" if train.class_names else ""
        raise LowbitError(
            f"{train.where(0)} and on: labels of a training split must be 0 to {train.num_classes - 1}, each on some "
            f"image, but no image has {train.missing_label}{name}"
        )
    if None not in (train.class_names, test.class_names) and train.class_names != test.class_names:
        raise LowbitError(
            f"{test.where(0)} and on: the split {test.split} numbers its classes {', '.join(test.class_names[:3])}…, but the "
            f"split {train.split} numbers them {', '.join(train.class_names[:3])}…"
        )
    if test.labels.max() >= train.num_classes:
        raise LowbitError(
            f"the split {test.split} has the label {int(test.labels.max())}, "
            f"but the split {train.split} has {train.num_classes} classes"
        )
