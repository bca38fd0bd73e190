"""A run on shards: it goes on to the same bits with other workers, and says how many images it had to leave out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.data.shards import digit_files, write_shard
from tests.train.test_train_resume import assert_same, interrupt, tensors

from lowbit.data import index_shards
from lowbit.report import read_run
from lowbit.train import DataConfig, TrainConfig, evaluate_run, run


@pytest.fixture
def on_shards(tmp_path: Path, low_bit: TrainConfig) -> TrainConfig:
    """W3A3 on 300 digits in five shards; two training images and one test image are broken."""
    samples = [{"png": image, "cls": str(label).encode()} for image, label in digit_files()]
    for number in (10, 200, 310):
        samples[number]["png"] = b"no image"
    for number in range(5):
        write_shard(tmp_path / "shards" / f"train-{number}.tar", samples[60 * number : 60 * (number + 1)])
    write_shard(tmp_path / "shards" / "test-0.tar", samples[300:350])
    index_shards(tmp_path / "shards")
    data = DataConfig(
        path=str(tmp_path / "shards"), augment="imagenet-crop", image_size=8, batch_size=32, eval_batch_size=20,
        channels=1, mean=(0.3,), std=(0.35,), workers=0, corrupt="skip",
    )  # fmt: skip
    return replace(low_bit, data=data)


def test_resumed_with_other_workers_it_ends_with_the_same_bits(on_shards, tmp_path, monkeypatch):
    whole = replace(on_shards, output=str(tmp_path / "whole"))
    result = run(whole)
    assert result.accuracy > 50  # 49 images; chance is 10 %
    interrupt(monkeypatch, on_shards, 1.3)
    run(replace(on_shards, data=replace(on_shards.data, workers=2)), resume=True)
    assert_same(tensors(whole.output), tensors(on_shards.output))
    assert evaluate_run(whole.output, checkpoint="last")[1] == pytest.approx(result.accuracy)


def test_what_is_left_out_is_counted(on_shards, capsys):
    run(replace(on_shards, data=replace(on_shards.data, drop_last=False), epochs=1))
    (epoch,) = read_run(on_shards.output).epochs
    assert epoch["skipped"] == 3
    assert "3 images that cannot be read so far" in capsys.readouterr().out
