"""Opening an encoded image, and its way to 8-bit grey or RGB; the one place that hands bytes to Pillow."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.errors import LowbitError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of the files that are images of a data set; others beside them are passed over."""
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""By content, whatever a file's name says. Pillow knows more, and starts another program for one of them (EPS)."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF's tags


def open_image(encoded: bytes | memoryview) -> Image:
    """An image of one of `FORMATS`, not decoded yet; of several frames the first.

    Raises:
        PIL.UnidentifiedImageError: it is none of them. Decoders raise many kinds of errors more.
    """
    import PIL.Image

    return PIL.Image.open(io.BytesIO(encoded), formats=FORMATS)


def to_channels(image: Image, channels: int) -> Image:
    """8-bit grey (1 channel) or RGB (3 channels). Of 16 bits the high byte is taken; transparency is dropped.

    Raises:
        ValueError: the image has numbers whose range is not known: floating point, or integers of other widths.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _high_byte(image)
    return image.convert("RGB" if channels == 3 else "L")


def _high_byte(image: Image) -> Image:
    """8-bit grey of a grey image in one of Pillow's modes for wider numbers. Pillow itself would cut them off at 255."""
    import numpy as np
    import PIL.Image

    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    # PNG and PPM have 16 bits where they have more than 8; Pillow before 11.3 has mode I for both.
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not sixteen or tags.get(_BITS_PER_SAMPLE, (16,)) != (16,) or tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        kind = "floating-point" if image.mode == "F" else f"integer ({image.mode})"
        raise ValueError(
            f"its {kind} pixels have no range that is known; write it with 8 or 16 bits unsigned, black being 0"
        )
    return PIL.Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def image_files(root: Path, classes: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """(path, class number, bytes) of every image file below `root/CLASS`, class by class, folder by folder, by name.

    Folders within a class are searched too, and links followed. A link to nothing has -1 bytes.

    Raises:
        LowbitError: a link leads to a folder above, or to one that is searched already, so that its images would count
            more than once, or in several classes; an image that is a device or a pipe; a folder that cannot be read.
    """
    try:
        found = root.resolve()
        seen = {_identity(folder): str(folder) for folder in (found, *found.parents)}
        for name in sorted(classes):
            folder = os.path.join(root, name)
            if os.path.isdir(folder):
                yield from ((path, classes[name], size) for path, size in _class_files(folder, seen))
    except OSError as error:
        raise LowbitError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from error


def _class_files(folder: str, seen: dict[tuple[int, int], str]) -> list[tuple[str, int]]:
    """(path, bytes) of the images of a class; adds the folders to those that were `seen`."""
    folders, by_folder = [folder], {}
    while folders:
        folder = folders.pop()
        before = seen.setdefault(_identity(folder), folder)
        if before != folder:
            raise LowbitError(
                f"{folder}: leads to the folder {before} again, so that its images would count more than once; take the "
                "link out of the data set"
            )
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
        folders += [entry.path for entry in entries if entry.is_dir()]
        images = [entry for entry in entries if entry.name.lower().endswith(SUFFIXES) and not entry.is_dir()]
        by_folder[folder] = [(entry.path, _size(entry)) for entry in images]
    return [file for folder in sorted(by_folder) for file in by_folder[folder]]


def _size(entry: os.DirEntry[str]) -> int:
    try:
        status = entry.stat()
    except FileNotFoundError:  # a link to nothing: as any image that cannot be read, it may be skipped
        return -1
    if not stat.S_ISREG(status.st_mode):
        raise LowbitError(f"{entry.path}: is a pipe, a device or a socket, not a file; take it out of the data set")
    return status.st_size


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
