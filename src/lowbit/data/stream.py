"""Images decoded every epoch by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lowbit._torchvision import import_torchvision
from lowbit.data.config import DataConfig
from lowbit.data.decode import Broken, read_image
from lowbit.data.loader import (
    Loader,
    Normalise,
    TrainSchedule,
    decoding_workers,
    epoch_generator,
    eval_indices,
    mixed_seed,
)
from lowbit.data.own import OwnSamples, OwnSplit
from lowbit.data.sources import ImageSource
from lowbit.errors import LowbitError
from lowbit.inputs import Inputs, each

if TYPE_CHECKING:
    from PIL.Image import Image

_RESIZE = 8 / 7  # shorter side before a crop, over the crop: 256 for 224


class Streamed(Loader):
    """A `Loader` of samples that worker processes read one by one and collate.

    Args:
        dataset: gives a sample for (index, seed of its augmentation), or `Broken`.
        collate: makes (inputs, targets, what is broken) of some.
        normalise: done to inputs on the device.
        workers: processes that read, 0 for none beside this one.

    Raises:
        LowbitError: too few samples for a batch; while iterating, a broken one.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable[[list], tuple[Any, Any, list[Broken]]],
        normalise: Callable[[Any], Any] | None,
        config: DataConfig,
        *,
        num_images: int,
        train: bool,
        workers: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_images = num_images
        self._deliver = Delivery(config, device, normalise)
        shape = dict(rank=rank, world_size=world_size)
        if train:
            schedule = TrainSchedule(num_images, config.batch_size, drop_last=config.drop_last, **shape)
            self._sampler = _Batches(schedule, seed)
        else:
            self._sampler = _Batches(list(eval_indices(num_images, **shape).split(config.eval_batch_size)), seed)
        self._loader = DataLoader(
            dataset,
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

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        self._sampler.epoch, self._sampler.first = self._epoch, self._first
        return map(self._deliver, self._loader)


class StreamedImages(Streamed):
    """Images that worker processes read, decode, augment and collate as uint8.

    With corrupt="skip" a broken image makes its batch one shorter.
    """

    def __init__(
        self, source: ImageSource, config: DataConfig, *, train: bool, num_classes: int, device: torch.device | str = "cpu", **place: int
    ) -> None:  # fmt: skip
        import_torchvision()  # once, here, rather than in every worker
        self.num_classes, self.class_names = num_classes, source.class_names
        self.image_shape = image_shape(config)
        super().__init__(
            _Decoded(source, config, train=train), collate, Normalise(config.mean, config.std, device), config,
            num_images=len(source), train=train, workers=decoding_workers(config), device=device, **place,
        )  # fmt: skip


class StreamedSamples(Streamed):
    """Samples of a user's own data; those that lie in memory are read by this process, others by workers."""

    def __init__(
        self, source: OwnSplit, config: DataConfig, *, train: bool, num_classes: int | None, **place: Any
    ) -> None:
        self._example, _ = source.example()
        self.num_classes, self.class_names = num_classes, source.class_names
        self.image_shape = () if isinstance(self._example, Mapping) else tuple(self._example.shape[1:])
        workers = 0 if isinstance(source.data, TensorDataset) else decoding_workers(config)
        super().__init__(
            OwnSamples(source),
            source.collate,
            None,
            config,
            num_images=len(source),
            train=train,
            workers=workers,
            **place,
        )

    @property
    def example(self) -> Inputs:
        return self._example


class Delivery:
    """The last step of a batch: what is broken in it stops the iteration or is counted, the rest goes to the device.

    Raises:
        LowbitError: a broken image that is not to be skipped, or a batch of nothing else.
    """

    def __init__(
        self, config: DataConfig, device: torch.device | str, normalise: Callable[[Any], Any] | None = None
    ) -> None:
        self.skipped: list[str] = []
        self._device = torch.device(device)
        self._normalise = normalise
        self._skip = config.corrupt == "skip"

    def __call__(self, batch: tuple[Any, Any, list[Broken]]) -> tuple[Any, Any]:
        inputs, targets, broken = batch
        for image in broken:
            if not (self._skip and image.skippable):
                raise image.error()
        self.skipped += [b.message for b in broken if b.message not in self.skipped]
        if inputs is None:
            raise LowbitError(f"{broken[0].message}; no image of its batch can be read: check the data set")
        inputs, targets = (each(self._moved, part) for part in (inputs, targets))
        return inputs if self._normalise is None else self._normalise(inputs), targets

    def _moved(self, value: Any) -> Any:
        return value.to(self._device, non_blocking=True) if isinstance(value, Tensor) else value


class _Batches:
    """Batches of (index, seed of its augmentation), so that workers need to know nothing of epochs.

    batches: drawn again every epoch by a schedule, or always the same.
    """

    def __init__(self, batches: TrainSchedule | list[Tensor], seed: int) -> None:
        self._batches = batches
        self._seed = seed
        self.epoch, self.first = 0, 0

    def __len__(self) -> int:
        return self._batches.batches if isinstance(self._batches, TrainSchedule) else len(self._batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if not isinstance(self._batches, TrainSchedule):
            yield from ([(index, 0) for index in batch.tolist()] for batch in self._batches)
            return
        generator = epoch_generator(self._seed, self.epoch)
        for batch in self._batches.epoch(generator)[self.first :]:
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
