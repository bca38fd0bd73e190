"""What a data path holds: labels at once, images one by one, and where each one is for messages."""

from __future__ import annotations

import abc
import hashlib
import json
import os
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.data.draw import stratified
from lowbit.data.images import image_files, open_image
from lowbit.errors import LowbitError
from lowbit.files import check_place, check_readable

if TYPE_CHECKING:
    from PIL.Image import Image

DIGITS = "sklearn:digits"
_IMAGE_COLUMNS = ("img", "image")
_SPLITS = ("train", "test", "validation", "val")
_ENOUGH = 5  # images of a class that can be divided
_LABEL_COLUMNS = ("label", "fine_label")


class ImageSource(abc.ABC):
    """Labelled images of one split.

    Attributes:
        split: its name.
        labels: int64 [N].
        class_names: one name per label, or None where there are only numbers.
        num_classes: labels are below it.
    """

    def __init__(self, split: str, labels: np.ndarray, class_names: tuple[str, ...] | None) -> None:
        self.split = split
        self.labels = labels
        self.class_names = class_names
        if len(labels) == 0:
            raise LowbitError(f"{self.where(0)}: the split {split} holds no images")
        negative = np.flatnonzero(labels < 0)
        if len(negative):
            raise LowbitError(
                f"{self.where(int(negative[0]))}: label {labels[negative[0]]}; labels must be 0 to K-1 "
                f"(a split without labels, as ImageNet's test, cannot be used: choose another split)"
            )
        if class_names is not None and labels.max() >= len(class_names):
            first = int(np.flatnonzero(labels >= len(class_names))[0])
            raise LowbitError(
                f"{self.where(first)}: label {labels[first]}, but there are {len(class_names)} class names"
            )
        self.num_classes = len(class_names) if class_names is not None else int(labels.max()) + 1

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def missing_label(self) -> int | None:
        """The smallest label that no image has, or None."""
        present = np.unique(self.labels)  # not one count for every class: a wrong label may be enormous
        if len(present) == self.num_classes:
            return None
        shifted = np.flatnonzero(present != np.arange(len(present)))
        return int(shifted[0]) if len(shifted) else len(present)

    @abc.abstractmethod
    def listing(self) -> Iterator[str]:
        """The files by name and size, in order; equal of two data sets that a run may take for one, wherever they are."""

    def digest(self) -> str:
        """SHA-256 of the listing, the labels and the class names."""
        found = hashlib.sha256(f"{self.num_classes} {self.class_names}\n".encode(errors="surrogateescape"))
        for line in self.listing():
            found.update(f"{line}\n".encode(errors="surrogateescape"))
        found.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        return found.hexdigest()

    @abc.abstractmethod
    def where(self, index: int) -> str:
        """Where an image is: a file, or a file and a row."""

    @abc.abstractmethod
    def read(self, index: int) -> Image:
        """The image, possibly not decoded yet. Raises what its decoder raises."""


def open_dataset(path: str | os.PathLike, *splits: str, train_split: str = "train") -> ImageSource:
    """Open the first of `splits` that exists under `path`.

    A path is one of
    - a folder with `<split>/<class>/*.jpg` (or any image type); the classes of `train_split` number all splits,
      where it is there;
    - a folder with `<class>/*.jpg`, without splits: a fifth of each class, the same in every run, is the split test, and
      the rest is train;
    - a folder with `<split>.parquet`, or shards `<split>-*.parquet`, also under `data/`: the layout of the Hugging
      Face hub, with a column `img` or `image` of {bytes, path} and an integer column `label` (or `fine_label`);
    - `sklearn:digits`: the 1797 UCI digits of 8x8 grey pixels, a fixed fifth of each class for test.

    Opening reads labels, not images.

    Raises:
        LowbitError: the path does not exist, has none of these layouts or none of the splits; a column is missing;
            labels are not integers from 0.
    """
    if str(path) == DIGITS:
        found = _first(splits, {"train": None, "test": None}, DIGITS)
        return DigitsSource(found)
    folder = Path(path)
    check_place(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise LowbitError(f"data path {folder} {what}: give a folder of images or parquet files, or {DIGITS}")
    parquet = _parquet_splits(folder)
    if parquet:
        found = _first(splits, parquet, folder)
        return ParquetSource(parquet[found], found)
    folders = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and any(c.is_dir() for c in p.iterdir())}
    if not folders:
        classes = {p.name for p in folder.iterdir() if p.is_dir()}
        if not classes or classes & {train_split, *_SPLITS}:  # splits without classes are not classes
            raise LowbitError(
                f"{folder}: no data set found; expected {folder}/train/<class>/<image files>, {folder}/<class>/<image "
                f"files>, {folder}/train*.parquet or {folder}/data/train*.parquet"
            )
        return FolderSource(folder, _first(splits, {"train": None, "test": None}, folder), divide=True)
    found = _first(splits, folders, folder)
    return FolderSource(folders[found], found, classes_from=folders.get(train_split))


def _first(wanted: tuple[str, ...], present: dict[str, Any], where: object) -> str:
    for split in wanted:
        if split in present:
            return split
    raise LowbitError(f"{where}: no split {' or '.join(wanted)}; there is {', '.join(present)}")


def _parquet_splits(folder: Path) -> dict[str, list[Path]]:
    """Files of each split, by the names `train.parquet`, `train-00000-of-00005.parquet`, here or in `data/`."""
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet")):
        split = re.split(r"[-.]", file.name)[0]
        splits.setdefault(split, []).append(file)
    for split, files in splits.items():
        counts = {int(m[1]) for file in files if (m := re.search(r"-of-(\d+)", file.name))}
        if counts and counts != {len(files)}:
            raise LowbitError(
                f"{files[0].parent}: {len(files)} files of the split {split}, but their names count {max(counts)}: "
                "fetch the missing ones"
            )
    return splits


class FolderSource(ImageSource):
    """`root/<class>/<image file>`; classes are the sorted folder names of `classes_from`, by default of `root`.

    With `divide` the folder has no splits: "test" is a fifth of each class, drawn by `stratified`, and any other the rest.
    """

    def __init__(self, root: Path, split: str, *, classes_from: Path | None = None, divide: bool = False) -> None:
        classes_from = classes_from or root
        names = tuple(sorted(p.name for p in classes_from.iterdir() if p.is_dir()))
        strangers = sorted({p.name for p in root.iterdir() if p.is_dir()} - set(names))
        if strangers:
            raise LowbitError(f"{root / strangers[0]}: a class that {classes_from} does not have")
        self._root = root
        numbers = {name: number for number, name in enumerate(names)}
        found = list(image_files(root, numbers))
        if divide:
            labels = np.array([label for _, label, _ in found], dtype=np.int64)
            chosen = set(_fifth(root, labels, names).tolist())
            found = [each for i, each in enumerate(found) if (i in chosen) == (split == "test")]
        self._files = [file for file, _, _ in found]
        self._sizes = [size for _, _, size in found]
        super().__init__(split, np.array([label for _, label, _ in found], dtype=np.int64), names)

    def where(self, index: int) -> str:
        return self._files[index] if self._files else str(self._root)

    def read(self, index: int) -> Image:
        return open_image(Path(self._files[index]).read_bytes())

    def listing(self) -> Iterator[str]:
        start = len(str(self._root)) + 1
        for file, size in zip(self._files, self._sizes):
            yield f"{file[start:].replace(os.sep, '/')} {size}"


def _fifth(root: Path, labels: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """The images to test on, of a folder without splits: a fifth, of each class its share, and one at least."""
    counts = np.bincount(labels, minlength=len(names))
    if counts.min(initial=_ENOUGH) < _ENOUGH:
        raise LowbitError(
            f"{root / names[int(counts.argmin())]}: {counts.min()} images, and the data set is not divided: give at least "
            f"{_ENOUGH}, of which a fifth is held out for the test, or make folders {root / 'train'} and {root / 'test'}"
        )
    return stratified(labels, len(names), len(labels) // 5)


class ParquetSource(ImageSource):
    """Parquet files in the hub's layout.

    Files are memory-mapped and read one row group at a time. The last of them are kept, 256 MiB in each process: a split of
    no more is read once, and so is any split in order. At random, a larger one costs a row group for nearly every image.
    """

    _KEPT_BYTES = 2**28

    def __init__(self, files: list[Path], split: str) -> None:
        import pyarrow as pa

        self._files = files
        self._starts = [0]  # the first row of each row group over all files, and the end
        self._row_groups: list[tuple[int, int]] = []  # file, row group within it
        self._file_starts = []
        labels = []
        names: tuple[str, ...] | None = None
        for number, file in enumerate(files):
            with self._open(number) as parquet:
                schema = parquet.schema_arrow
                self._image_column = _column(schema.names, _IMAGE_COLUMNS, file)
                label_column = _column(schema.names, _LABEL_COLUMNS, file)
                names = names or _hub_class_names(schema.metadata, label_column)
                image_type = schema.field(self._image_column).type
                if not (pa.types.is_struct(image_type) and image_type.get_field_index("bytes") >= 0):
                    raise LowbitError(
                        f"{file}: column {self._image_column} is {image_type}, expected a struct of bytes and path"
                    )
                column = self._column(number, parquet, label_column)
                if not pa.types.is_integer(column.type) or column.null_count:
                    raise LowbitError(
                        f"{file}: column {label_column} is {column.type} with {column.null_count} empty rows; "
                        "labels must be integers 0 to K-1, one on every row"
                    )
                labels.append(column.to_numpy().astype(np.int64))
                self._file_starts.append(self._starts[-1])
                for group in range(parquet.num_row_groups):
                    self._row_groups.append((number, group))
                    self._starts.append(self._starts[-1] + parquet.metadata.row_group(group).num_rows)
        super().__init__(split, np.concatenate(labels), names)

    def _column(self, file: int, parquet: Any, name: str) -> Any:
        with self._readable(file):
            return parquet.read(columns=[name], use_threads=False)[name]

    def listing(self) -> Iterator[str]:
        for file in self._files:
            yield f"{file.name} {file.stat().st_size}"

    def where(self, index: int) -> str:
        file = bisect_right(self._file_starts, index) - 1
        return f"{self._files[file]} row {index - self._file_starts[file]}"

    def read(self, index: int) -> Image:
        group = bisect_right(self._starts, index) - 1
        scalar = self._kept(group)[index - self._starts[group]]
        if not scalar.is_valid:
            raise ValueError("the row has no image bytes")
        return open_image(scalar.as_buffer())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    @cached_property
    def _kept(self) -> _MostRecent:
        return _MostRecent(self._read_row_group, self._KEPT_BYTES)

    def _read_row_group(self, group: int) -> Any:
        file, within = self._row_groups[group]
        with self._open(file) as parquet, self._readable(file):
            # Only the bytes of the struct; threads of arrow's own do not survive the fork of a worker process.
            table = parquet.read_row_group(within, columns=[f"{self._image_column}.bytes"], use_threads=False)
        return table[self._image_column].combine_chunks().field("bytes")

    def _open(self, file: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet

        check_readable(self._files[file])
        with self._readable(file):
            return pa.parquet.ParquetFile(self._files[file], memory_map=True, page_checksum_verification=True)

    @contextmanager
    def _readable(self, file: int) -> Iterator[None]:
        """Within: what arrow finds wrong with a file is a LowbitError."""
        import pyarrow as pa

        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise LowbitError(f"{self._files[file]}: not a readable parquet file ({error}); fetch it again") from error


class DigitsSource(ImageSource):
    """scikit-learn's UCI digits, pixel values 0..16 scaled to 0..255."""

    def __init__(self, split: str) -> None:
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ModuleNotFoundError as error:
            raise LowbitError(f"{DIGITS} needs scikit-learn: pip install 'lowbit[demo]'") from error
        digits: Any = load_digits()  # a Bunch; scikit-learn has no annotations
        rows = train_test_split(
            np.arange(len(digits.target)), test_size=0.2, random_state=0, shuffle=True, stratify=digits.target
        )
        self._rows = np.sort(rows[0] if split == "train" else rows[1])
        self._images = np.rint(digits.images[self._rows] * (255 / 16)).astype(np.uint8)
        super().__init__(split, digits.target[self._rows].astype(np.int64), tuple("0123456789"))

    def where(self, index: int) -> str:
        return f"{DIGITS} image {self._rows[index]}"

    def listing(self) -> Iterator[str]:
        yield hashlib.sha256(self._images.tobytes()).hexdigest()

    def read(self, index: int) -> Image:
        import PIL.Image

        return PIL.Image.fromarray(self._images[index])


class _MostRecent:
    """The last results of a function, shared by threads; each is computed once while it is kept.

    They are arrow arrays, of so many bytes in all, but four at least.
    """

    def __init__(self, function: Callable[[int], Any], size: int) -> None:
        self._function = function
        self._size, self._bytes = size, 0
        self._results: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: int) -> Any:
        with self._lock:
            if key not in self._results:
                self._results[key] = self._function(key)
                self._bytes += self._results[key].nbytes
                while self._bytes > self._size and len(self._results) > 4:
                    _, oldest = self._results.popitem(last=False)
                    self._bytes -= oldest.nbytes
            self._results.move_to_end(key)
            return self._results[key]


def _column(names: list[str], wanted: tuple[str, ...], file: Path) -> str:
    for name in wanted:
        if name in names:
            return name
    raise LowbitError(f"{file}: no column {' or '.join(wanted)}; it has {', '.join(names)}")


def _hub_class_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """The class names that the hub's `datasets` library writes into a parquet file's schema, if they are there."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if names else None
