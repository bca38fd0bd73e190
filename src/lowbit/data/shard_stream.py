"""Batches from shards that are read in order: data that does not fit a disk."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lowbit._torchvision import import_torchvision
from lowbit.data.config import DataConfig
from lowbit.data.decode import Broken, decode
from lowbit.data.images import open_image
from lowbit.data.loader import (
    Loader,
    Normalise,
    TrainSchedule,
    check_eval,
    decoding_workers,
    epoch_generator,
    mixed_seed,
)
from lowbit.data.shards import Sample, Shards, read_rows
from lowbit.data.stream import Delivery, collate, image_shape, image_transform, seeded
from lowbit.errors import LowbitError

if TYPE_CHECKING:
    from PIL.Image import Image

_Item = TypeVar("_Item")

READERS = 24
"""Places of an epoch that each rank reads at. Worker processes share them, and the order of images depends on them alone,
so that a run can continue with another number of workers."""
_WORKERS = (0, *(n for n in range(1, READERS + 1) if READERS % n == 0))  # so many can share the readers equally


class StreamedShards(Loader):
    """A `Loader` of images that worker processes read from shards in order, decode, augment and collate as uint8.

    An epoch lays all shards in a line, for training in a circle whose order and beginning are drawn from (seed, epoch), and
    cuts the line of images into equal pieces, for the ranks and within a rank for its `READERS`; a piece may begin and end within a shard. So
    however many shards there are, every rank gets the same number of batches, and evaluation sees every image once. Each
    reader draws its images at random from the next few (`shuffle_buffer`). The images of a training step depend on the
    number of ranks, which for images at random access they don't.

    With corrupt="skip" a broken image makes its batch one shorter.

    Raises:
        LowbitError: too few images for a batch, an augmentation that is for images in memory; while iterating, a broken
            image, or a shard that is unreadable or not as its index says.
    """

    def __init__(
        self,
        shards: Shards,
        config: DataConfig,
        *,
        train: bool,
        num_classes: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        import_torchvision()  # once, here, rather than in every worker
        if config.in_memory:
            raise LowbitError(
                f'{config.path}: shards are read again every epoch, but data.augment="{config.augment}" is for images in '
                'memory: choose "imagenet" or "imagenet-crop"'
            )
        self._dataset = _Readers(
            shards, config, train=train, num_classes=num_classes, seed=seed, rank=rank, world_size=world_size
        )
        self.num_images = self._dataset.num_images
        self.num_classes = num_classes
        self.image_shape = image_shape(config)
        self._deliver = Delivery(config, device, Normalise(config.mean, config.std, device))
        workers = max(n for n in _WORKERS if n <= decoding_workers(config))
        self._loader = DataLoader(
            self._dataset,
            batch_size=None,  # readers make the batches
            num_workers=workers,
            pin_memory=torch.device(device).type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # not torch's global one, which is the user's
        )

    @property
    def skipped(self) -> list[str]:
        return self._deliver.skipped

    def __len__(self) -> int:
        return len(self._dataset.sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._dataset.place.copy_(torch.tensor([self._epoch, self._first]))
        return map(self._deliver, self._loader)


@dataclass(frozen=True)
class _Sizes:
    """Images in each batch of a rank: `size` in all but the last, which has what is left of `images`."""

    images: int
    size: int

    def __len__(self) -> int:
        return -(-self.images // self.size)

    def __getitem__(self, batch: int) -> int:
        return min(self.size, self.images - batch * self.size)

    def of_reader(self, reader: int) -> int:
        """Images of all batches of a reader."""
        batches = range(reader, len(self), READERS)
        return sum(self[batch] for batch in batches[-1:]) + self.size * max(0, len(batches) - 1)


class _Readers(IterableDataset):
    """The batches of a rank, collated: batch b is made by reader b mod `READERS`.

    Attributes:
        num_images: of the split, all ranks together.
        sizes: images in each batch of this rank, as `_Sizes` has them.
        place: the epoch and its first batch, in shared memory, where workers that live through several epochs see it change.
    """

    def __init__(
        self,
        shards: Shards,
        config: DataConfig,
        *,
        train: bool,
        num_classes: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._shards, self._config, self._train, self._num_classes = shards, config, train, num_classes
        self._seed, self._rank = seed, rank
        self.place = torch.zeros(2, dtype=torch.int64).share_memory_()
        limit = config.limit if train and config.limit else len(shards)
        before = [0, *accumulate(shards.lengths)]
        self._lengths = [max(0, min(limit, end) - start) for start, end in pairwise(before)]
        self._before = before
        self.num_images = sum(self._lengths)
        if train:
            schedule = TrainSchedule(
                self.num_images, config.batch_size, rank=rank, world_size=world_size, drop_last=config.drop_last
            )
            size = config.batch_size // world_size
            mine = min(schedule.batches * config.batch_size, self.num_images) // world_size
            self._start = rank * mine
        else:
            check_eval(self.num_images, world_size)
            size = config.eval_batch_size
            self._start = rank * self.num_images // world_size
            mine = (rank + 1) * self.num_images // world_size - self._start
        self.sizes = _Sizes(mine, size)

    def __iter__(self) -> Iterator[tuple[Tensor | None, Tensor, list[Broken]]]:
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch, first = self.place.tolist()
        # The loader takes batches of its workers in turn, from the first worker on: so that one begins with the first batch.
        mine = range(first + number, len(self.sizes), step)
        done = {reader: sum(self.sizes[batch] for batch in range(reader, first, READERS)) for reader in range(READERS)}
        readers = [self._reader(reader, epoch, done[reader]) for reader in range(READERS)]
        for batch in mine:
            yield collate(list(islice(readers[batch % READERS], self.sizes[batch])))

    def _reader(self, reader: int, epoch: int, done: int) -> Iterator[tuple[Tensor, int] | Broken]:
        """Decoded images of one reader, in the order in which they are used, without the first that are `done`."""
        start = self._start + sum(map(self.sizes.of_reader, range(reader)))
        count = self.sizes.of_reader(reader)
        order = iter(range(count))  # a counted image costs nothing before it is read
        if self._train:
            draw = random.Random(mixed_seed(self._seed, epoch, self._rank, reader))
            order = _shuffled(order, max(1, self._config.shuffle_buffer // READERS), draw)
        used = set(islice(order, done))
        for sample in self._in_order(order, used, start, start + count, epoch):
            yield sample if isinstance(sample, Broken) else self._decoded(*sample, epoch)

    def _in_order(
        self, order: Iterator[int], used: set[int], start: int, stop: int, epoch: int
    ) -> Iterator[tuple[int, str, Sample] | Broken]:
        """Samples of the places from `start` to `stop` in this order of them; of those `used` before none is kept."""
        read = next(place for place in range(len(used) + 1) if place not in used)  # the first that is still to come
        kept: dict[int, tuple[int, str, Sample] | Broken] = {}
        samples = self._samples(start + read, stop, epoch)
        for place in order:
            while place not in kept:
                sample = next(samples)
                if isinstance(sample, Broken):  # of the shard
                    yield sample
                    return
                if read not in used:
                    kept[read] = sample
                read += 1
            yield kept.pop(place)

    def _samples(self, start: int, stop: int, epoch: int) -> Iterator[tuple[int, str, Sample] | Broken]:
        """(number in the split, url of its shard, sample) of the places `start` to `stop` of the epoch's line."""
        order, shift = list(range(len(self._lengths))), 0
        if self._train:
            # Turned by a random number of images, so that also of few shards no epoch is cut into the pieces of another.
            generator = epoch_generator(self._seed, epoch)
            order = torch.randperm(len(order), generator=generator).tolist()
            shift = int(torch.randint(self.num_images, (), generator=generator))
        ends = list(accumulate(self._lengths[shard] for shard in order))
        left, start = stop - start, (start + shift) % self.num_images
        place = bisect_right(ends, start)
        first = start - (ends[place] - self._lengths[order[place]])
        while left > 0:
            shard = order[place]
            last = min(self._lengths[shard], first + left)
            url = self._shards.urls[shard]
            try:
                for row, sample in enumerate(read_rows(url, first, last, self._shards.lengths[shard]), first):
                    yield self._before[shard] + row, url, sample
            except LowbitError as error:
                # Handed on as data: an error raised in a worker process would come out wrapped in its traceback.
                yield Broken(str(error), hint="", skippable=False)
                return
            left -= last - first
            place, first = (place + 1) % len(order), 0

    def _decoded(self, index: int, url: str, sample: Sample, epoch: int) -> tuple[Tensor, int] | Broken:
        where = f"{url} {sample.name}"
        try:
            label = sample.class_number()
        except ValueError as error:
            return Broken(f"{where}: {error}", "rewrite the shard", skippable=False)
        if label >= self._num_classes:
            return Broken(
                f"{where}: label {label}, but there are {self._num_classes} classes",
                "rewrite the index with lowbit.data.index_shards, or give data.num_classes",
                skippable=False,
            )
        if sample.image is None:
            return Broken(f"{where}: has no image")
        encoded = sample.image
        image = decode(lambda: open_image(encoded), lambda: where, self._config.channels)
        if isinstance(image, Broken):
            return image
        return seeded(self._transform, image, mixed_seed(self._seed, epoch, index)), label

    @cached_property
    def _transform(self) -> Callable[[Image], Tensor]:
        return image_transform(self._config, train=self._train)  # in the worker, as in `StreamedImages`


def _shuffled(items: Iterator[_Item], size: int, draw: random.Random) -> Iterator[_Item]:
    """The items in a random order in which each comes at most `size` places early, from a buffer of `size`."""
    buffer = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = draw.randrange(size)
        buffer[place], item = item, buffer[place]
        yield item
    draw.shuffle(buffer)
    yield from buffer
