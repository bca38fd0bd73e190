"""Data sets by path.

`open_dataset` finds what a path holds (images in folders, parquet in the hub's layout, scikit-learn's digits);
`loaders` turns it into training and test batches as a `DataConfig` says. Small images are decoded once and augmented a
batch at a time (`InMemoryImages`); large ones are decoded by worker processes (`StreamedImages`). Both are a `Loader`.
"""

from __future__ import annotations

import torch

from lowbit.data.config import DataConfig
from lowbit.data.loader import Loader
from lowbit.data.memory import InMemoryImages
from lowbit.data.sources import ImageSource, open_dataset
from lowbit.data.stream import StreamedImages
from lowbit.errors import LowbitError

__all__ = [
    "DataConfig",
    "ImageSource",
    "InMemoryImages",
    "Loader",
    "StreamedImages",
    "eval_loader",
    "loaders",
    "open_dataset",
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
    train, test = open_dataset(config.path, config.train_split), _open_test(config)
    if train.missing_label is not None:
        raise LowbitError(
            f"{train.where(0)} and on: labels of a training split must be 0 to K-1, each on some image, "
            f"but no image has {train.missing_label} while the largest is {int(train.labels.max())}"
        )
    if test.labels.max() >= train.num_classes:
        raise LowbitError(
            f"{config.path}: the split {test.split} has the label {int(test.labels.max())}, "
            f"but the split {train.split} has {train.num_classes} classes"
        )
    kind = InMemoryImages if config.in_memory else StreamedImages
    place = dict(rank=rank, world_size=world_size, device=device)
    return (
        kind(train, config, train=True, num_classes=train.num_classes, seed=seed, **place),
        kind(test, config, train=False, num_classes=train.num_classes, seed=seed, **place),
    )


def eval_loader(
    config: DataConfig, *, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
) -> Loader:
    """The test loader alone, for a data set whose training split is not needed or not there.

    Its `num_classes` is what the test split itself tells. Raises as `loaders` does.
    """
    test = _open_test(config)
    kind = InMemoryImages if config.in_memory else StreamedImages
    return kind(
        test, config, train=False, num_classes=test.num_classes, seed=0, rank=rank, world_size=world_size, device=device
    )


def _open_test(config: DataConfig) -> ImageSource:
    splits = (config.test_split,) if config.test_split else ("test", "validation", "val")
    return open_dataset(config.path, *splits)
