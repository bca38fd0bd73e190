"""Data of a user's own: a class or function, named as `package.module:name`, that gives data sets of tensors.

It returns the splits by name, `{"train": …, "test": …}` and perhaps "validation". A split is what torch calls a map-style
data set: `len(split)`, and `split[i]` is (inputs, target), or inputs alone; inputs are a tensor, or a dictionary of tensors by
the names of the arguments of the network's `forward`. lowbit makes the batches, so that what holds for images holds for it: equal
parts for all processes, every test sample once, an order that depends on seed and epoch alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate, default_convert

from lowbit.data.decode import Broken
from lowbit.data.sources import DIGITS
from lowbit.errors import LowbitError
from lowbit.inputs import Inputs, each
from lowbit.references import called, imported, is_reference

_GIVE = 'give {"train": DATA, "test": DATA}, where len(DATA) is the number of samples and DATA[i] is (inputs, target)'


class OwnSplit:
    """One split of a user's data.

    Attributes:
        split: its name.
        labels: int64 [N] where every sample has a class number that is known without reading it (a `TensorDataset`, or an
            attribute `targets` or `labels`, as torchvision's have one); else None.
        num_classes: from the data set's own `num_classes` or `classes`, or from the labels; None where none of them says it.
    """

    def __init__(self, reference: str, split: str, data: Any) -> None:
        self.reference, self.split = reference, split
        collate = default_collate
        if isinstance(data, DataLoader):
            collate = data.collate_fn or collate
            data = data.dataset
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or isinstance(data, Mapping):
            raise LowbitError(f"data {reference!r}: its split {split} is a {type(data).__name__}; {_GIVE}")
        if len(data) == 0:
            raise LowbitError(f"data {reference!r}: the split {split} holds no samples")
        self.data, self._collate = data, collate
        self.labels = _labels(data)
        if self.labels is not None and self.labels.min() < 0:
            first = int(np.flatnonzero(self.labels < 0)[0])
            raise LowbitError(f"{self.where(first)}: label {self.labels[first]}; labels must be 0 to K-1")
        names = getattr(data, "classes", None)
        self.class_names = tuple(map(str, names)) if isinstance(names, list | tuple) else None
        self.num_classes = getattr(data, "num_classes", None) or (len(self.class_names) if self.class_names else None)
        if self.num_classes is None and self.labels is not None:
            self.num_classes = int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.data)

    def where(self, index: int) -> str:
        """Where a sample is, for messages."""
        return f"{self.reference} ({self.split}) sample {index}"

    def sample(self, index: int, seed: int) -> tuple[Any, Any] | Broken:
        """(inputs, target or None) of a sample, what is random in it drawn from `seed`; `Broken` where reading it fails."""
        try:
            with _seeded(seed):
                return _pair(self.data[index])
        except Exception as error:  # of somebody else's code
            return Broken(
                f"{self.where(index)}: {type(error).__name__}: {error}",
                'leave such samples out with data.corrupt="skip"',
            )

    def collate(self, samples: list[tuple[Any, Any] | Broken]) -> tuple[Inputs | None, Any, list[Broken]]:
        """(inputs or None where all are broken, targets or None, what is broken) of a batch."""
        broken = [sample for sample in samples if isinstance(sample, Broken)]
        good = [sample for sample in samples if not isinstance(sample, Broken)]
        if not good:
            return None, None, broken
        if any(target is None for _, target in good):
            return each(_float32, self._collate([inputs for inputs, _ in good])), None, broken
        inputs, targets = self._collate(good)
        return each(_float32, inputs), each(_float32, targets), broken

    def example(self) -> tuple[Inputs, Any]:
        """A batch of one sample, the first.

        Raises:
            LowbitError: it can't be read, or is nothing that a network takes.
        """
        sample = self.sample(0, 0)
        if isinstance(sample, Broken):
            raise LowbitError(sample.message)
        try:
            inputs, targets, _ = self.collate([sample])
        except (TypeError, RuntimeError, AttributeError) as error:
            raise LowbitError(f"{self.where(0)}: can't be made a batch ({error}); {_GIVE}") from error
        tensors = inputs.values() if isinstance(inputs, Mapping) else [inputs]
        if inputs is None or not all(isinstance(x, Tensor) for x in tensors):
            raise LowbitError(f"{self.where(0)}: its inputs are neither a tensor nor tensors by name; {_GIVE}")
        return inputs, targets

    def digest(self) -> str:
        """SHA-256 of what tells one data set from another: all of it where it is in memory, else number, labels and the first and last sample."""
        found = hashlib.sha256(f"{len(self)} {self.num_classes} {self.class_names}\n".encode())
        if isinstance(self.data, TensorDataset):
            tensors: list[Any] = list(self.data.tensors)
        else:
            samples = [self.sample(index, 0) for index in {0: None, len(self) - 1: None}]
            tensors = [self.labels, *(s for sample in samples if not isinstance(sample, Broken) for s in sample)]
        for value in tensors:
            _hash(found, default_convert(value) if value is not None else value)
        return found.hexdigest()


class OwnPart(OwnSplit):
    """Some of the samples of a split, in ascending order of their indices."""

    def __init__(self, whole: OwnSplit, indices: np.ndarray) -> None:
        self.__dict__.update(vars(whole))
        self.indices = indices
        self.labels = None if whole.labels is None else whole.labels[indices]
        self._whole = whole

    def __len__(self) -> int:
        return len(self.indices)

    def where(self, index: int) -> str:
        return self._whole.where(int(self.indices[index]))

    def sample(self, index: int, seed: int) -> tuple[Any, Any] | Broken:
        return self._whole.sample(int(self.indices[index]), seed)

    def digest(self) -> str:
        return hashlib.sha256(f"{self._whole.digest()} {self.indices.tolist()}".encode()).hexdigest()


def is_own(path: str) -> bool:
    """Whether a data path names a user's own class or function."""
    return path != DIGITS and is_reference(path) and not Path(path).exists()


def open_own(reference: str) -> dict[str, OwnSplit]:
    """The splits that a user's class or function gives.

    Raises:
        LowbitError: there is no such object, it fails, or gives something else.
    """
    found = imported(reference, "data")
    if callable(found) and not isinstance(found, Mapping):
        found = called(found, reference, "data")
    if isinstance(found, tuple | list) and len(found) in (2, 3):
        found = dict(zip(("train", "test") if len(found) == 2 else ("train", "validation", "test"), found))
    if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) for name in found):
        raise LowbitError(f"data {reference!r} gives a {type(found).__name__}; {_GIVE}")
    return {name: OwnSplit(reference, name, split) for name, split in found.items()}


class OwnSamples(Dataset):
    """(index, seed) to a sample, for a torch `DataLoader`."""

    def __init__(self, source: OwnSplit) -> None:
        self._source = source

    def __getitem__(self, index: tuple[int, int]) -> tuple[Any, Any] | Broken:
        return self._source.sample(*index)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within: torch, NumPy and Python draw from `seed`; their own states are the caller's again afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _pair(sample: Any) -> tuple[Any, Any]:
    if isinstance(sample, tuple | list):
        if len(sample) == 2:
            return sample[0], sample[1]
        if len(sample) == 1:
            return sample[0], None
        raise TypeError(
            f"a sample is (inputs, target) or inputs alone, not {len(sample)} things; name inputs in a dictionary"
        )
    return sample, None


def _labels(data: Any) -> np.ndarray | None:
    if isinstance(data, TensorDataset):
        given: Any = data.tensors[-1] if len(data.tensors) == 2 else None
    else:
        given = next(
            (value for name in ("targets", "labels") if (value := getattr(data, name, None)) is not None), None
        )
    try:
        labels = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels) == len(data)
    return labels.astype(np.int64) if whole else None


def _float32(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.float64 else x


def _hash(found: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for name in sorted(value):
            _hash(found, value[name])
    elif isinstance(value, Tensor):
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        found.update(repr(value).encode() if isinstance(value, str | int | float | bool | None) else b"")
