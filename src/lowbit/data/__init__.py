"""Data sets by path.

`open_dataset` finds what a path holds (images in folders, parquet in the hub's layout, scikit-learn's digits), and
`open_shards` an index of tar shards; `loaders` turns it into training and test batches as a `DataConfig` says. Small
images are decoded once and augmented a batch at a time (`InMemoryImages`); large ones are decoded by worker processes
(`StreamedImages`), and so are those of shards (`StreamedShards`). All are a `Loader`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lowbit.data.config import DataConfig
from lowbit.data.holdout import Part, hold_out, limited
from lowbit.data.loader import Loader
from lowbit.data.memory import InMemoryImages
from lowbit.data.shard_stream import StreamedShards
from lowbit.data.shards import Shards, holds_shards, index_shards, open_shards
from lowbit.data.sources import ImageSource, open_dataset
from lowbit.data.stream import StreamedImages
from lowbit.errors import LowbitError
from lowbit.files import check_place

__all__ = [
    "DataConfig",
    "ImageSource",
    "InMemoryImages",
    "Loader",
    "Shards",
    "Splits",
    "StreamedImages",
    "StreamedShards",
    "eval_loader",
    "index_shards",
    "loaders",
    "num_classes",
    "open_dataset",
    "open_shards",
    "split_loaders",
    "training_split",
]


@dataclass(frozen=True)
class Splits:
    """The loaders of a training run."""

    train: Loader
    validation: Loader | None
    """What choices are made by; None where the config holds nothing out and names no split for it."""
    test: Loader
    digests: dict[str, str]
    """A hash of each of "training", "validation" and "test": the names and sizes of its files, its labels and classes."""


def loaders(
    config: DataConfig, *, seed: int = 0, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
) -> tuple[Loader, Loader]:
    """The training and the test loader of a data set.

    `seed` fixes order and augmentation. `rank` of `world_size` processes gets its part of every training batch and of
    the test images. Batches come on `device`. Images held out for validation are in neither.

    Raises:
        LowbitError: the path, a split, the labels or an image is unusable (see `open_dataset`); too few images
            for one batch; test labels that the training split does not have; images that don't fit in memory; a
            validation part that can't be held out.
    """
    splits = _load(config, seed=seed, with_validation=False, rank=rank, world_size=world_size, device=device)
    return splits.train, splits.test


def split_loaders(
    config: DataConfig, *, seed: int = 0, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
) -> Splits:
    """`loaders`, and the validation loader where the config wants one.

    Raises:
        LowbitError: as `loaders` does; also a validation split that is not there, or is the test split.
    """
    return _load(config, seed=seed, with_validation=True, rank=rank, world_size=world_size, device=device)


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
    """The training images, opened, without those held out for validation.

    Its length is the number of images. Raises as `open_dataset`, `open_shards` and `loaders` do.
    """
    return _open_train(config)[0]


def _load(config: DataConfig, *, seed: int, with_validation: bool, **place: Any) -> Splits:
    (train, held_out), test = _open_train(config), _open_test(config)
    validation = _open_validation(config, test) if held_out is None else held_out
    for other in (test, validation):
        if isinstance(train, ImageSource) and isinstance(other, ImageSource):
            _check_labels(train, other)

    splits = {"training": train, "validation": validation, "test": test}
    common = dict(num_classes=train.num_classes, seed=seed, **place)
    return Splits(
        train=_loader(train, config, train=True, **common),
        validation=_loader(validation, config, train=False, **common)
        if with_validation and validation is not None
        else None,
        test=_loader(test, config, train=False, **common),
        digests={name: split.digest() for name, split in splits.items() if split is not None},
    )


def _open_train(config: DataConfig) -> tuple[ImageSource | Shards, Part | None]:
    """What to train on, and what is held out of the training split."""
    source = _open(config, config.train_split)
    if config.validation is None:
        return source, None
    if isinstance(source, Shards):
        raise LowbitError(
            f"{config.path}: data.validation cannot hold out a class-balanced part of shards, whose labels are known "
            "only when they are read: write shards of a split of their own, and name it with data.validation_split"
        )
    _check_labels(source, source)
    return hold_out(source, config.held_out_of(len(source)))


def _open_validation(config: DataConfig, test: ImageSource | Shards) -> ImageSource | Shards | None:
    if config.validation_split is None:
        return None
    if config.validation_split == test.split:
        raise LowbitError(
            f"{config.path}: data.validation_split {test.split!r} is also the split to test on: name another with "
            "data.test_split, or hold out training images with data.validation"
        )
    return _open(config, config.validation_split)


def _open(config: DataConfig, *splits: str) -> ImageSource | Shards:
    if "://" not in config.path:
        check_place(config.path)
    try:
        if holds_shards(config.path):
            return open_shards(config.path, *splits, num_classes=config.num_classes)
        return open_dataset(config.path, *splits, train_split=config.train_split)
    except OSError as error:  # a folder that may not be entered
        raise LowbitError(f"{error.filename or config.path}: cannot be read ({error.strerror or error})") from error


def _open_test(config: DataConfig) -> ImageSource | Shards:
    return _open(config, *((config.test_split,) if config.test_split else ("test", "validation", "val")))


def _loader(source: ImageSource | Shards, config: DataConfig, **arguments: Any) -> Loader:
    if isinstance(source, Shards):
        return StreamedShards(source, config, **arguments)
    if arguments["train"]:
        source = limited(source, config.limit)
    return (InMemoryImages if config.in_memory else StreamedImages)(source, config, **arguments)


def _check_labels(train: ImageSource, test: ImageSource) -> None:
    """Refuse a class without training images, and test images of no class, or of classes with other numbers."""
    if train.missing_label is not None:
        name = f" ({train.class_names[train.missing_label]})" if train.class_names else ""
        raise LowbitError(
            f"{train.where(0)} and on: labels of a training split must be 0 to {train.num_classes - 1}, each on some "
            f"image, but no image has {train.missing_label}{name}"
        )
    names, others = train.class_names, test.class_names
    if names is not None and others is not None and names != others:
        raise LowbitError(
            f"{test.where(0)} and on: the split {test.split} numbers its classes {', '.join(others[:3])}…, but the "
            f"split {train.split} numbers them {', '.join(names[:3])}…"
        )
    if test.labels.max() >= train.num_classes:
        raise LowbitError(
            f"the split {test.split} has the label {int(test.labels.max())}, "
            f"but the split {train.split} has {train.num_classes} classes"
        )
