"""Some of many images at random, each class by its share: for validation, for a trial, for a test where there are no splits."""

from __future__ import annotations

import numpy as np

_SEED = 0
"""Of the draw. It is the same in every run, so that runs with different seeds are compared on the same images."""


def stratified(labels: np.ndarray, num_classes: int, wanted: int) -> np.ndarray:
    """So many images (int64, ascending): of each class its share, drawn at random.

    A share is the class's part of all images, rounded so that the shares add up. The draw depends on the labels and
    the number alone.
    """
    counts = np.bincount(labels, minlength=num_classes)
    shares, remainders = np.divmod(wanted * counts, len(labels))
    # The largest remainders round up; of equal ones those of the first classes.
    shares[np.argsort(-remainders, kind="stable")[: wanted - shares.sum()]] += 1
    # numpy promises that the numbers of this generator, unlike those of its newer ones, never change.
    draw = np.random.RandomState(_SEED)
    chosen = [draw.permutation(np.flatnonzero(labels == number))[:share] for number, share in enumerate(shares)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
