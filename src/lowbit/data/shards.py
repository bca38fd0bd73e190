"""Shards: tar files of images and labels in the webdataset layout, read in order from wherever fsspec can open a file.

A sample is the consecutive members of one name up to the first dot: `000017.jpg` and `000017.cls`, its label as a decimal
number; other members (`000017.json`) are passed over. An index beside the shards, `_info.json` as the hub's data sets of
this kind have it, tells how many images each shard holds, so that an epoch can be shared out before a shard is opened:

    {"splits": {"train": {"filenames": ["train-000000.tar", …], "shard_lengths": [1251, …]}, …}, "num_classes": 1000}
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from lowbit.errors import LowbitError
from lowbit.files import atomic_write, check_readable

INDEX = "_info.json"
SPLITS = ("train", "test", "validation", "val")
_IMAGE_TYPES = ("jpg", "jpeg", "png", "webp")
_READ_BYTES = 2**20  # at a time; tarfile's own 10 kB make many small requests
_TRIES = 3  # of a read over the network
_MOST_BYTES = 2**28  # of a member; an encoded image has some kilobytes
_MOST_IMAGES = 2**40  # of a split


@dataclass(frozen=True)
class Shards:
    """The shards of one split, in order, and how many images each holds."""

    split: str
    folder: str
    names: tuple[str, ...]
    lengths: tuple[int, ...]
    num_classes: int

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(f"{self.folder}/{name}" for name in self.names)

    def __len__(self) -> int:
        return sum(self.lengths)

    def digest(self) -> str:
        """SHA-256 of the shards' names, lengths and, on a local disk, sizes, and of the number of classes."""
        sizes = [] if "://" in self.folder else [os.stat(url).st_size for url in self.urls]
        return hashlib.sha256(json.dumps([self.names, self.lengths, sizes, self.num_classes]).encode()).hexdigest()


@dataclass(frozen=True)
class Sample:
    """A sample as it is stored: its name, and the bytes of its image and of its label (None where there is none)."""

    name: str
    image: bytes | None
    label: bytes | None

    def class_number(self) -> int:
        """The label. Raises ValueError, saying what is wrong."""
        if self.label is None:
            raise ValueError("has no label (a member .cls beside the image)")
        text = self.label.decode("ascii", "replace").strip()
        if not text.isdecimal():
            raise ValueError(f"has the label {text[:40]!r}, expected a number from 0")
        return int(text)


def holds_shards(path: str) -> bool:
    """Whether a data path is to be read as shards: a URL, or a folder with an index or tar files."""
    if "://" in path:
        return True
    folder = Path(path)
    return folder.is_dir() and ((folder / INDEX).is_file() or bool(_tar_files(folder)))


def open_shards(path: str, *splits: str, num_classes: int | None = None) -> Shards:
    """The first of `splits` that the index of `path` has; reads the index and no shard.

    Args:
        path: a folder, or the URL of one (`https://…`, `s3://…`, `hf://datasets/…`).
        num_classes: overrides what the index says.

    Raises:
        LowbitError: no index, or one that is not as described above; none of the splits; a split without images; an
            index that says nothing of classes where `num_classes` is not given.
    """
    where = f"{path.rstrip('/')}/{INDEX}"
    index = _read_index(path, where)
    if not (isinstance(index, dict) and isinstance(index.get("splits"), dict)):
        raise LowbitError(f'{where}: has no "splits"; rewrite it with lowbit.data.index_shards')
    present = index["splits"]
    split = next((name for name in splits if name in present), None)
    if split is None:
        raise LowbitError(f"{where}: no split {' or '.join(splits)}; there is {', '.join(present)}")
    try:
        names = tuple(map(str, present[split]["filenames"]))
        lengths = tuple(map(int, present[split]["shard_lengths"]))
        classes = int(num_classes or index.get("num_classes") or 0)
    except (KeyError, TypeError, ValueError) as error:
        raise LowbitError(
            f'{where}: the split {split} has no usable "filenames" and "shard_lengths" ({error!r}); rewrite the index '
            "with lowbit.data.index_shards"
        ) from error
    if len(names) != len(lengths) or min(lengths, default=0) < 0:
        raise LowbitError(
            f"{where}: the split {split} has {len(names)} filenames and the shard_lengths {lengths[:3]}…: one count for each"
        )
    strange = next((name for name in names if "://" in name or "::" in name or ".." in name.split("/")), None)
    if strange is not None:
        raise LowbitError(f"{where}: the split {split} names {strange[:200]!r}, which is not a file of this folder")
    if sum(lengths) > _MOST_IMAGES:
        raise LowbitError(
            f"{where}: the split {split} counts {sum(lengths)} images: rewrite the index with lowbit.data.index_shards"
        )
    if sum(lengths) == 0:
        raise LowbitError(f"{where}: the split {split} holds no images")
    if classes < 1:
        raise LowbitError(f'{where}: does not say how many classes there are ("num_classes"): give data.num_classes')
    shards = Shards(split, path.rstrip("/"), names, lengths, classes)
    for url in () if "://" in path else shards.urls:
        check_readable(url)
    return shards


def read_rows(url: str, first: int, last: int, length: int | None = None) -> Iterator[Sample]:
    """Samples `first` to `last` (exclusive) of a shard. What lies before is read over, not decoded.

    Args:
        length: how many there are in all, by the index; not looked at if None.

    Raises:
        LowbitError: the shard cannot be read (over the network: not at the third try), ends before `last`, holds more than
            `length` samples, or something that no shard of images holds.
    """
    row, failures = first, 0
    while row < last:
        try:
            for sample in _samples(url, row, last, length):
                row, failures = row + 1, 0
                yield sample
            return
        except LowbitError:
            raise
        except Exception as error:  # each file system and each compression raises its own kinds
            failures += 1
            if "://" not in url or failures == _TRIES or isinstance(error, FileNotFoundError):
                raise LowbitError(f"{url}: cannot be read at image {row} ({type(error).__name__}: {error})") from error
            time.sleep(2**failures)


def index_shards(folder: str | os.PathLike) -> Path:
    """Read all shards of a local folder once, check their labels, and write the index; returns its path.

    A shard belongs to the split (train, test, validation or val) that its folder or a part of its name says:
    `train/000.tar`, `imagenet-train-000.tar`.

    Raises:
        LowbitError: no shards, a shard of no split, an unreadable one, a sample without image or label, labels of the
            training split that are not 0 to K-1, each on some image.
    """
    folder = Path(folder)
    files = _tar_files(folder)
    if not files:
        raise LowbitError(f"{folder}: no tar files are there")
    splits: dict[str, dict] = {}
    labels: dict[str, set[int]] = {}
    for file in files:
        name = file.relative_to(folder).as_posix()
        split = next((part for part in re.split(r"[^a-zA-Z]+", name) if part in SPLITS), None)
        if split is None:
            raise LowbitError(f"{file}: neither its folder nor its name says which split it is ({', '.join(SPLITS)})")
        entry = splits.setdefault(split, {"name": split, "num_samples": 0, "filenames": [], "shard_lengths": []})
        found = _shard_labels(file)
        labels.setdefault(split, set()).update(found)
        entry["filenames"].append(name)
        entry["shard_lengths"].append(len(found))
        entry["num_samples"] += len(found)
    num_classes = max(labels.get("train") or set().union(*labels.values()), default=-1) + 1
    absent = np.setdiff1d(np.arange(num_classes), list(labels.get("train", range(num_classes))))
    if len(absent):
        raise LowbitError(
            f"{folder}: labels of a training split must be 0 to K-1, each on some image, but no image has {absent[0]} "
            f"while the largest is {num_classes - 1}"
        )
    for split, found in labels.items():
        if max(found, default=0) >= num_classes:
            raise LowbitError(
                f"{folder}: the split {split} has the label {max(found)}, but train has {num_classes} classes"
            )
    with atomic_write(folder / INDEX) as temporary:
        temporary.write_text(json.dumps({"splits": splits, "num_classes": num_classes}, indent=1) + "\n")
    return folder / INDEX


def _tar_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.tar"), *folder.glob("*/*.tar")])


def _opened(url: str, mode: str) -> AbstractContextManager[IO[Any]]:
    """A file, wherever fsspec can open it."""
    import fsspec

    opened: Any = fsspec.open(url, mode)  # fsspec has no annotations
    return opened


def _read_index(path: str, where: str) -> object:
    if "://" not in path and Path(where).exists():
        check_readable(where)
    try:
        with _opened(where, "rt") as file:
            return json.load(file)
    except FileNotFoundError as error:
        way_out = f"write it with lowbit.data.index_shards({path!r})" if "://" not in path else "put one there"
        raise LowbitError(f"{where}: not there, so the images of the shards are not counted: {way_out}") from error
    except ImportError as error:
        raise LowbitError(f"{where}: {error}; for http(s): pip install 'lowbit[stream]'") from error
    except Exception as error:
        raise LowbitError(f"{where}: cannot be read ({type(error).__name__}: {error})") from error


def _samples(url: str, first: int, last: int | None = None, length: int | None = None) -> Iterator[Sample]:
    """Samples `first` to `last` of a shard, or up to its end. Raises LowbitError as `read_rows` does, and others."""
    with (
        _opened(url, "rb") as file,
        tarfile.open(fileobj=file, mode="r|*", bufsize=_READ_BYTES, tarinfo=_Member) as tar,
    ):
        name: tuple[str, str] | None = None
        row, parts = -1, {}
        for member in tar:
            if not member.isfile():
                continue
            if not 0 <= member.size <= _MOST_BYTES:  # a sparse one takes no room in the file
                raise LowbitError(
                    f"{url} {member.name}: {member.size:,} bytes, more than the {_MOST_BYTES:,} that a member of a shard may have"
                )
            folder, _, file_name = member.name.rpartition("/")
            stem, _, kind = file_name.partition(".")
            if (folder, stem) != name:
                if row + 1 == length:
                    raise LowbitError(
                        f"{url}: holds more images than the {length} that the index counts: rewrite the index with "
                        "lowbit.data.index_shards"
                    )
                if name is not None and row >= first:
                    yield _sample(name, parts)
                name, row, parts = (folder, stem), row + 1, {}
                if row == last:
                    return
            if row >= first and kind.lower() in (*_IMAGE_TYPES, "cls"):
                stored = tar.extractfile(member)
                assert stored is not None  # of a file it never is
                parts[kind.lower()] = stored.read()
        if last is not None and row + 1 < last:
            raise LowbitError(
                f"{url}: ends after {row + 1} images, but the index counts {length or last}: fetch it again, or rewrite the "
                "index with lowbit.data.index_shards"
            )
        if name is not None and row >= first:
            yield _sample(name, parts)


class _Member(tarfile.TarInfo):
    """A header, without the long ones in which a file may hide gigabytes that are read at once."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if not member.isreg() and not 0 <= member.size <= _READ_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def _sample(name: tuple[str, str], parts: dict[str, bytes]) -> Sample:
    image = next((parts[kind] for kind in _IMAGE_TYPES if kind in parts), None)
    return Sample("/".join(filter(None, name)), image, parts.get("cls"))


def _shard_labels(file: Path) -> list[int]:
    """The label of every sample of a local shard."""
    labels = []
    try:
        for sample in _samples(str(file), 0):
            if sample.image is None:
                raise LowbitError(f"{file} {sample.name}: has no image (a member {', '.join(_IMAGE_TYPES)})")
            try:
                labels.append(sample.class_number())
            except ValueError as error:
                raise LowbitError(f"{file} {sample.name}: {error}") from error
    except LowbitError:
        raise
    except Exception as error:  # each compression raises its own kinds
        raise LowbitError(f"{file}: not a readable tar file ({error})") from error
    return labels
