"""The part of the training images that is held out to choose by."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from tests.data.images import encoded, write_folder, write_parquet
from tests.data.shards import digit_files, write_index, write_split

from lowbit.data import DataConfig, loaders, num_classes, open_dataset, split_loaders, training_split
from lowbit.data.holdout import Part, held_out_indices, hold_out
from lowbit.errors import LowbitError

PLAIN = {"mean": (0.0,), "std": (1.0,), "workers": 0}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Parquet and folders of 24 training images, 12, 8 and 4 of a class, each of its own grey, and 2 test images."""
    root = tmp_path_factory.mktemp("data")
    images, labels = [encoded(0.5 * i) for i in range(24)], [0] * 12 + [1] * 8 + [2] * 4
    write_parquet(root / "parquet" / "train.parquet", images, labels)
    write_parquet(root / "parquet" / "test.parquet", [encoded(12.5), encoded(12.6)], [0, 1])
    for i, label in enumerate(labels):
        file = root / "folder" / "train" / "abc"[label] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(images[i])
    write_folder(root / "folder", {"test": {"a": 1, "b": 1}})
    return root


def contents(loader):
    """The greys that identify images, and labels, of an epoch."""
    images, labels = zip(*loader)
    greys = (torch.cat(images)[:, 0, 4, 4] * 255 / 10).round().int().tolist()
    return dict(zip(greys, torch.cat(labels).tolist()))


@pytest.mark.parametrize("augment", ["none", "imagenet"])
@pytest.mark.parametrize("source", ["parquet", "folder"])
def test_every_image_is_trained_on_or_held_out(numbered, source, augment):
    config = DataConfig(
        str(numbered / source), augment=augment, image_size=8, batch_size=1, validation=6, eval_batch_size=4, **PLAIN
    )
    splits = split_loaders(config, seed=3)
    train, validation, test = map(contents, (splits.train, splits.validation, splits.test))
    assert train.keys() & validation.keys() == set() and train.keys() | validation.keys() == set(range(24))
    assert np.bincount(list(validation.values())).tolist() == [3, 2, 1]  # as the classes are in 24 images
    assert splits.test.num_images == 2 and set(test.values()) <= {0, 1}
    assert (splits.train.num_images, splits.validation.num_images, splits.validation.num_classes) == (18, 6, 3)
    # What is asked for without the validation images leaves them out all the same.
    assert contents(loaders(config, seed=3)[0]) == train
    assert len(training_split(config)) == 18 and num_classes(config) == 3


def test_the_same_images_for_every_seed_rank_worker_and_source(numbered):
    config = DataConfig(
        str(numbered / "parquet"), augment="imagenet", image_size=8, batch_size=2, validation=0.25, **PLAIN
    )
    whole = split_loaders(config)
    expected = contents(whole.validation)
    assert len(expected) == 6
    folder = DataConfig(**{**vars(config), "path": str(numbered / "folder"), "augment": "none"})
    for other, seed in ((config, 1), (DataConfig(**{**vars(config), "workers": 2, "limit": 4}), 0), (folder, 2)):
        splits = split_loaders(other, seed=seed)
        assert contents(splits.validation) == expected
    ranks = [split_loaders(config, seed=4, rank=rank, world_size=2) for rank in range(2)]
    parts = [contents(splits.validation) for splits in ranks]
    assert [len(part) for part in parts] == [3, 3] and parts[0] | parts[1] == expected


def test_limit_counts_what_is_left_to_train_on(numbered):
    config = DataConfig(str(numbered / "parquet"), batch_size=2, validation=6, limit=10, **PLAIN)
    splits = split_loaders(config)
    assert (splits.train.num_images, splits.validation.num_images) == (10, 6)
    assert not contents(splits.train).keys() & contents(splits.validation).keys()


def test_broken_images_are_named_in_the_file_they_are_in(tmp_path):
    files = [encoded(0)] * 7 + [b"broken"]
    write_parquet(tmp_path / "train.parquet", files, [0, 1] * 4)
    write_parquet(tmp_path / "test.parquet", files[:2], [0, 1])
    config = DataConfig(str(tmp_path), batch_size=1, validation=4, **PLAIN)
    with pytest.raises(LowbitError, match=r"train\.parquet row 7: not a readable image"):
        split_loaders(config)


def test_without_the_option_nothing_is_held_out(numbered):
    splits = split_loaders(DataConfig(str(numbered / "parquet"), batch_size=1, **PLAIN))
    assert splits.validation is None and set(splits.digests) == {"training", "test"}
    assert len(contents(splits.train)) == 24


def test_a_split_of_the_data_set_to_choose_by(numbered, tmp_path):
    greys = {"train": 4, "test": 2, "val": 3}
    for split, count in greys.items():
        write_parquet(tmp_path / f"{split}.parquet", [encoded(i) for i in range(count)], [i % 2 for i in range(count)])
    config = DataConfig(str(tmp_path), batch_size=1, validation_split="val", **PLAIN)
    splits = split_loaders(config)
    assert [loader.num_images for loader in (splits.train, splits.validation, splits.test)] == [4, 3, 2]
    with pytest.raises(LowbitError, match="no split dev; there is test, train, val"):
        split_loaders(DataConfig(str(tmp_path), batch_size=1, validation_split="dev", **PLAIN))
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(LowbitError, match=r"'val' is also the split to test on: name another with data\.test_split"):
        split_loaders(config)
    write_parquet(tmp_path / "test.parquet", [encoded(0)], [0])
    write_parquet(tmp_path / "val.parquet", [encoded(0)], [5])
    with pytest.raises(LowbitError, match="the split val has the label 5, but the split train has 2 classes"):
        split_loaders(config)


def test_shards_need_a_split_of_their_own(tmp_path):
    lengths = {"train": [4, 4], "test": [3], "val": [2]}
    for split, counts in lengths.items():
        write_split(tmp_path, split, counts, digit_files())
    write_index(tmp_path, lengths, num_classes=10)
    config = dict(path=str(tmp_path), augment="imagenet-crop", image_size=8, batch_size=2, **PLAIN)
    with pytest.raises(LowbitError, match=r"data\.validation cannot hold out .* of shards.*data\.validation_split"):
        split_loaders(DataConfig(**config, validation=2))
    splits = split_loaders(DataConfig(**config, validation_split="val"))
    assert (splits.validation.num_images, splits.test.num_images) == (2, 3)
    assert sum(len(labels) for _, labels in splits.validation) == 2


def test_shares_are_rounded_so_that_they_add_up():
    labels = np.repeat([0, 1, 2], [5, 5, 4])
    for wanted in range(3, 12):
        counts = np.bincount(labels[held_out_indices(labels, 3, wanted)], minlength=3)
        assert counts.sum() == wanted
        assert (np.abs(counts - wanted * np.array([5, 5, 4]) / 14) < 1).all()


def test_a_fraction_is_rounded():
    config = DataConfig("somewhere")
    assert config.held_out_of(14) == 0
    for amount, wanted in ((0.3, 4), (0.25, 4), (0.99, 14), (3, 3), (14.0, 14)):
        assert DataConfig("somewhere", validation=amount).held_out_of(14) == wanted


def test_the_draw_stays_what_it_was():
    """A run that is resumed by a later version must find the same images held out."""
    labels = np.arange(20) % 2
    assert held_out_indices(labels, 2, 6).tolist() == [3, 4, 7, 8, 11, 16]


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        (2, r"holds out 2 of 24 training images: hold out at least as many as there are classes \(3\)"),
        (0, "holds out 0 of 24"),
        (24, "and leave some to train on"),
        (23, r"23 images held out leave none of class 1 \(b\) to train on: hold out fewer"),
    ],
)
def test_parts_that_cannot_be_held_out(numbered, amount, message):
    with pytest.raises(LowbitError, match=message):
        hold_out(open_dataset(numbered / "folder", "train"), amount)


def test_other_images_have_another_digest(numbered, tmp_path):
    shutil.copy(numbered / "parquet" / "train.parquet", tmp_path)
    source = open_dataset(tmp_path, "train")
    found = hold_out(source, 6)[1].digest()
    assert found == hold_out(source, 6)[1].digest() != hold_out(source, 7)[1].digest()
    part = Part(source, np.arange(6))
    before = part.digest()
    with open(tmp_path / "train.parquet", "ab") as file:  # though not of those held out
        file.write(b"\0")
    assert part.digest() != before


def test_a_part_has_the_classes_of_the_whole(numbered):
    source = open_dataset(numbered / "parquet", "train")
    part = Part(source, np.array([3, 14]))
    assert part.class_names is None and part.labels.tolist() == [0, 1] and part.num_classes == 3


@pytest.mark.parametrize("wrong", [0, -1, 1.5, float("nan"), float("inf"), 5000.5])
def test_amounts_out_of_range(wrong):
    with pytest.raises(LowbitError, match=r"data\.validation must be a number of training images, or a fraction"):
        DataConfig("somewhere", validation=wrong)


def test_settings_that_contradict_each_other():
    with pytest.raises(LowbitError, match="both given: keep one"):
        DataConfig("somewhere", validation=5, validation_split="val")
    for other in ({"test_split": "val"}, {"train_split": "val"}):
        with pytest.raises(LowbitError, match="'val' is the training or the test split"):
            DataConfig("somewhere", validation_split="val", **other)
