"""Runs on every kind of data, stopped in the middle of an epoch and gone on with: `torchrun midway_job.py FOLDER`, or one process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from tests.data.images import write_parquet
from tests.data.shards import digit_files, write_shard
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit.report
from lowbit.data import index_shards
from lowbit.processes import end, rank
from lowbit.report import read_run
from lowbit.train import DataConfig, ModelConfig, OptimizerConfig, QuantizationConfig, TrainConfig, run
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.machine import Pauses

SOURCES = ("memory", "folder", "parquet", "shards", "own")


class Dropped(nn.Module):
    """[B, 1, 8, 8] to [B, 10], with dropout, whose masks are random, and batch-norm, whose statistics are each process's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3, stride=2), nn.Linear(72, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.norm(self.first(x))), 0.2, self.training)
        return self.last(F.relu(self.second(x)).flatten(1))


def own() -> dict[str, list]:
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, digits.target
    return {
        name: [(x[i], int(y[i])) for i in range(*part)]
        for name, part in {"train": (0, 192), "test": (192, 240)}.items()
    }


def write(folder: Path) -> None:
    """192 and 48 digits in every layout."""
    files = digit_files()[:240]
    for split, part in (("train", files[:192]), ("test", files[192:])):
        for number, (image, label) in enumerate(part):
            place = folder / "folder" / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.png").write_bytes(image)
        write_parquet(folder / "parquet" / f"{split}.parquet", *zip(*part), row_group_size=40)
        samples = [{"png": image, "cls": str(label).encode()} for image, label in part]
        for number in range(3):
            write_shard(folder / "shards" / f"{split}-{number}.tar", samples[number::3])
    index_shards(folder / "shards")


def configs(folder: Path) -> Iterator[TrainConfig]:
    config = TrainConfig(
        model=ModelConfig(name="tests.train.midway_job:Dropped", num_classes=10, from_scratch=True),
        quantization=QuantizationConfig(weights=3, activations=3, method="lsq+", calibration_batches=2, balance=1.0),
        optimizer=OptimizerConfig(lr=0.02), epochs=2, compile=False, checkpoint_minutes=0.0, accumulate=2,
    )  # fmt: skip
    images = DataConfig(
        "", batch_size=16, eval_batch_size=20, channels=1, mean=(0.3,), std=(0.35,), image_size=8, workers=0
    )
    for source in SOURCES:
        data = replace(
            images,
            path=str(folder / source) if source in ("folder", "parquet", "shards") else "tests.train.midway_job:own",
            augment="imagenet",
            workers=2 if source in ("folder", "shards") else 0,
            shuffle_buffer=200,
        )
        if source == "memory":
            data = replace(images, path=str(folder / "folder"), augment="cifar", workers=0)
        yield replace(config, data=data, recipe=source, output=str(folder / "runs" / source))


def tensors(config: TrainConfig) -> dict[str, Tensor]:
    last = Checkpoints(Path(config.output)).folder / "final"
    return load_file(last / "model.safetensors") | load_file(last / "training.safetensors")


def curve(config: TrainConfig) -> list[dict]:
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in read_run(config.output).epochs]


def check(config: TrainConfig, at: float, batches: int) -> None:
    """Stop when `at` epochs are done, go on from `batches` of the epoch, and compare with a run that was not stopped."""
    whole = replace(config, output=f"{config.output}-whole")
    run(whole)

    def stop(trainer: object, epochs_done: float) -> None:
        if epochs_done >= at:
            raise KeyboardInterrupt

    stopped = replace(config, checkpoint_minutes=1e-9)
    try:
        run(stopped, on_step=stop)
    except KeyboardInterrupt:
        pass
    done = Checkpoints(Path(config.output)).training_state()["progress"]
    assert (done["epochs_done"], done["batches_done"]) == (int(at), batches), done
    seen = []
    run(stopped, resume=True, on_step=lambda trainer, epochs_done: seen.append(epochs_done))
    assert seen[0] == int(at) + batches / 12, seen[0]
    if rank() == 0:
        expected, found = tensors(whole), tensors(config)
        assert expected.keys() == found.keys()
        assert [name for name in expected if not expected[name].equal(found[name])] == [], config.recipe
        assert curve(whole) == curve(config)


if __name__ == "__main__":
    torch.set_num_threads(1)
    lowbit.report.plot_run = lambda folder: None
    Pauses.EVERY = 2
    for number, each in enumerate(configs(Path(sys.argv[1]))):
        # 12 batches are six steps of the optimizer; two processes agree after every second one.
        check(each, *((0.8, 8), (1.8, 8))[number % 2])
    print("all went on to the same bits", flush=True)
    end(0)
