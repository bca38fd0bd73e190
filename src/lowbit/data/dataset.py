"""A data path with its splits: opened once, checked against each other, made into loaders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lowbit.data.config import DataConfig
from lowbit.data.holdout import hold_out, limited
from lowbit.data.loader import Loader
from lowbit.data.memory import InMemoryImages
from lowbit.data.own import OwnSplit, is_own, open_own
from lowbit.data.shard_stream import StreamedShards
from lowbit.data.shards import Shards, holds_shards, open_shards
from lowbit.data.sources import ImageSource, open_dataset
from lowbit.data.stream import StreamedImages, StreamedSamples
from lowbit.errors import LowbitError
from lowbit.files import check_place

Source = ImageSource | Shards | OwnSplit


@dataclass(frozen=True)
class Splits:
    """The loaders of a training run."""

    train: Loader
    validation: Loader | None
    """What choices are made by; None where the config holds nothing out and names no split for it."""
    test: Loader
    digests: dict[str, str]
    """A hash of each of "training", "validation" and "test": the names and sizes of its files, its labels and classes."""


class DataSet:
    """What a `DataConfig` describes. Each split is opened when it is first asked for, once.

    Raises:
        LowbitError: by what asks: the path, a split, the labels or an image is unusable (see `open_dataset`); too few images
            for one batch; test labels that the training split does not have; images that don't fit in memory; a
            validation part that can't be held out, or a validation split that is not there, or is the test split.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    @property
    def train(self) -> Source:
        """What to train on, without what is held out for validation and not yet `limit`ed. Its length is the number of samples."""
        return self._train[0]

    @cached_property
    def test(self) -> Source:
        wanted = self.config.test_split
        return self._open(*((wanted,) if wanted else ("test", "validation", "val")))

    @cached_property
    def validation(self) -> Source | None:
        """What choices are made by: what is held out of the training split, or a split of its own, or None."""
        name, held_out = self.config.validation_split, self._train[1]
        if held_out is not None or name is None:
            return held_out
        if name == self.test.split:
            raise LowbitError(
                f"{self.config.path}: data.validation_split {name!r} is also the split to test on: name another with "
                "data.test_split, or hold out training images with data.validation"
            )
        return self._open(name)

    def loaders(self, *, with_validation: bool = True, **place: Any) -> Splits:
        """The loaders for training.

        Args:
            with_validation: whether to make one of the images for validation.
            place: seed, rank, world_size and device, as `lowbit.data.loaders` has them.
        """
        train, validation, test = self.train, self.validation, self.test
        for other in (test, validation):
            if isinstance(train, ImageSource) and isinstance(other, ImageSource):
                _check_labels(train, other)
        splits = {"training": train, "validation": validation, "test": test}
        common = dict(num_classes=train.num_classes, **place)
        wanted = validation if with_validation else None
        return Splits(
            train=self._loader(train, train=True, **common),
            validation=None if wanted is None else self._loader(wanted, train=False, **common),
            test=self._loader(test, train=False, **common),
            digests={name: split.digest() for name, split in splits.items() if split is not None},
        )

    def test_loader(self, **place: Any) -> Loader:
        """The test loader alone; its `num_classes` is what the test split itself tells."""
        return self._loader(self.test, train=False, num_classes=self.test.num_classes, **place)

    @property
    def is_own(self) -> bool:
        """Whether a user's own class or function gives the samples."""
        return self._own is not None

    @cached_property
    def _own(self) -> dict[str, OwnSplit] | None:
        """The splits of a user's own data, where the path names its code."""
        return open_own(self.config.path) if is_own(self.config.path) else None

    @cached_property
    def _train(self) -> tuple[Source, Source | None]:
        source = self._open(self.config.train_split)
        if self.config.validation is None:
            return source, None
        if isinstance(source, Shards):
            raise LowbitError(
                f"{self.config.path}: data.validation cannot hold out a class-balanced part of shards, whose labels are known "
                "only when they are read: write shards of a split of their own, and name it with data.validation_split"
            )
        if isinstance(source, ImageSource):
            _check_labels(source, source)
        return hold_out(source, self.config.held_out_of(len(source)))

    def _open(self, *splits: str) -> Source:
        path = self.config.path
        if self._own is not None:
            found = next((self._own[split] for split in splits if split in self._own), None)
            if found is None:
                raise LowbitError(
                    f"data {path!r} gives no split {' or '.join(splits)}; it gives {', '.join(self._own)}"
                )
            return found
        if "://" not in path:
            check_place(path)
        try:
            if holds_shards(path):
                return open_shards(path, *splits, num_classes=self.config.num_classes)
            return open_dataset(path, *splits, train_split=self.config.train_split)
        except OSError as error:  # a folder that may not be entered
            raise LowbitError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error

    def _loader(self, source: Source, **arguments: Any) -> Loader:
        settings = self.config
        if not isinstance(source, OwnSplit) and (settings.augment == "auto" or not settings.mean or not settings.std):
            raise LowbitError(
                'data.augment "auto" and an empty data.mean or data.std are filled in by lowbit.train.resolve; give them here'
            )
        if isinstance(source, Shards):
            return StreamedShards(source, self.config, **arguments)
        if arguments["train"]:
            source = limited(source, self.config.limit)
        if isinstance(source, OwnSplit):
            return StreamedSamples(source, self.config, **arguments)
        return (InMemoryImages if self.config.in_memory else StreamedImages)(source, self.config, **arguments)


def loaders(
    config: DataConfig, *, seed: int = 0, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
) -> tuple[Loader, Loader]:
    """The training and the test loader of a data set.

    `seed` fixes order and augmentation. `rank` of `world_size` processes gets its part of every training batch and of
    the test images. Batches come on `device`. Images held out for validation are in neither. Raises as `DataSet` does.
    """
    place = dict(seed=seed, rank=rank, world_size=world_size, device=device)
    splits = DataSet(config).loaders(with_validation=False, **place)
    return splits.train, splits.test


def split_loaders(
    config: DataConfig, *, seed: int = 0, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
) -> Splits:
    """`loaders`, and the validation loader where the config wants one. Raises as `DataSet` does."""
    return DataSet(config).loaders(seed=seed, rank=rank, world_size=world_size, device=device)


def eval_loader(
    config: DataConfig, *, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
) -> Loader:
    """The test loader alone, for a data set whose training split is not needed or not there. Raises as `DataSet` does.

    Its `num_classes` is what the test split itself tells.
    """
    return DataSet(config).test_loader(rank=rank, world_size=world_size, device=device)


def num_classes(config: DataConfig) -> int | None:
    """Classes of the training split; None of data that has none. Raises as `DataSet` does."""
    return DataSet(config).train.num_classes


def training_split(config: DataConfig) -> Source:
    """The training images, opened, without those held out for validation. Raises as `DataSet` does."""
    return DataSet(config).train


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
