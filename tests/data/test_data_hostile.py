"""Shards and parquet files that somebody damaged, or made to do harm: refused in words, with bounded memory."""

from __future__ import annotations

import gzip
import json
import os
import random
import tarfile
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.data.images import encoded, write_parquet
from tests.data.shards import broken_shard, config_of, digit_files, write_index

from lowbit.data import DataConfig, eval_loader, index_shards, loaders, open_dataset
from lowbit.errors import LowbitError


@pytest.fixture(scope="module")
def files():
    return digit_files()[:20]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_index_that_counts_too_few_images_does_not_drop_the_rest(tmp_path, files, workers):
    broken_shard(tmp_path, files)
    write_index(tmp_path, {"test": (9,)}, num_classes=10)
    with pytest.raises(LowbitError, match=r"test-000000\.tar: holds more images than the 9 that the index counts"):
        list(eval_loader(config_of(tmp_path, workers=workers, corrupt="skip")))


@pytest.mark.parametrize("images", [10**9, 2**40])
def test_an_index_that_counts_a_billion_images_too_many(tmp_path, files, images):
    broken_shard(tmp_path, files)
    write_index(tmp_path, {"test": (images,)}, num_classes=10)
    tracemalloc.start()
    try:
        loader = eval_loader(config_of(tmp_path))
        with pytest.raises(LowbitError, match=f"ends after 10 images, but the index counts {images}"):
            next(iter(loader))
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    write_index(tmp_path, {"test": (images * 10**6,)}, num_classes=10)
    with pytest.raises(LowbitError, match="rewrite the index"):
        eval_loader(config_of(tmp_path))


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar header."""
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    return made.tobuf(tarfile.GNU_FORMAT)


SPARSE = bytearray(member("images/000000.png", 512, tarfile.GNUTYPE_SPARSE))
"""6 GB of which the file has half a kilobyte."""
SPARSE[386:410] = b"%011o\0%011o\0" % (0, 512)
SPARSE[483:495] = b"%011o\0" % (6 * 10**9)
SPARSE[148:156] = b"        "
SPARSE[148:156] = b"%06o\0 " % sum(SPARSE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (member("images/000000.png", 6 * 10**9), "000000.png: 6,000,000,000 bytes, more than the 268,435,456"),
        (member("images/000000.json", 6 * 10**9), "000000.json: 6,000,000,000 bytes"),
        (bytes(SPARSE) + bytes(512), "000000.png: 6,000,000,000 bytes"),
        (member("././@LongLink", 6 * 10**9, tarfile.GNUTYPE_LONGNAME), "a header of 6,000,000,000 bytes"),
        (member("pax", 6 * 10**9, tarfile.XHDTYPE), "a header of 6,000,000,000 bytes"),
        (member("images/000000.png", -512), "ReadError|bytes, more than"),
    ],
    ids=["image", "other", "sparse", "long name", "pax", "negative"],
)
def test_members_that_would_take_all_memory(tmp_path, files, content, message):
    """Compressed, because then six gigabytes are six megabytes."""
    broken_shard(tmp_path, files)
    write_index(tmp_path, {"test": (10,)}, num_classes=10)
    (tmp_path / "test-000000.tar").write_bytes(gzip.compress(content + bytes(2**21)))
    with pytest.raises(LowbitError, match=message):
        list(eval_loader(config_of(tmp_path)))
    with pytest.raises(LowbitError):
        index_shards(tmp_path)


@pytest.mark.parametrize("name", ["https://example.org/x.tar", "simplecache::x.tar", "../x.tar", "a/../../x.tar"])
def test_an_index_that_leads_out_of_its_folder(tmp_path, files, name):
    broken_shard(tmp_path, files)
    index = json.loads((tmp_path / "_info.json").read_text())
    index["splits"]["test"]["filenames"] = [name]
    (tmp_path / "_info.json").write_text(json.dumps(index))
    with pytest.raises(LowbitError, match="which is not a file of this folder"):
        eval_loader(config_of(tmp_path))


@pytest.mark.parametrize("name", ["test-000000.tar", "_info.json"])
def test_a_pipe_is_not_waited_for(tmp_path, files, name):
    broken_shard(tmp_path, files)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(LowbitError, match=f"{name}: cannot be read: it is a pipe"):
        eval_loader(config_of(tmp_path))


# ---------------------------------------------------------------- parquet


@pytest.fixture
def parquet(tmp_path):
    """Images and labels in pages with checksums."""
    images, labels = [encoded(i) for i in range(8)], [0, 1] * 4
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", images, labels)
        table = pq.read_table(tmp_path / f"{split}.parquet")
        pq.write_table(
            table, tmp_path / f"{split}.parquet", row_group_size=4, write_page_checksum=True, compression=None
        )
    return tmp_path


def test_a_damaged_page_stops_the_run_whatever_may_be_skipped(parquet):
    config = DataConfig(str(parquet), batch_size=1, corrupt="skip", workers=0)
    loaders(config)
    path = parquet / "train.parquet"
    data = bytearray(path.read_bytes())
    data[data.index(encoded(5)) + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(LowbitError, match=r"train\.parquet: not a readable parquet file .*fetch it again"):
        loaders(config)


def test_files_with_damage_anywhere_end_in_words(parquet):
    """A page of images, of labels, or the footer."""
    path, chooser = parquet / "train.parquet", random.Random(0)
    data, refused = path.read_bytes(), 0
    config = DataConfig(str(parquet), batch_size=1, workers=0)
    expected = loaders(config)[0]
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(chooser.choice((1, 1, 8))):
            damaged[chooser.randrange(len(data))] ^= 1 << chooser.randrange(8)
        path.write_bytes(damaged)
        try:
            train = loaders(config)[0]
        except LowbitError as error:
            assert "train" in str(error)
            refused += 1
        else:  # statistics, names that nothing looks at
            assert train.images.equal(expected.images) and train.labels.equal(expected.labels)
    assert refused > 30


def test_an_enormous_label_takes_no_memory(tmp_path):
    write_parquet(tmp_path / "train.parquet", [encoded(0)] * 3, [0, 1, 2**62])
    write_parquet(tmp_path / "test.parquet", [encoded(0)], [0])
    with pytest.raises(LowbitError, match="each on some image, but no image has 2"):
        loaders(DataConfig(str(tmp_path), batch_size=1, workers=0))


@pytest.mark.parametrize(
    ("labels", "missing"), [([0, 1, 2], None), ([1, 2], 0), ([0, 2], 1), ([0, 1, 1, 3], 2), ([2, 0, 1, 1], None)]
)
def test_the_smallest_label_that_is_missing(tmp_path, labels, missing):
    write_parquet(tmp_path / "train.parquet", [encoded(0)] * len(labels), labels)
    source = open_dataset(tmp_path, "train")
    assert source.missing_label == missing
    source.num_classes += 1  # a class name more than labels
    assert source.missing_label == (int(np.max(labels)) + 1 if missing is None else missing)
