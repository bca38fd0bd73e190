"""What every loader offers, and the order in which an epoch visits images."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowbit.data.config import DataConfig
from lowbit.errors import LowbitError
from lowbit.inputs import Inputs


class Loader(abc.ABC):
    """Batches of one split on one rank.

    Iteration yields `(inputs, targets)` on the loader's device. Of images they are float32 [B, C, H, W], normalised, and
    int64 [B]. For training, order and augmentation depend on the seed and the epoch alone, not on what was iterated
    before or on the number of workers: after `set_epoch(e, k)` a resumed run sees from batch k on what an uninterrupted one
    would have seen.

    Attributes:
        num_images: samples of the split, all ranks together; a training loader with `drop_last` visits fewer in one epoch.
        num_classes: None where the data knows no classes.
        image_shape: channels, height and width; of other inputs the shape of a sample, or () where they have names.
        class_names: None where the data set has only numbers.
    """

    num_images: int
    num_classes: int | None
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...] | None = None
    _epoch = 0
    _first = 0

    @property
    def skipped(self) -> list[str]:
        """With corrupt="skip": the images left out so far, each as where it is and why."""
        return []

    @property
    def example(self) -> Inputs:
        """Inputs of one sample, [1, …]: zeros in place of images."""
        return torch.zeros(1, *self.image_shape)

    @abc.abstractmethod
    def __len__(self) -> int:
        """Batches of one epoch on this rank."""

    @abc.abstractmethod
    def __iter__(self) -> Iterator[tuple[Any, Any]]: ...

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Choose the epoch that the next iteration is (from 0), and its first batch. No effect on an evaluation loader."""
        self._epoch, self._first = epoch, first


def mixed_seed(*parts: int) -> int:
    """A 63-bit seed that depends on every part."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A CPU generator that depends on (seed, epoch) only."""
    return torch.Generator().manual_seed(mixed_seed(seed, epoch))


class TrainSchedule:
    """Which images each training batch of this rank holds.

    An epoch is one permutation of all images, cut into global batches of `batch_size`; rank r takes the r-th of the
    `world_size` equal parts of each. So the images of a step do not depend on the number of ranks.

    Raises:
        LowbitError: fewer images than one global batch, or a batch that the ranks cannot share equally.
    """

    def __init__(self, num_images: int, batch_size: int, *, rank: int, world_size: int, drop_last: bool) -> None:
        if batch_size % world_size:
            raise LowbitError(
                f"data.batch_size {batch_size} counts the images of all ranks: make it a multiple of the {world_size}"
            )
        if num_images < (batch_size if drop_last else 1):
            raise LowbitError(
                f"{num_images} training images are fewer than one batch of {batch_size}: lower data.batch_size"
            )
        if not drop_last and world_size > 1 and num_images % batch_size:
            raise LowbitError(
                f"data.drop_last=False leaves a last batch of {num_images % batch_size} images, "
                f"which {world_size} ranks may not share equally: use drop_last=True"
            )
        self._num_images = num_images
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self.batches = num_images // batch_size if drop_last else -(-num_images // batch_size)

    def epoch(self, generator: torch.Generator) -> list[Tensor]:
        """Indices (int64) of each batch on this rank, in order."""
        order = torch.randperm(self._num_images, generator=generator)
        part = self._batch_size // self._world_size
        batches = order.split(self._batch_size)[: self.batches]
        return [batch[self._rank * part : (self._rank + 1) * part] for batch in batches]


def eval_indices(num_images: int, *, rank: int, world_size: int) -> Tensor:
    """This rank's share of the test images (int64): each image on exactly one rank, none twice.

    Shares differ by at most one image, and so do the ranks' numbers of batches.

    Raises:
        LowbitError: fewer images than ranks.
    """
    check_eval(num_images, world_size)
    return torch.arange(rank, num_images, world_size)


def check_eval(num_images: int, world_size: int) -> None:
    """Raises LowbitError if there are fewer test images than ranks."""
    if num_images < world_size:
        raise LowbitError(f"{num_images} test images are fewer than the {world_size} ranks")


class Normalise:
    """uint8 pixels to float32: (pixel / 255 − mean) / std, per channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str) -> None:
        mean64, std64 = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self._scale = (1 / (255 * std64)).float().to(device).reshape(1, -1, 1, 1)
        self._shift = (-mean64 / std64).float().to(device).reshape(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mul_(self._scale).add_(self._shift)


def decoding_workers(config: DataConfig) -> int:
    """Processes to decode with: by default this process's share of the CPUs, as launchers tell how many share them."""
    if config.workers is not None:
        return config.workers
    return max(1, usable_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def usable_cpus() -> int:
    """CPUs that this process may use: those it is bound to where the system tells (Linux), else all of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
