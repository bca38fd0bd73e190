"""What a data set is read as: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lowbit.errors import LowbitError


@dataclass(frozen=True)
class DataConfig:
    """A data set by path, and how its images reach the network.

    With `augment="none"` or `"cifar"` all images are decoded once and kept in memory as uint8, which is meant for small
    images. With `"imagenet"` or `"imagenet-crop"` they are decoded every epoch by worker processes.

    Raises:
        LowbitError: a field is out of range; the message names it.
    """

    path: str
    """A folder of images (with splits or without), of parquet files or of tar shards, the URL of a folder of shards,
    `sklearn:digits`, or your own class or function that gives data sets of tensors, `package.module:name` (`lowbit.data.own`)."""
    train_split: str = "train"
    """The split to train on."""
    test_split: str | None = None
    """The split to evaluate on; by default the first that exists of test, validation, val."""
    validation: float | None = None
    """Training images to hold out and to choose by (best checkpoint, batch-norm statistics) instead of the test images:
    how many, or below 1 which fraction. The same share of every class, and the same images in every run."""
    validation_split: str | None = None
    """A split of the data set to choose by, instead of holding out a part of the training images."""
    batch_size: int = 128
    """Training images in one step, all ranks together."""
    eval_batch_size: int = 256
    """Test images in one batch, on each rank."""
    augment: Literal["none", "cifar", "imagenet", "imagenet-crop", "auto"] = "none"
    """Of training images. cifar: a crop of the image padded by `crop_padding`, and a flip; imagenet: random resized crop
    and flip; imagenet-crop: shorter side to 8/7 of `image_size` (256 for 224), random crop and flip, as in the LSQ paper.
    Test images of the last two get the same resize and a centre crop. auto: cifar for small images, imagenet for others,
    chosen when a run starts (`lowbit.train.resolve`)."""
    crop_padding: int | None = None
    """Black pixels that cifar adds on each side of an image before it cuts its size out at random; 0 leaves the flip. By
    default an eighth of its width: 4 of 32. Less suits a network or a training too small to learn its images by heart."""
    image_size: int | None = None
    """Height and width that the network sees. By default 224 with imagenet and imagenet-crop, else as stored."""
    channels: Literal[1, 3] = 3
    """3: read every image as RGB; 1: as grey."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """What is subtracted from pixels in [0, 1]: one number per channel, or one for all; none: those of the network's weights."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """What they are then divided by."""
    workers: int | None = None
    """Processes that decode images, 0 for none beside this one; by default one for each CPU this process may use,
    shared among the ranks on a machine."""
    corrupt: Literal["fail", "skip"] = "fail"
    """An image that cannot be decoded: stop and name it, or leave it out and count it."""
    drop_last: bool = True
    """Leave out the last training batch of an epoch if it is not full."""
    limit: int | None = None
    """Train on so many images only, for a quick trial: the same share of every class, and the same images in every run; of
    shards, whose labels are not known before they are read, the first ones."""
    num_classes: int | None = None
    """Classes of shards whose index does not say it."""
    shuffle_buffer: int = 6000
    """Training images, still encoded, that each rank holds of shards to draw the next one from."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size", "image_size", "limit", "num_classes", "shuffle_buffer"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LowbitError(f"data.{name} must be at least 1, got {value}")
        if self.workers is not None and self.workers < 0:
            raise LowbitError(f"data.workers must not be negative, got {self.workers}")
        if self.crop_padding is not None and self.crop_padding < 0:
            raise LowbitError(f"data.crop_padding must not be negative, got {self.crop_padding}")
        if self.crop_padding is not None and self.augment not in ("cifar", "auto"):
            raise LowbitError(
                f'data.crop_padding is for data.augment="cifar", and data.augment is "{self.augment}": leave one of them out'
            )
        self._check_validation()
        for name, choices in (
            ("augment", ("none", "cifar", "imagenet", "imagenet-crop", "auto")),
            ("channels", (1, 3)),
            ("corrupt", ("fail", "skip")),
        ):
            if getattr(self, name) not in choices:
                raise LowbitError(f"data.{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (0, 1, self.channels) or not all(math.isfinite(v) for v in values):
                raise LowbitError(
                    f"data.{name} must be one finite number, or one per channel ({self.channels}), got {values}"
                )
        if min(self.std, default=1) <= 0:
            raise LowbitError(f"data.std must be positive, got {self.std}")

    def _check_validation(self) -> None:
        amount = self.validation
        if amount is not None and not (0 < amount < 1 or (1 <= amount < math.inf and amount == int(amount))):
            raise LowbitError(
                f"data.validation must be a number of training images, or a fraction between 0 and 1, got {amount}"
            )
        if amount is not None and self.validation_split is not None:
            raise LowbitError("data.validation and data.validation_split are both given: keep one of the two")
        if self.validation_split is not None and self.validation_split in (self.train_split, self.test_split):
            raise LowbitError(
                f"data.validation_split {self.validation_split!r} is the training or the test split: name another, or "
                "hold out training images with data.validation"
            )

    def held_out_of(self, images: int) -> int:
        """How many of so many training images are held out for validation."""
        amount = self.validation or 0
        return int(amount) if amount >= 1 else round(amount * images)

    @property
    def in_memory(self) -> bool:
        """Whether images are decoded once and kept in memory."""
        return self.augment in ("none", "cifar")
