"""From an encoded image to uint8 pixels; a broken one is named, or left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lowbit.data.images import FORMATS, to_channels
from lowbit.data.sources import ImageSource
from lowbit.errors import LowbitError

if TYPE_CHECKING:
    from PIL.Image import Image

_MEMORY_LIMIT = 16 * 2**30  # bytes of decoded images; ImageNet at 224 pixels is 180 GiB and must not be tried
_BLOCK_BYTES = 2**20  # of pixels that a worker hands over at a time; containers often have only 64 MiB of shared memory
_BLOCKS_WORTH_WORKERS = 8  # below, starting processes takes longer than decoding


@dataclass(frozen=True)
class Broken:
    """An image that cannot be used: where it is, why, and the remedy."""

    message: str
    hint: str = 'replace it, or leave such images out with data.corrupt="skip"'
    skippable: bool = True

    def error(self) -> LowbitError:
        return LowbitError("; ".join(filter(None, (self.message, self.hint))))


def read_image(source: ImageSource, index: int, channels: int) -> Image | Broken:
    """An image of a source, decoded, with 1 (grey) or 3 (RGB) channels."""
    return decode(lambda: source.read(index), lambda: source.where(index), channels)


def decode(read: Callable[[], Image], where: Callable[[], str], channels: int) -> Image | Broken:
    """The image that `read` opens, decoded, with 1 (grey) or 3 (RGB) channels; `where` says for messages where it is."""
    from PIL import UnidentifiedImageError

    try:
        return to_channels(read(), channels)
    except LowbitError as error:  # of the file that holds the images
        return Broken(str(error), hint="", skippable=False)
    except UnidentifiedImageError:  # its text is the address of a buffer
        return Broken(f"{where()}: not a readable image (none of {', '.join(FORMATS)})")
    except Exception as error:  # Pillow's decoders raise many kinds, SyntaxError and struct.error among them
        return Broken(f"{where()}: not a readable image ({error})")


def decode_all(
    source: ImageSource, indices: range, *, channels: int, size: int | None, workers: int, skip: bool
) -> tuple[Tensor, Tensor, list[str]]:
    """Decode images of one size into memory, by worker processes where there are many.

    Returns:
        uint8 pixels [N, C, H, W] in channels-last memory, int64 labels [N], and what was left out because of `skip`.
        An image of another size than `size` is cropped to a square and resized; with None all must be of one size.

    Raises:
        LowbitError: an image is broken and `skip` is off, all are broken, sizes differ, or memory would not do.
    """
    height, width = (size, size) if size else common_size(source, indices)
    pixels_per_image = height * width * channels
    if len(indices) * pixels_per_image > _MEMORY_LIMIT:
        raise LowbitError(
            f"{source.where(0)} and on: {len(indices)} images of {height}x{width} do not fit into memory "
            f'({_MEMORY_LIMIT >> 30} GiB are allowed): give data.image_size, or data.augment="imagenet"'
        )
    blocks = _Blocks(source, indices, (height, width, channels), fit=size is not None)
    pixels = torch.empty((len(indices), height, width, channels), dtype=torch.uint8)
    labels = torch.from_numpy(source.labels[indices.start : indices.stop])
    keep = torch.ones(len(indices), dtype=torch.bool)
    left_out = []
    start = 0
    workers = workers if len(blocks) > _BLOCKS_WORTH_WORKERS else 0
    # With a generator of its own the loader leaves torch's global one, the user's, as it is.
    for block, broken in DataLoader(blocks, batch_size=None, num_workers=workers, generator=torch.Generator()):
        pixels[start : start + len(block)] = block
        for row, image in broken:
            if not (skip and image.skippable):
                raise image.error()
            keep[start + row] = False
            left_out.append(image.message)
        start += len(block)
    if left_out:
        pixels, labels = pixels[keep], labels[keep]
    return pixels.permute(0, 3, 1, 2), labels, left_out


class _Blocks(Dataset[tuple[Tensor, list[tuple[int, Broken]]]]):
    """Consecutive images decoded together: (uint8 [B, H, W, C], [(row in the block, what is wrong with it)])."""

    def __init__(self, source: ImageSource, indices: range, shape: tuple[int, int, int], *, fit: bool) -> None:
        self._source = source
        self._shape = shape
        self._fit = fit
        size = max(1, _BLOCK_BYTES // (shape[0] * shape[1] * shape[2]))
        self._blocks = [indices[start : start + size] for start in range(0, len(indices), size)]

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> tuple[Tensor, list[tuple[int, Broken]]]:
        from PIL import ImageOps
        from PIL.Image import Resampling

        height, width, channels = self._shape
        block = self._blocks[index]
        pixels = np.zeros((len(block), *self._shape), dtype=np.uint8)
        broken = []
        for row, image_index in enumerate(block):
            image = read_image(self._source, image_index, channels)
            if not isinstance(image, Broken) and image.size != (width, height):
                if self._fit:
                    image = ImageOps.fit(image, (width, height), method=Resampling.BILINEAR)
                else:
                    found = f"{image.size[1]}x{image.size[0]} pixels, but the first image has {height}x{width}"
                    hint = "give data.image_size to bring all to one size"
                    image = Broken(f"{self._source.where(image_index)}: {found}", hint, skippable=False)
            if isinstance(image, Broken):
                broken.append((row, image))
            else:
                pixels[row] = np.asarray(image).reshape(self._shape)
        return torch.from_numpy(pixels), broken


def common_size(source: ImageSource, indices: range) -> tuple[int, int]:
    """Height and width of the first image that can be opened.

    Raises:
        LowbitError: none can, or the file that holds them is damaged.
    """
    for index in indices:
        try:
            width, height = source.read(index).size
        except LowbitError:
            raise
        except Exception:  # named or counted when it is decoded
            continue
        return height, width
    raise LowbitError(f"{source.where(indices[0])} and on: none of {len(indices)} images can be read")
