"""What paths hold: layouts, splits, labels, and messages where they are wrong."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from tests.data.images import encoded, write_folder, write_parquet

from lowbit.data import DataConfig, open_dataset, split_loaders
from lowbit.errors import LowbitError


def pixels(source, index):
    return np.asarray(source.read(index).convert("RGB"))


def test_folder(tmp_path):
    write_folder(tmp_path, {"train": {"dog": 3, "cat": 2}, "val": {"dog": 1}})
    train = open_dataset(tmp_path, "train")
    assert train.labels.tolist() == [0, 0, 1, 1, 1] and train.labels.dtype == np.int64
    assert train.class_names == ("cat", "dog") and train.num_classes == 2
    assert train.where(0).endswith("train/cat/0.png")
    # a class that val lacks does not shift the others
    val = open_dataset(tmp_path, "test", "validation", "val")
    assert (val.split, val.labels.tolist(), val.num_classes) == ("val", [1], 2)


def test_folder_class_that_train_lacks(tmp_path):
    write_folder(tmp_path, {"train": {"cat": 1}, "test": {"cat": 1, "emu": 1}})
    with pytest.raises(LowbitError, match=r"emu: a class that .*train does not have"):
        open_dataset(tmp_path, "test")


@pytest.mark.parametrize("below", ["", "data"])
@pytest.mark.parametrize("column", ["img", "image"])
def test_parquet_shards(tmp_path, below, column):
    folder = tmp_path / below
    images = [encoded(i) for i in range(10)]
    write_parquet(folder / "train-00000-of-00002.parquet", images[:6], range(6), column=column, row_group_size=4)
    write_parquet(folder / "train-00001-of-00002.parquet", images[6:], range(6, 10), column=column, row_group_size=3)
    source = open_dataset(tmp_path, "train")
    assert source.labels.tolist() == list(range(10)) and source.class_names is None and source.num_classes == 10
    for index in np.random.default_rng(0).permutation(10):
        assert (pixels(source, index) == index * 20).all()
    assert source.where(7).endswith("train-00001-of-00002.parquet row 1")
    copy = pickle.loads(pickle.dumps(source))  # as a worker process that is not forked gets it
    assert (pixels(copy, 9) == 180).all()


def test_parquet_reads_each_row_group_once_in_order(tmp_path, monkeypatch):
    import pyarrow.parquet

    write_parquet(tmp_path / "test.parquet", [encoded(0)] * 40, [0] * 40, row_group_size=8)
    source = open_dataset(tmp_path, "test")
    reads = []
    original = pyarrow.parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile, "read_row_group", lambda *a, **k: (reads.append(a[1]), original(*a, **k))[1]
    )
    for index in range(40):
        source.read(index)
    assert reads == [0, 1, 2, 3, 4]


def test_class_names_of_the_hub(tmp_path):
    write_parquet(tmp_path / "train.parquet", [encoded(0)], [1], class_names=["cat", "dog", "emu"])
    source = open_dataset(tmp_path, "train")
    assert source.class_names == ("cat", "dog", "emu") and source.num_classes == 3
    assert source.missing_label == 0


def test_given_cifar(shared_data):
    source = open_dataset(shared_data / "cifar10-jpeg", "test")
    assert len(source) == 10_000 and np.bincount(source.labels).tolist() == [1000] * 10
    assert pixels(source, 9999).shape == (32, 32, 3)


def test_digits():
    train, test = open_dataset("sklearn:digits", "train"), open_dataset("sklearn:digits", "test")
    assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
    assert abs(np.bincount(train.labels) / 4 - np.bincount(test.labels)).max() < 1.5  # a fifth of each class
    everything = np.stack([np.asarray(s.read(i)) for s in (train, test) for i in range(len(s))])
    assert everything.shape == (1797, 8, 8) and everything.dtype == np.uint8
    assert everything.min() == 0 and everything.max() == 255
    from sklearn.datasets import load_digits

    original = np.rint(load_digits().images * 255 / 16).sum(axis=(1, 2))
    assert sorted(everything.sum(axis=(1, 2)).tolist()) == sorted(original.tolist())  # each one, once
    assert int(test.where(0).split()[-1]) == np.flatnonzero(original == np.asarray(test.read(0)).sum())[0]


def test_paths_that_hold_nothing(tmp_path):
    with pytest.raises(LowbitError, match="nowhere does not exist"):
        open_dataset(tmp_path / "nowhere", "train")
    with pytest.raises(LowbitError, match=r"no data set found; expected .*train/<class>"):
        open_dataset(tmp_path, "train")
    (tmp_path / "file").write_text("")
    with pytest.raises(LowbitError, match="is a file, not a folder"):
        open_dataset(tmp_path / "file", "train")
    with pytest.raises(LowbitError, match="no split validation; there is train, test"):
        open_dataset("sklearn:digits", "validation")


def test_splits_that_are_missing(tmp_path):
    write_folder(tmp_path / "folder", {"train": {"cat": 1}})
    with pytest.raises(LowbitError, match="no split test or val; there is train"):
        open_dataset(tmp_path / "folder", "test", "val")
    write_parquet(tmp_path / "parquet" / "train-00000-of-00003.parquet", [encoded(0)], [0])
    with pytest.raises(LowbitError, match="1 files of the split train, but their names count 3"):
        open_dataset(tmp_path / "parquet", "train")


def test_a_folder_without_splits_is_divided(tmp_path):
    """Into every image once, a fifth of each class for the test; where the folder lies makes no difference."""
    for place in ("a", "b"):
        write_folder(tmp_path, {place: {"cat": 10, "dog": 5, "emu": 6}})
    train, test = (open_dataset(tmp_path / "a", split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog", "emu")
    assert np.bincount(test.labels).tolist() == [2, 1, 1] and np.bincount(train.labels).tolist() == [8, 4, 5]
    files = [source.where(i) for source in (train, test) for i in range(len(source))]
    assert sorted(files) == sorted(map(str, (tmp_path / "a").glob("*/*.png")))
    elsewhere = open_dataset(tmp_path / "b", "test")
    assert elsewhere.digest() == test.digest() != train.digest()
    splits = split_loaders(DataConfig(path=str(tmp_path / "a"), batch_size=2, validation=3))
    assert [each.num_images for each in (splits.train, splits.validation, splits.test)] == [14, 3, 4]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"cat": 9, "dog": 4}, "dog: 4 images, and the data set is not divided: give at least 5"),
        ({"cat": 9, "notes": 0}, "notes: 0 images"),
        ({"train": 9, "test": 9}, "no data set found"),  # splits without classes
    ],
)
def test_folders_that_cannot_be_divided(classes, message, tmp_path):
    write_folder(tmp_path, {"data": classes})
    with pytest.raises(LowbitError, match=message):
        open_dataset(tmp_path / "data", "train")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1], r"test\.parquet row 1: label -1.*choose another split"),
        ([0.0, 1.0], "column label is double"),
        (["a", "b"], "column label is string"),
        ([0, None], "1 empty rows"),
        ([], "holds no images"),
    ],
)
def test_labels_that_are_not(tmp_path, labels, message):
    write_parquet(tmp_path / "test.parquet", [encoded(0)] * len(labels), labels)
    with pytest.raises(LowbitError, match=message):
        open_dataset(tmp_path, "test")


def test_label_beyond_the_class_names(tmp_path):
    write_parquet(tmp_path / "train.parquet", [encoded(0)] * 2, [0, 2], class_names=["cat", "dog"])
    with pytest.raises(LowbitError, match="row 1: label 2, but there are 2 class names"):
        open_dataset(tmp_path, "train")


def test_parquet_of_something_else(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "train.parquet"
    for table, message in [
        (pa.table({"text": ["a"], "label": [0]}), "no column img or image; it has text, label"),
        (pa.table({"image": ["a"], "label": [0]}), "column image is string, expected a struct"),
        (pa.table({"image": [{"bytes": b"", "path": ""}]}), "no column label or fine_label"),
    ]:
        pq.write_table(table, path)
        with pytest.raises(LowbitError, match=message):
            open_dataset(tmp_path, "train")
    path.write_bytes(b"not parquet")
    with pytest.raises(LowbitError, match=r"train\.parquet: not a readable parquet file"):
        open_dataset(tmp_path, "train")


def test_row_groups_are_read_once_where_they_fit_and_few_are_kept_where_not(tmp_path, monkeypatch):
    write_parquet(tmp_path / "train.parquet", [encoded(i % 10) for i in range(60)], [i % 2 for i in range(60)])
    source = open_dataset(tmp_path, "train")
    reads = []
    real = source._read_row_group
    monkeypatch.setattr(source, "_read_row_group", lambda group: reads.append(group) or real(group))
    order = np.random.default_rng(0).permutation(60)
    for index in order:
        source.read(int(index))
    assert sorted(reads) == list(range(15))  # of four rows
    source.__dict__.pop("_kept")
    monkeypatch.setattr(type(source), "_KEPT_BYTES", 1)
    reads.clear()
    for index in order:
        source.read(int(index))
    assert 30 < len(reads) <= 60 and len(source._kept._results) == 4
