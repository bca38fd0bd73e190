"""A class-balanced part of the training images: held out to make choices by, or all that is trained on in a trial."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from lowbit.data.draw import stratified
from lowbit.data.own import OwnPart, OwnSplit
from lowbit.data.sources import ImageSource
from lowbit.errors import LowbitError

if TYPE_CHECKING:
    from PIL.Image import Image


class Part(ImageSource):
    """Some of the images of a source.

    Args:
        source: where the images are.
        indices: int64 [n], which of them, in ascending order.
    """

    def __init__(self, source: ImageSource, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices
        super().__init__(source.split, source.labels[indices], source.class_names)
        self.num_classes = source.num_classes

    def where(self, index: int) -> str:
        return self._source.where(int(self._indices[index]))

    def read(self, index: int) -> Image:
        return self._source.read(int(self._indices[index]))

    def listing(self) -> Iterator[str]:
        yield from self._source.listing()
        yield str(self._indices.tolist())


Whole = ImageSource | OwnSplit


def part(source: Whole, indices: np.ndarray) -> Part | OwnPart:
    """Some of the samples of a source, by their indices in ascending order."""
    return Part(source, indices) if isinstance(source, ImageSource) else OwnPart(source, indices)


def _drawn_by(source: Whole) -> tuple[np.ndarray, int]:
    """The labels whose classes each give a share, and how many there are; one class where labels aren't known."""
    if source.labels is None:
        return np.zeros(len(source), dtype=np.int64), 1
    return source.labels, source.num_classes or int(source.labels.max()) + 1


def hold_out(source: Whole, wanted: int) -> tuple[Part | OwnPart, Part | OwnPart]:
    """Divide a training split into (images to train on, images held out).

    Args:
        source: the training split; every class has an image.
        wanted: how many images to hold out.

    Raises:
        LowbitError: fewer images than classes would be held out, or all images of a class.
    """
    labels, classes = _drawn_by(source)
    chosen = held_out_indices(labels, classes, wanted)
    rest = np.setdiff1d(np.arange(len(source)), chosen, assume_unique=True)
    counts = np.bincount(labels[rest], minlength=classes)
    if not counts.all():
        number = int(np.flatnonzero(counts == 0)[0])
        name = f" ({source.class_names[number]})" if source.class_names else ""
        raise LowbitError(
            f"data.validation: {wanted} images held out leave none of class {number}{name} to train on: hold out fewer"
        )
    return part(source, rest), part(source, chosen)


def held_out_indices(labels: np.ndarray, num_classes: int, wanted: int) -> np.ndarray:
    """The images to hold out (int64, ascending), as `stratified` draws them.

    Raises:
        LowbitError: fewer images than classes, or more than there are.
    """
    total = len(labels)
    if not num_classes <= wanted < total:
        raise LowbitError(
            f"data.validation holds out {wanted} of {total} training images: hold out at least as many as "
            f"there are classes ({num_classes}), and leave some to train on"
        )
    return stratified(labels, num_classes, wanted)


def limited(source: Whole, limit: int | None) -> Whole:
    """`limit` images of a source, as `stratified` draws them; all of them where it has no more, or without a limit."""
    if limit is None or limit >= len(source):
        return source
    labels, classes = _drawn_by(source)
    return part(source, stratified(labels, classes, limit))
