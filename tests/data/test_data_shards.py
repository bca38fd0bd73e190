"""Shards: each image once on all ranks and workers, the same epoch again, and messages where something is wrong."""

from __future__ import annotations

import functools
import http.server
import io
import json
import threading
from dataclasses import replace

import fsspec
import PIL.Image
import pytest
import torch
from tests.data.shards import broken_shard, config_of, digit_files, write_index, write_shard, write_split

from lowbit.data import (
    StreamedShards,
    eval_loader,
    index_shards,
    loaders,
    num_classes,
    open_shards,
)
from lowbit.data import (
    shards as shards_module,
)
from lowbit.errors import LowbitError

TRAIN, TEST = (70, 3, 0, 41, 120), (17, 30)


@pytest.fixture(scope="module")
def files():
    return digit_files()


@pytest.fixture(scope="module")
def shards(tmp_path_factory, files):
    """234 training and 47 test digits in shards of unequal lengths, one of them empty."""
    folder = tmp_path_factory.mktemp("shards")
    write_split(folder, "train", TRAIN, files)
    write_split(folder, "val", TEST, files[500:])
    write_index(folder, {"train": TRAIN, "val": TEST}, num_classes=10)
    return folder


class Seen:
    """Which image each pixel pattern of an evaluation is: digits are all different."""

    def __init__(self, folder, files):
        whole = eval_loader(config_of(folder))
        self.images = torch.cat([images for images, _ in whole]).flatten(1)
        self.labels = torch.cat([labels for _, labels in whole])

    def numbers(self, batches):
        images = torch.cat([images for images, _ in batches]).flatten(1)
        same = (images[:, None] == self.images[None]).all(2)
        assert (same.sum(1) == 1).all()
        return same.int().argmax(1)


def test_evaluation_in_one_process_is_what_was_stored(shards, files):
    test = eval_loader(config_of(shards))
    assert isinstance(test, StreamedShards)
    assert (test.num_images, test.num_classes, len(test)) == (47, 10, 5)
    labels = torch.cat([labels for _, labels in test])
    # readers take turns, batch by batch, and each has one batch here: the stored order
    assert labels.tolist() == [label for _, label in files[500:547]]
    image = next(iter(test))[0][0]
    stored = PIL.Image.open(io.BytesIO(files[500][0]))
    from torchvision.transforms import v2

    expected = v2.Compose([v2.Resize(9), v2.CenterCrop(8), v2.PILToTensor()])(stored)
    torch.testing.assert_close(image, expected / 255)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 0), (3, 2), (4, 0), (47, 0)])
def test_evaluation_sees_every_image_once(shards, files, world_size, workers):
    known = Seen(shards, files)
    numbers = []
    for rank in range(world_size):
        loader = eval_loader(config_of(shards, workers=workers, eval_batch_size=4), rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(batches) == len(loader)
        numbers.append(known.numbers(batches))
        assert torch.equal(torch.cat([labels for _, labels in batches]), known.labels[numbers[-1]])
    assert sorted(torch.cat(numbers).tolist()) == list(range(47))
    assert max(map(len, numbers)) - min(map(len, numbers)) <= 1


@pytest.mark.parametrize("lengths", [(47,), (1,) * 47, (40, 7)])
def test_evaluation_whatever_the_shards_are(tmp_path, files, lengths):
    write_split(tmp_path, "val", lengths, files[500:])
    write_index(tmp_path, {"val": lengths}, num_classes=10)
    known = Seen(tmp_path, files)
    parts = [known.numbers(list(eval_loader(config_of(tmp_path), rank=rank, world_size=3))) for rank in range(3)]
    assert sorted(torch.cat(parts).tolist()) == list(range(47))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, files):
    """Shards whose labels say which image it is, to follow images through a training epoch."""
    folder = tmp_path_factory.mktemp("labelled")
    start = 0
    for number, length in enumerate(TRAIN):
        part = [{"png": files[i][0], "cls": str(i).encode()} for i in range(start, start + length)]
        write_shard(folder / "train" / f"{number}.tar", part)
        start += length
    write_shard(folder / "test" / "0.tar", [{"png": files[0][0], "cls": b"0"}] * 4)
    index_shards(folder)
    return folder


def epoch_labels(config, epoch, **place):
    train, _ = loaders(config, **{"seed": 3, **place})
    train.set_epoch(epoch)
    return [labels for _, labels in train]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_training_ranks_have_equal_batches_and_no_image_twice(labelled, world_size):
    config = config_of(labelled)
    ranks = [epoch_labels(config, 0, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {234 // 16}
    assert {len(batch) for batches in ranks for batch in batches} == {16 // world_size}
    seen = torch.cat([torch.cat(batches) for batches in ranks]).tolist()
    assert len(set(seen)) == len(seen) == 224
    left_out = set(range(234)) - set(seen)
    later = torch.cat([torch.cat(epoch_labels(config, 1, rank=r, world_size=world_size)) for r in range(world_size)])
    assert set(range(234)) - set(later.tolist()) != left_out  # not the same ones every epoch


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # of a machine with fewer CPUs
def test_an_epoch_depends_on_seed_and_epoch_alone(labelled):
    config = config_of(labelled)
    train, _ = loaders(config, seed=3)
    next(iter(train))  # an epoch that is not finished leaves nothing behind
    train.set_epoch(2)
    state = torch.get_rng_state()
    images, labels = zip(*train)
    assert torch.equal(torch.get_rng_state(), state)
    for workers in (1, 2, 5):  # 5 cannot share the readers equally: 4 do it
        resumed, _ = loaders(replace(config, workers=workers), seed=3)
        epochs = []
        for epoch in (1, 2):  # the workers live on and must hear of the new epoch
            resumed.set_epoch(epoch)
            epochs.append(list(resumed))
        again_images, again_labels = zip(*epochs[1])
        assert torch.equal(torch.cat(again_labels), torch.cat(labels))
        assert torch.equal(torch.cat(again_images), torch.cat(images))
    other_epoch, other_seed = epoch_labels(config, 1), epoch_labels(config, 2, seed=4)
    for other in (other_epoch, other_seed):
        assert not torch.equal(torch.cat(other), torch.cat(labels))


def test_the_buffer_shuffles_within_a_shard(labelled):
    def runs(shuffle_buffer):  # neighbours in the shard that follow each other
        labels = torch.cat(epoch_labels(config_of(labelled, shuffle_buffer=shuffle_buffer, batch_size=78), 0))
        return int((labels.diff() == 1).sum())

    assert runs(1) > 200 and runs(24 * 78) < 30


def test_one_shard_is_cut_anew_every_epoch(tmp_path, files):
    for split in ("train", "test"):
        write_shard(tmp_path / f"{split}-0.tar", [{"png": files[i][0], "cls": str(i).encode()} for i in range(50)])
    index_shards(tmp_path)
    batches = []
    for epoch in range(3):
        labels = epoch_labels(config_of(tmp_path, batch_size=8), epoch)
        assert len(set(torch.cat(labels).tolist())) == 48
        batches.append({frozenset(batch.tolist()) for batch in labels})
    assert not batches[0] & batches[1] and not batches[1] & batches[2]


def test_limit_and_the_last_batch(labelled):
    config = config_of(labelled, limit=72, batch_size=16, drop_last=False)
    labels = epoch_labels(config, 0)
    assert [len(batch) for batch in labels] == [16, 16, 16, 16, 8]
    assert sorted(torch.cat(labels).tolist()) == list(range(72))


def test_index(labelled):
    index = json.loads((labelled / "_info.json").read_text())
    assert index["num_classes"] == 234
    assert index["splits"]["train"]["shard_lengths"] == list(TRAIN)
    assert index["splits"]["train"]["filenames"][1] == "train/1.tar"
    assert index["splits"]["test"]["num_samples"] == 4
    shards = open_shards(str(labelled), "validation", "test")
    assert (shards.split, len(shards), shards.num_classes) == ("test", 4, 234)
    assert num_classes(config_of(labelled)) == 234 and num_classes(config_of(labelled, num_classes=300)) == 300


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(shards):
    handler = functools.partial(_Quiet, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("workers", [0, 2])
def test_over_http(shards, served, workers):
    pytest.importorskip("aiohttp", reason="needs aiohttp, for shards over http: pip install 'lowbit[stream]'")
    local, _ = loaders(config_of(shards))
    remote, _ = loaders(config_of(served, workers=workers))
    for (images, labels), (expected, expected_labels) in zip(remote, local, strict=True):
        assert torch.equal(images, expected) and torch.equal(labels, expected_labels)
    with pytest.raises(LowbitError, match=r"_info\.json: not there"):
        open_shards(f"{served}/nowhere", "train")


def test_a_read_that_fails_is_tried_again(tmp_path, monkeypatch, files):
    """Over the network: from the row where it broke off, and not for ever."""
    failures = [5, 12, 12]

    def flaky(*arguments):
        for sample in original(*arguments):
            if failures and int(sample.name.split("/")[-1]) == failures[0]:
                failures.pop(0)
                raise ConnectionError("reset by peer")
            yield sample

    original = shards_module._samples
    write_split(tmp_path, "train", (20,), files)
    fsspec.filesystem("memory").pipe("/train-000000.tar", (tmp_path / "train-000000.tar").read_bytes())
    monkeypatch.setattr(shards_module, "_samples", flaky)
    monkeypatch.setattr(shards_module.time, "sleep", lambda seconds: None)
    rows = list(shards_module.read_rows("memory://train-000000.tar", 3, 18))
    assert [int(row.name.split("/")[-1]) for row in rows] == list(range(3, 18))
    failures += [7, 7, 7]
    with pytest.raises(LowbitError, match=r"cannot be read at image 7 \(ConnectionError: reset by peer"):
        list(shards_module.read_rows("memory://train-000000.tar", 0, 20))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_or_left_out(tmp_path, files, workers):
    broken_shard(tmp_path, files, n4={"png": b"no image", "cls": b"4"}, n7={"cls": b"7"})
    config = config_of(tmp_path, workers=workers, eval_batch_size=5)
    with pytest.raises(LowbitError, match=r'test-000000\.tar images/000004: not a readable image .*corrupt="skip"'):
        list(eval_loader(config))
    test = eval_loader(replace(config, corrupt="skip"))
    for _ in range(2):
        assert [len(labels) for _, labels in test] == [4, 4]
        assert [message.split("images/")[1].split(" (")[0] for message in test.skipped] == [
            "000004: not a readable image", "000007: has no image",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"png": b""}, r"images/000003: has no label"),
        ({"png": b"", "cls": b"dog"}, r"images/000003: has the label 'dog', expected a number"),
        ({"png": b"", "cls": b"-1"}, r"has the label '-1'"),
        ({"png": b"", "cls": b"10"}, r"label 10, but there are 10 classes"),
    ],
)
def test_a_wrong_label_stops_it_whatever_may_be_skipped(tmp_path, files, parts, message):
    broken_shard(tmp_path, files, n3=parts)
    with pytest.raises(LowbitError, match=message):
        list(eval_loader(config_of(tmp_path, corrupt="skip")))


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_that_are_not_as_their_index_says(tmp_path, files, workers):
    broken_shard(tmp_path, files)
    write_index(tmp_path, {"test": (12,)}, num_classes=10)
    config = config_of(tmp_path, workers=workers, corrupt="skip")
    with pytest.raises(LowbitError, match=r"test-000000\.tar: ends after 10 images, but the index counts 12"):
        list(eval_loader(config))
    (tmp_path / "test-000000.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(LowbitError, match=r"test-000000\.tar: cannot be read at image 0 \(ReadError"):
        list(eval_loader(config))
    (tmp_path / "test-000000.tar").unlink()
    with pytest.raises(LowbitError, match=r"test-000000\.tar: cannot be read: No such file"):
        eval_loader(config)


def test_a_skip_leaves_the_ranks_in_step(tmp_path, files):
    """Every rank takes as many steps as the others, though one of them has lost images."""
    samples = [{"png": image, "cls": str(label).encode()} for image, label in files[:64]]
    for number in (3, 4, 20, 21, 22):
        samples[number]["png"] = b"no image"
    for split in ("train", "test"):
        write_shard(tmp_path / f"{split}-000000.tar", samples)
    index_shards(tmp_path)
    config = config_of(tmp_path, batch_size=32, corrupt="skip")
    for epoch in range(3):
        steps, left_out = [], []
        for rank in range(2):
            train, _ = loaders(config, rank=rank, world_size=2)
            train.set_epoch(epoch)
            steps.append(len(list(train)))
            left_out += train.skipped
        assert steps == [2, 2] and len(set(left_out)) == 5


def test_too_few_images(labelled, shards):
    with pytest.raises(LowbitError, match="234 training images are fewer than one batch of 256"):
        loaders(config_of(labelled, batch_size=256), rank=1, world_size=2)
    with pytest.raises(LowbitError, match="make it a multiple of the 3"):
        loaders(config_of(labelled), world_size=3)
    with pytest.raises(LowbitError, match="4 test images are fewer than the 8 ranks"):
        loaders(config_of(labelled), rank=7, world_size=8)


@pytest.mark.parametrize("augment", ["none", "cifar"])
def test_shards_are_not_kept_in_memory(shards, augment):
    with pytest.raises(LowbitError, match=r'data\.augment="\w+" is for images in memory: choose "imagenet"'):
        eval_loader(config_of(shards, augment=augment))


def test_index_that_is_missing_or_wrong(tmp_path, files):
    write_split(tmp_path, "train", (4,), files)
    with pytest.raises(LowbitError, match=r"_info\.json: not there.*index_shards"):
        loaders(config_of(tmp_path))
    index = tmp_path / "_info.json"
    write_index(tmp_path, {"train": (4,)})
    with pytest.raises(LowbitError, match=r"no split test or validation or val; there is train"):
        eval_loader(config_of(tmp_path))
    with pytest.raises(LowbitError, match=r"does not say how many classes .*give data\.num_classes"):
        open_shards(str(tmp_path), "train")
    assert open_shards(str(tmp_path), "train", num_classes=10).num_classes == 10
    write_index(tmp_path, {"train": (0,)}, num_classes=10)
    with pytest.raises(LowbitError, match="the split train holds no images"):
        open_shards(str(tmp_path), "train")
    for text, message in [
        ("{", "cannot be read"),
        ("[]", 'has no "splits"'),
        ('{"splits": {"train": {}}}', 'no usable "filenames"'),
        ('{"splits": {"train": {"filenames": ["a.tar"], "shard_lengths": [1, 2]}}}', "one count for each"),
    ]:
        index.write_text(text)
        with pytest.raises(LowbitError, match=message):
            open_shards(str(tmp_path), "train", num_classes=1)
    with pytest.raises(LowbitError, match="Protocol not known: nosuch"):
        open_shards("nosuch://bucket/images", "train")


def test_folders_that_cannot_be_indexed(tmp_path, files):
    with pytest.raises(LowbitError, match="no tar files"):
        index_shards(tmp_path)
    write_split(tmp_path, "part", (2,), files)
    with pytest.raises(LowbitError, match="neither its folder nor its name says which split"):
        index_shards(tmp_path)
    (tmp_path / "part-000000.tar").rename(tmp_path / "train-000000.tar")
    write_shard(tmp_path / "val-0.tar", [{"png": files[0][0], "cls": b"2"}])
    with pytest.raises(LowbitError, match="the split val has the label 2, but train has 2 classes"):
        index_shards(tmp_path)
    write_shard(tmp_path / "train-000000.tar", [{"png": files[0][0], "cls": b"2"}] * 2)
    with pytest.raises(LowbitError, match="no image has 0 while the largest is 2"):
        index_shards(tmp_path)
    write_shard(tmp_path / "train-000000.tar", [{"png": files[0][0]}])
    with pytest.raises(LowbitError, match="images/000000: has no label"):
        index_shards(tmp_path)
    (tmp_path / "train-000000.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(LowbitError, match="not a readable tar file"):
        index_shards(tmp_path)
