"""Data of a user's own: equal parts, every sample once, an order that depends on seed and epoch alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests import own_code
from torch.utils.data import Dataset, TensorDataset

from lowbit.data import DataConfig, DataSet, loaders
from lowbit.data.own import OwnSplit
from lowbit.errors import LowbitError

CONFIG = DataConfig("tests.own_code:waves", batch_size=24, eval_batch_size=5, workers=0)


def flat(loader) -> torch.Tensor:
    return torch.cat([x for x, _ in loader])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_test_sample_once_and_equal_parts_of_every_batch(world_size: int) -> None:
    whole = [batch for batch, _ in loaders(CONFIG, seed=3)[0]]
    parts = [loaders(CONFIG, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, batches in enumerate(zip(*(train for train, _ in parts))):
        assert {len(x) for x, _ in batches} == {24 // world_size}
        assert torch.equal(torch.cat([x for x, _ in batches]), whole[number])
    found = torch.cat([flat(test) for _, test in parts])
    wanted, _ = own_code.waves()[1].tensors
    assert sorted(found.flatten(1).tolist()) == sorted(wanted.flatten(1).tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_from_any_batch(workers: int) -> None:
    config = replace(CONFIG, path="tests.own_code:pairs", workers=workers)
    train, _ = loaders(config, seed=3)
    train.set_epoch(4)
    whole = list(train)
    train.set_epoch(4, 3)
    rest = list(train)
    assert len(rest) == len(whole) - 3 == len(train) - 3
    for (x, y), (a, b) in zip(rest, whole[3:]):
        assert torch.equal(y, b) and all(torch.equal(x[name], a[name]) for name in a)
    train.set_epoch(5)
    assert not torch.equal(next(iter(train))[1], whole[0][1])


def test_chance_in_a_sample_leaves_the_callers_generators_alone() -> None:
    source = OwnSplit("here", "train", own_code.Named(8, 0, 0.5))
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, again, other = (source.sample(2, seed)[0]["left"] for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


def test_a_part_for_validation_has_its_share_of_every_class() -> None:
    data = DataSet(replace(CONFIG, validation=30))
    assert np.bincount(data.validation.labels).tolist() == [10, 10, 10] and len(data.train) == 162
    assert data.train.num_classes == 3
    held = {tuple(data.validation.sample(i, 0)[0].flatten().tolist()) for i in range(30)}
    assert all(tuple(data.train.sample(i, 0)[0].flatten().tolist()) not in held for i in range(162))
    regression = DataSet(replace(CONFIG, path="tests.own_code:lines", validation=0.25))
    assert (len(regression.validation), len(regression.train), regression.train.num_classes) == (64, 192, None)


def test_limit_is_a_share_of_every_class() -> None:
    train, _ = loaders(replace(CONFIG, limit=48))
    assert torch.bincount(torch.cat([y for _, y in train])).tolist() == [16, 16, 16]


def test_double_precision_becomes_single() -> None:
    x, y = next(iter(loaders(replace(CONFIG, path="tests.own_code:lines"))[0]))
    assert x.dtype == y.dtype == torch.float32


def test_other_data_has_another_digest() -> None:
    x, y = own_code.waves()[0].tensors

    def digest(*tensors: torch.Tensor) -> str:
        return OwnSplit("here", "train", TensorDataset(*tensors)).digest()

    changed = x.clone()
    changed[100, 0, 0] += 1
    assert digest(x, y) == digest(x.clone(), y.clone())
    assert len({digest(x, y), digest(changed, y), digest(x, y.flip(0)), digest(x[:-1], y[:-1])}) == 4
    named = [OwnSplit("here", "train", own_code.Named(20, seed, 0.5)).digest() for seed in (0, 0, 1)]
    assert named[0] == named[1] != named[2]


class Broken(Dataset):
    """Its third sample can't be read."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int):
        if index == 2:
            raise OSError("truncated file")
        return torch.zeros(4), 0


def broken() -> tuple[Broken, Broken]:
    return Broken(), Broken()


def test_a_sample_that_cannot_be_read_is_named_or_left_out() -> None:
    config = DataConfig("tests.data.test_data_own:broken", batch_size=2, eval_batch_size=4, workers=0)
    with pytest.raises(LowbitError, match=r"broken \(test\) sample 2: OSError: truncated file; leave such samples out"):
        list(loaders(config)[1])
    test = loaders(replace(config, corrupt="skip"))[1]
    assert [len(x) for x, _ in test] == [3, 2] and len(test.skipped) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "holds no samples"),
        (iter([1]), "is a list_iterator"),
        (TensorDataset(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2)), "not 3 things; name inputs in a dictionary"),
        ([("text", 1)], "neither a tensor nor tensors by name"),
        (TensorDataset(torch.zeros(2, 3), torch.tensor([0, -1])), "sample 1: label -1; labels must be 0 to K-1"),
    ],
)
def test_what_is_no_data_is_refused(data, message: str) -> None:
    with pytest.raises(LowbitError, match=message):
        OwnSplit("here", "train", data).example()
