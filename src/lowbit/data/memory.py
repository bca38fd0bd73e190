"""Images decoded once, augmented and normalised a batch at a time where they lie."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lowbit.data.config import DataConfig
from lowbit.data.decode import decode_all
from lowbit.data.loader import Loader, Normalise, TrainSchedule, decoding_workers, epoch_generator, eval_indices
from lowbit.data.sources import ImageSource

_AT_ONCE = 2**23
"""Bytes of images that are cut out at once, if that is more than a batch: an accelerator waits for all indices that are sent to it."""


class InMemoryImages(Loader):
    """A `Loader` of images kept as uint8 [N, C, H, W] on the device.

    All images of the split are decoded here, once. Evaluation keeps only this rank's; training keeps all of them on
    every rank, since each epoch's permutation gives a rank other images.

    Raises:
        LowbitError: an image is broken, sizes differ, too few images for a batch; see `lowbit.data.loaders`.
    """

    def __init__(
        self,
        source: ImageSource,
        config: DataConfig,
        *,
        train: bool,
        num_classes: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_classes = num_classes
        self.class_names = source.class_names
        self._train = train
        self._seed = seed
        self._augmented = train and config.augment == "cifar"
        indices = range(len(source))
        shape = dict(rank=rank, world_size=world_size)
        if train:  # refuse a batch that cannot be filled before a minute of decoding
            TrainSchedule(len(indices), config.batch_size, drop_last=config.drop_last, **shape)
        images, labels, self._skipped = decode_all(
            source,
            indices,
            channels=config.channels,
            size=config.image_size,
            workers=decoding_workers(config),
            skip=config.corrupt == "skip",
        )
        self.num_images = len(labels)
        if train:
            self._schedule = TrainSchedule(self.num_images, config.batch_size, drop_last=config.drop_last, **shape)
        else:
            mine = eval_indices(self.num_images, **shape)
            if world_size > 1:
                images, labels = images[mine], labels[mine]
            self._batches = torch.arange(len(labels)).split(config.eval_batch_size)
        _, channels, height, width = images.shape
        self.image_shape = (channels, height, width)
        self._padding = width // 8 if config.crop_padding is None else config.crop_padding
        self._images = images.to(device)
        self._labels = labels.to(device)
        self._normalise = Normalise(config.mean, config.std, device)

    @property
    def images(self) -> Tensor:
        """uint8 [N, C, H, W] on the device, in the order of the data set, channels-last in memory."""
        return self._images

    @property
    def labels(self) -> Tensor:
        """int64 [N], beside `images`."""
        return self._labels

    @property
    def skipped(self) -> list[str]:
        return self._skipped

    def __len__(self) -> int:
        return self._schedule.batches if self._train else len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self._train:
            for batch in self._batches:
                rows = slice(int(batch[0]), int(batch[-1]) + 1)
                yield self._normalise(self._images[rows]), self._labels[rows]
            return
        generator = epoch_generator(self._seed, self._epoch)
        batches = self._schedule.epoch(generator)
        # Drawn on the CPU and by image, so that they depend neither on the device nor on how ranks share a batch.
        count, padding = self.num_images, self._padding
        offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
        flips = torch.randint(0, 2, (count,), generator=generator).bool()
        at_once = max(1, _AT_ONCE // (len(batches[0]) * self._images[0].numel()))
        for first in range(self._first, len(batches), at_once):
            several = batches[first : first + at_once]
            chosen = torch.cat(several)
            chosen_offsets, chosen_flips = offsets[:, chosen], flips[chosen]
            chosen = chosen.to(self._images.device)
            images = self._images[chosen]
            if self._augmented:
                images = crop_and_flip(images, padding, chosen_offsets, chosen_flips)
            sizes = [len(batch) for batch in several]
            for batch, labels in zip(images.split(sizes), self._labels[chosen].split(sizes), strict=True):
                yield self._normalise(batch), labels


def crop_and_flip(images: Tensor, padding: int, offsets: Tensor, flips: Tensor) -> Tensor:
    """Pad every image with black, cut its own window of the original size out, and mirror it where asked.

    Args:
        images: uint8 [B, C, H, W].
        padding: rows and columns added on each side.
        offsets: int64 [2, B], the window's first row and column in the padded image, 0 to 2·padding.
        flips: bool [B].
    """
    batch, _, height, width = images.shape
    offsets, flips = offsets.to(images.device), flips.to(images.device)
    rows = offsets[0, :, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(batch, width)
    columns = offsets[1, :, None] + torch.where(flips[:, None], width - 1 - columns, columns)
    padded = F.pad(images, (padding, padding, padding, padding)).permute(0, 2, 3, 1)  # [B, H, W, C]
    images_index = torch.arange(batch, device=images.device)[:, None, None]
    return padded[images_index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
