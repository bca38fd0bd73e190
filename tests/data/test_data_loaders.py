"""Batches: what is in them, in which order, on which rank, and what stops them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.data.images import encoded, write_folder, write_parquet

from lowbit.data import DataConfig, InMemoryImages, StreamedImages, eval_loader, loaders, memory, open_dataset
from lowbit.data.holdout import Part
from lowbit.data.loader import decoding_workers
from lowbit.data.memory import crop_and_flip
from lowbit.errors import LowbitError

PLAIN = {"mean": (0.0,), "std": (1.0,), "workers": 0}


@pytest.fixture(scope="module")
def cifar_like(tmp_path_factory):
    """26 training and 11 test images of noise, in 3 classes."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for split, count in (("train", 26), ("test", 11)):
        write_parquet(folder / f"{split}.parquet", noise(random, count), [i % 3 for i in range(count)])
    return folder


def noise(random, count, size=(16, 16)):
    import io

    import PIL.Image

    files = []
    for _ in range(count):
        buffer = io.BytesIO()
        PIL.Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, "png")
        files.append(buffer.getvalue())
    return files


def epoch_of(loader, epoch=0):
    loader.set_epoch(epoch)
    batches = list(loader)
    assert len(batches) == len(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


@pytest.mark.parametrize("augment", ["none", "cifar", "imagenet", "imagenet-crop"])
def test_protocol(cifar_like, augment):
    size = 16 if augment.startswith("imagenet") else None
    config = DataConfig(str(cifar_like), augment=augment, batch_size=8, eval_batch_size=4, image_size=size, workers=0)
    train, test = loaders(config)
    assert isinstance(train, InMemoryImages if config.in_memory else StreamedImages)
    for loader, count, batches in ((train, 26, 3), (test, 11, 3)):
        assert (loader.num_images, loader.num_classes, loader.class_names) == (count, 3, None)
        assert len(loader) == batches and loader.skipped == []
        images, labels = next(iter(loader))
        assert images.dtype == torch.float32 and images.shape[1:] == (3, 16, 16)
        assert labels.dtype == torch.int64 and labels.shape == images.shape[:1]
    assert torch.equal(epoch_of(test)[1], torch.arange(11) % 3)


def test_pixels_and_normalisation(tmp_path):
    write_parquet(tmp_path / "test.parquet", [encoded(i) for i in range(6)], range(6))
    config = DataConfig(str(tmp_path), mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), workers=0)
    images, _ = epoch_of(eval_loader(config))
    expected = (torch.arange(6)[:, None] * 20 / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 1.0, 2.0])
    torch.testing.assert_close(images, expected[:, :, None, None].expand(6, 3, 8, 8))
    grey, _ = epoch_of(eval_loader(DataConfig(str(tmp_path), channels=1, **PLAIN)))
    torch.testing.assert_close(grey[:, :, 0, 0], torch.arange(6)[:, None] * 20 / 255)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", ["cifar", "imagenet"])
def test_an_epoch_depends_on_seed_and_epoch_alone(cifar_like, augment, workers):
    config = DataConfig(str(cifar_like), augment=augment, batch_size=8, image_size=16, workers=0)
    same = DataConfig(str(cifar_like), augment=augment, batch_size=8, image_size=16, workers=workers)
    first, resumed, other = loaders(config, seed=5)[0], loaders(same, seed=5)[0], loaders(config, seed=6)[0]
    epoch_of(first, 0)
    next(iter(first))  # an epoch that is not finished leaves nothing behind
    state = torch.get_rng_state()
    images, labels = epoch_of(resumed, 2)
    assert torch.equal(torch.get_rng_state(), state)  # nor does any touch the user's generator
    assert torch.equal(images, epoch_of(first, 2)[0]) and torch.equal(labels, epoch_of(first, 2)[1])
    for different in (epoch_of(first, 1), epoch_of(other, 2)):
        assert not torch.equal(images, different[0])


@pytest.mark.parametrize("augment", ["cifar", "imagenet-crop"])
def test_ranks_share_every_batch(cifar_like, augment):
    config = DataConfig(str(cifar_like), augment=augment, batch_size=8, image_size=16, workers=0)
    whole = loaders(config, seed=1)[0]
    ranks = [loaders(config, seed=1, rank=rank, world_size=2)[0] for rank in range(2)]
    assert {len(loader) for loader in (whole, *ranks)} == {3}
    for (images, labels), *parts in zip(whole, *ranks):
        assert torch.equal(torch.cat([part for part, _ in parts]), images)
        assert torch.equal(torch.cat([part for _, part in parts]), labels)


@pytest.mark.parametrize("augment", ["none", "imagenet"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_evaluation_counts_every_image_once(cifar_like, augment, world_size):
    config = DataConfig(str(cifar_like), augment=augment, eval_batch_size=2, image_size=16, **PLAIN)
    parts = [epoch_of(eval_loader(config, rank=rank, world_size=world_size))[0] for rank in range(world_size)]
    everything = torch.cat(parts)
    assert len(everything) == 11 and len(torch.unique(everything.flatten(1), dim=0)) == 11


def test_without_drop_last_every_image_is_trained_on(cifar_like):
    train, _ = loaders(DataConfig(str(cifar_like), batch_size=8, drop_last=False, **PLAIN))
    images, _ = epoch_of(train)
    assert len(train) == 4 and len(torch.unique(images.flatten(1), dim=0)) == 26


@pytest.mark.parametrize("augment", ["none", "imagenet"])
def test_limit_takes_its_share_of_every_class(tmp_path, augment):
    """Of 12, 6 and 2 images, written class by class, ten are 6, 3 and 1, others than the first ones, always the same."""
    labels = [0] * 12 + [1] * 6 + [2] * 2
    write_parquet(tmp_path / "train.parquet", [encoded(i // 2, size=(16, 16)) for i in range(20)], labels)
    write_parquet(tmp_path / "test.parquet", [encoded(0, size=(16, 16))], [0])
    config = DataConfig(str(tmp_path), augment=augment, image_size=16, batch_size=2, limit=10, **PLAIN)
    train, test = loaders(config, seed=1)
    images, found = epoch_of(train)
    assert (train.num_images, len(train), test.num_images, train.num_classes) == (10, 5, 1, 3)
    assert torch.bincount(found).tolist() == [6, 3, 1]
    numbers = sorted(zip(found.tolist(), (images.mean((1, 2, 3)) * 255 / 20).round().int().tolist()))
    assert numbers != [(label, i // 2) for label, i in zip([0] * 6 + [1] * 3 + [2], (*range(6), 12, 13, 14, 18))]
    images, found = epoch_of(loaders(config, seed=2)[0])
    assert sorted(zip(found.tolist(), (images.mean((1, 2, 3)) * 255 / 20).round().int().tolist())) == numbers
    few, _ = loaders(replace(config, limit=2))
    assert sorted(epoch_of(few)[1].tolist()) == [0, 1]


def test_crop_and_flip():
    images = torch.randint(1, 256, (5, 3, 8, 10), dtype=torch.uint8)
    offsets = torch.tensor([[2, 0, 4, 1, 2], [2, 0, 4, 3, 2]])
    flips = torch.tensor([False, False, False, False, True])
    out = crop_and_flip(images, 2, offsets, flips)
    assert out.shape == images.shape and out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out[0], images[0])
    assert torch.equal(out[1, :, 2:, 2:], images[1, :, :-2, :-2]) and not out[1, :, :2].any()
    assert torch.equal(out[2, :, :-2, :-2], images[2, :, 2:, 2:]) and not out[2, :, :, -2:].any()
    assert torch.equal(out[3, :, 1:, :-1], images[3, :, :-1, 1:])
    assert torch.equal(out[4], images[4].flip(-1))


@pytest.mark.parametrize(("crop_padding", "offsets"), [(None, 5 * 5), (1, 3 * 3), (0, 1)])
def test_augmentation_reaches_every_offset_and_both_flips(tmp_path, crop_padding, offsets):
    import io

    import PIL.Image

    buffer = io.BytesIO()  # every pixel another value: one pixel of a crop tells its offset, two tell the flip
    PIL.Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(buffer, "png")
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [buffer.getvalue()] * 600, [0] * 600, row_group_size=600)
    config = DataConfig(str(tmp_path), augment="cifar", crop_padding=crop_padding, channels=1, batch_size=600, **PLAIN)
    train, _ = loaders(config)
    images, _ = epoch_of(train)
    windows = (images[:, 0, 8, 8:10] * 255).round().int()
    assert len(torch.unique(windows, dim=0)) == offsets * 2
    flipped = (windows[:, 1] < windows[:, 0]).float().mean().item()
    assert 0.4 < flipped < 0.6  # five standard errors


def test_images_of_several_sizes(tmp_path):
    files = [encoded(3, size=(8, 8)), encoded(3, size=(8, 12)), encoded(3, size=(20, 10))]
    write_parquet(tmp_path / "test.parquet", files, [0, 1, 2])
    with pytest.raises(LowbitError, match=r"row 1: 8x12 pixels, but the first image has 8x8; give data\.image_size"):
        eval_loader(DataConfig(str(tmp_path), corrupt="skip", workers=0))
    images, _ = epoch_of(eval_loader(DataConfig(str(tmp_path), image_size=6, **PLAIN)))
    torch.testing.assert_close(images, torch.full((3, 3, 6, 6), 60 / 255))


def test_centre_crop_of_evaluation(tmp_path):
    write_folder(tmp_path, {"val": {"a": 1}}, size=(40, 64))
    images, _ = epoch_of(eval_loader(DataConfig(str(tmp_path), augment="imagenet", image_size=28, **PLAIN)))
    assert images.shape == (1, 3, 28, 28)


@pytest.fixture
def with_broken(tmp_path):
    files = [encoded(i) for i in range(12)]
    files[3], files[7] = files[3][:40], b"not an image"
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", files, [i % 2 for i in range(12)])
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", ["none", "imagenet"])
def test_a_broken_image_is_named(with_broken, augment, workers):
    with pytest.raises(LowbitError, match=r'test\.parquet row 3: not a readable image .*data\.corrupt="skip"'):
        epoch_of(eval_loader(DataConfig(str(with_broken), augment=augment, image_size=8, workers=workers)))


def test_a_broken_file_is_named(tmp_path):
    write_folder(tmp_path, {"train": {"a": 4}, "test": {"a": 1}})
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"")
    with pytest.raises(LowbitError, match=r"train/a/2\.png: not a readable image"):
        loaders(DataConfig(str(tmp_path), batch_size=1, workers=0))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", ["none", "imagenet"])
def test_broken_images_are_left_out_and_counted(with_broken, augment, workers):
    config = DataConfig(
        str(with_broken), augment=augment, image_size=8, corrupt="skip", eval_batch_size=5,
        mean=(0.0,), std=(1.0,), workers=workers,
    )  # fmt: skip
    test = eval_loader(config)
    for _ in range(2):
        images, labels = epoch_of(test)
        kept = [i for i in range(12) if i not in (3, 7)]
        torch.testing.assert_close(images[:, 0, 4, 4], torch.tensor(kept) * 20 / 255)
        assert labels.tolist() == [i % 2 for i in kept]
        assert [message.split(":")[0].split("/")[-1] for message in test.skipped] == [
            "test.parquet row 3", "test.parquet row 7",
        ]  # fmt: skip


@pytest.mark.parametrize("augment", ["none", "imagenet"])
def test_a_skip_leaves_the_ranks_in_step(with_broken, augment):
    config = DataConfig(str(with_broken), augment=augment, image_size=8, corrupt="skip", batch_size=4, **PLAIN)
    for epoch in range(3):
        ranks = [loaders(config, rank=rank, world_size=2) for rank in range(2)]
        steps = [len(epoch_of(train, epoch)) and len(list(train)) for train, _ in ranks]
        assert steps[0] == steps[1] == (2 if augment == "none" else 3)  # in memory 10 images are left, else 12 places
        tested = torch.cat([epoch_of(test)[0] for _, test in ranks])
        assert len(tested) == 10


@pytest.mark.parametrize("augment", ["none", "imagenet"])
def test_nothing_but_broken_images(tmp_path, augment):
    write_parquet(tmp_path / "test.parquet", [b"", b"x"], [0, 1])
    with pytest.raises(LowbitError, match="can be read"):
        epoch_of(eval_loader(DataConfig(str(tmp_path), augment=augment, corrupt="skip", workers=0)))


@pytest.mark.parametrize("augment", ["none", "imagenet"])
def test_too_few_images(cifar_like, augment):
    with pytest.raises(LowbitError, match=r"26 training images are fewer than one batch of 27: lower data\.batch_size"):
        loaders(DataConfig(str(cifar_like), batch_size=27, augment=augment, workers=0))
    with pytest.raises(LowbitError, match="11 test images are fewer than the 12 ranks"):
        loaders(DataConfig(str(cifar_like), batch_size=12, augment=augment, workers=0), world_size=12)
    with pytest.raises(LowbitError, match="make it a multiple of the 3"):
        loaders(DataConfig(str(cifar_like), batch_size=8, augment=augment, workers=0), world_size=3)
    with pytest.raises(LowbitError, match="last batch of 2 images"):
        loaders(DataConfig(str(cifar_like), batch_size=8, drop_last=False, augment=augment, workers=0), world_size=2)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_split_or_a_class_that_is_missing_is_said_on_every_rank(tmp_path, rank):
    place = dict(rank=rank, world_size=2)
    write_parquet(tmp_path / "train.parquet", [encoded(0)] * 4, [0, 0, 2, 2], class_names=["cat", "dog", "emu"])
    with pytest.raises(LowbitError, match="no split test or validation or val; there is train"):
        loaders(DataConfig(str(tmp_path), batch_size=2, workers=0), **place)
    write_parquet(tmp_path / "test.parquet", [encoded(0)] * 2, [0, 1])
    with pytest.raises(LowbitError, match=r"on some image, but no image has 1 \(dog\)"):
        loaders(DataConfig(str(tmp_path), batch_size=2, workers=0), **place)


def test_ranks_on_a_machine_share_its_cpus(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    workers = []
    for ranks in ("1", "4", "16"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)  # as torchrun and accelerate set it
        workers.append(decoding_workers(DataConfig("somewhere")))
    assert workers == [12, 3, 1] and decoding_workers(DataConfig("somewhere", workers=5)) == 5


def test_labels_of_the_splits(tmp_path):
    write_parquet(tmp_path / "train.parquet", [encoded(0)] * 3, [0, 1, 1])
    write_parquet(tmp_path / "test.parquet", [encoded(0)] * 2, [0, 2])
    with pytest.raises(LowbitError, match="the split test has the label 2, but the split train has 2 classes"):
        loaders(DataConfig(str(tmp_path), batch_size=1, workers=0))
    write_parquet(tmp_path / "train.parquet", [encoded(0)] * 3, [0, 2, 2])
    with pytest.raises(LowbitError, match=r"must be 0 to 2, each on some image, but no image has 1$"):
        loaders(DataConfig(str(tmp_path), batch_size=1, workers=0))
    # which split is the test split: the first of test, validation, val, or the one asked for
    write_parquet(tmp_path / "validation.parquet", [encoded(0)], [0])
    assert eval_loader(DataConfig(str(tmp_path), workers=0)).num_images == 2
    assert eval_loader(DataConfig(str(tmp_path), workers=0, test_split="validation")).num_images == 1


def test_the_training_split_numbers_the_classes_whatever_its_name(tmp_path):
    for split, classes in (("learn", "abc"), ("test", "ac")):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.png").write_bytes(encoded(0))
    config = DataConfig(str(tmp_path), train_split="learn", batch_size=1, workers=0)
    for test in (loaders(config)[1], eval_loader(config)):
        assert test.class_names == ("a", "b", "c") and test.labels.tolist() == [0, 2]


def test_splits_that_number_classes_differently(tmp_path):
    write_parquet(tmp_path / "train.parquet", [encoded(0)] * 2, [0, 1], class_names=["cat", "dog"])
    write_parquet(tmp_path / "test.parquet", [encoded(0)] * 2, [0, 1], class_names=["dog", "cat"])
    with pytest.raises(LowbitError, match="the split test numbers its classes dog, cat…, but the split train"):
        loaders(DataConfig(str(tmp_path), batch_size=1, workers=0))


def test_images_that_do_not_fit(cifar_like):
    config = DataConfig(str(cifar_like), image_size=100_000, workers=0)
    with pytest.raises(LowbitError, match="11 images of 100000x100000 do not fit into memory"):
        eval_loader(config)


def test_digits_loader():
    train, test = loaders(DataConfig("sklearn:digits", batch_size=64, channels=1, **PLAIN))
    images, _ = next(iter(train))
    assert images.shape == (64, 1, 8, 8) and 0 <= images.min() and images.max() == 1
    assert (train.num_images, test.num_images, test.class_names) == (1437, 360, tuple("0123456789"))


@pytest.mark.parametrize(("drop_last", "first"), [(True, 0), (False, 1)])
def test_batches_are_the_same_however_many_are_cut_out_at_once(cifar_like, monkeypatch, drop_last: bool, first: int):
    """One by one, two at once with one left over, and all."""
    config = DataConfig(str(cifar_like), augment="cifar", batch_size=4, drop_last=drop_last, workers=0)
    train, _ = loaders(config, seed=1)
    found = []
    for count in (1, 2, 100):
        monkeypatch.setattr(memory, "_AT_ONCE", count * 4 * 3 * 16 * 16)
        train.set_epoch(2, first)
        found.append(list(train))
        assert [len(labels) for _, labels in found[-1]] == [4] * (6 - first) + [2] * (not drop_last)
    for batches in found[1:]:
        for (images, labels), (others, other_labels) in zip(found[0], batches, strict=True):
            assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_many_images_are_decoded_by_workers_in_order(shared_data):
    source = Part(open_dataset(shared_data / "cifar10-jpeg", "test"), np.arange(3500))
    config = DataConfig(str(shared_data / "cifar10-jpeg"), batch_size=1, workers=2)
    loader = InMemoryImages(source, config, train=True, num_classes=10)
    assert torch.equal(loader.labels, torch.from_numpy(source.labels))
    for index in (0, 341, 342, 3499):
        expected = np.asarray(source.read(index).convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(loader.images[index].numpy(), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0}, {"limit": 0}, {"workers": -1}, {"augment": "mixup"}, {"crop_padding": 2},
        {"crop_padding": -1, "augment": "cifar"}, {"channels": 2}, {"corrupt": "ignore"},
        {"mean": (0.5, 0.5)}, {"std": (0.0,)}, {"std": (float("nan"),)}, {"image_size": 0},
    ],
)  # fmt: skip
def test_config_out_of_range(wrong):
    with pytest.raises(LowbitError, match=rf"data\.{next(iter(wrong))}"):
        DataConfig("somewhere", **wrong)
