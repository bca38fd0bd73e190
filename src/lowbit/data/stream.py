"""Images decoded every epoch by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lowbit._torchvision import import_torchvision
from lowbit.data.config import DataConfig
from lowbit.data.decode import Broken, read_image
from lowbit.data.loader import Normalise, TrainSchedule, decoding_workers, epoch_generator, eval_indices, mixed_seed
from lowbit.data.sources import ImageSource
from lowbit.errors import LowbitError

if TYPE_CHECKING:
    from PIL.Image import Image

_RESIZE = 8 / 7  # shorter side before a crop, over the crop: 256 for 224


class StreamedImages:
    """A `Loader` of images that worker processes read, decode, augment and collate as uint8.

    With corrupt="skip" a broken image makes its batch one shorter.

    Raises:
        LowbitError: too few images for a batch; while iterating, a broken image.
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
        import_torchvision()  # once, here, rather than in every worker
        self.num_images = len(source)
        self.num_classes = num_classes
        self.image_shape = image_shape(config)
        self.class_names = source.class_names
        self._deliver = Delivery(config, device)
        shape = dict(rank=rank, world_size=world_size)
        if train:
            schedule = TrainSchedule(self.num_images, config.batch_size, drop_last=config.drop_last, **shape)
            self._sampler = _Batches(schedule, seed)
        else:
            mine = eval_indices(self.num_images, **shape).split(config.eval_batch_size)
            self._sampler = _Batches(list(mine), seed)
        workers = decoding_workers(config)
        self._loader = DataLoader(
            _Decoded(source, config, train=train),
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.device(device).type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # not torch's global one, which is the user's
        )

    @property
    def skipped(self) -> list[str]:
        return self._deliver.skipped

    def __len__(self) -> int:
        return len(self._sampler)

    def set_epoch(self, epoch: int) -> None:
        self._sampler.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self._deliver, self._loader)


class Delivery:
    """The last step of a batch: what is broken in it stops the iteration or is counted, the rest goes to the device.

    Raises:
        LowbitError: a broken image that is not to be skipped, or a batch of nothing else.
    """

    def __init__(self, config: DataConfig, device: torch.device | str) -> None:
        self.skipped: list[str] = []
        self._device = torch.device(device)
        self._normalise = Normalise(config.mean, config.std, device)
        self._skip = config.corrupt == "skip"

    def __call__(self, batch: tuple[Tensor | None, Tensor, list[Broken]]) -> tuple[Tensor, Tensor]:
        images, labels, broken = batch
        for image in broken:
            if not (self._skip and image.skippable):
                raise image.error()
        self.skipped += [b.message for b in broken if b.message not in self.skipped]
        if images is None:
            raise LowbitError(f"{broken[0].message}; no image of its batch can be read: check the data set")
        images, labels = (t.to(self._device, non_blocking=True) for t in (images, labels))
        return self._normalise(images), labels


class _Batches:
    """Batches of (index, seed of its augmentation), so that workers need to know nothing of epochs.

    batches: drawn anew every epoch by a schedule, or always the same.
    """

    def __init__(self, batches: TrainSchedule | list[Tensor], seed: int) -> None:
        self._batches = batches
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._batches.batches if isinstance(self._batches, TrainSchedule) else len(self._batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if not isinstance(self._batches, TrainSchedule):
            yield from ([(index, 0) for index in batch.tolist()] for batch in self._batches)
            return
        generator = epoch_generator(self._seed, self.epoch)
        for batch in self._batches.epoch(generator):
            yield [(index, mixed_seed(self._seed, self.epoch, index)) for index in batch.tolist()]


class _Decoded(Dataset[tuple[Tensor, int] | Broken]):
    """(index, seed) to (uint8 [C, H, W], label), or to `Broken`."""

    def __init__(self, source: ImageSource, config: DataConfig, *, train: bool) -> None:
        self._source = source
        self._config = config
        self._train = train

    @cached_property
    def _transform(self) -> Callable[[Image], Tensor]:
        # Made in the worker: a process that does not inherit the parent's modules could not import torchvision to
        # unpickle it.
        return image_transform(self._config, train=self._train)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, int] | Broken:
        number, seed = index
        image = read_image(self._source, number, self._config.channels)
        if isinstance(image, Broken):
            return image
        return seeded(self._transform, image, seed), int(self._source.labels[number])


def seeded(transform: Callable[[Image], Tensor], image: Image, seed: int) -> Tensor:
    """The transform of an image with what is random in it drawn from `seed`."""
    # torchvision's transforms draw from torch's global generator; in the main process that belongs to the user.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return transform(image)


def image_shape(config: DataConfig) -> tuple[int, int, int]:
    """Channels, height and width of what `image_transform` makes."""
    size = config.image_size or 224
    return (config.channels, size, size)


def image_transform(config: DataConfig, *, train: bool) -> Callable[[Image], Tensor]:
    """torchvision's transforms from a PIL image to uint8 [C, H, W], as `DataConfig.augment` says."""
    import_torchvision()
    from torchvision.transforms import v2

    _, size, _ = image_shape(config)
    resize = v2.Resize(round(size * _RESIZE))
    if not train:
        steps = [resize, v2.CenterCrop(size)]
    elif config.augment == "imagenet":
        steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    else:
        steps = [resize, v2.RandomCrop(size), v2.RandomHorizontalFlip()]
    return v2.Compose([*steps, v2.PILToTensor()])


def collate(samples: list[tuple[Tensor, int] | Broken]) -> tuple[Tensor | None, Tensor, list[Broken]]:
    """(images [B, C, H, W] or None where all are broken, labels [B], what is broken) of a batch."""
    broken = [sample for sample in samples if isinstance(sample, Broken)]
    good = [sample for sample in samples if not isinstance(sample, Broken)]
    images = torch.stack([image for image, _ in good]) if good else None
    return images, torch.tensor([label for _, label in good], dtype=torch.int64), broken
