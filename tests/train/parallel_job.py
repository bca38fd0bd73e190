"""Short trainings with the `Trainer` alone, as one process or as one of several: `torchrun parallel_job.py FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit.processes import end
from lowbit.quantizer.methods import METHODS, lg_lsq
from lowbit.quantizer.step import Balance
from lowbit.train import OptimizerConfig, QuantizationConfig, TrainConfig
from lowbit.train.build import prepare
from lowbit.train.evaluation import evaluate
from lowbit.train.machine import loader_place, make_accelerator
from lowbit.train.tasks import make_task
from lowbit.train.trainer import Trainer

BATCH, BATCHES = 16, 6
# Without MDE, whose gradient is not linear in the loss: half of it for each half of a batch is not that of the whole.
ASR = replace(lg_lsq(mde_delta=None, balance=None), name="test-asr")
# Not linear either, since each process measures its part of a batch.
BALANCED = replace(ASR.varied(balance=Balance()), name="test-balanced")

PLAIN = TrainConfig(
    quantization=QuantizationConfig(weights=3, activations=3),
    optimizer=OptimizerConfig(lr=0.05),
    epochs=1,
    compile=False,
)


def _low_bit(**changes: Any) -> QuantizationConfig:
    return replace(PLAIN.quantization, **changes)


ADAM = OptimizerConfig("adam", 1e-3)
# name: (batch-norm in the network, changes of the config)
VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "plain": (False, {}),
    "full precision": (False, {"quantization": None}),
    "synchronised batch-norm": (True, {"sync_batchnorm": True}),
    "accumulation, clipping, average": (False, {"accumulate": 2, "grad_clip": 0.5, "ema": 0.8, "optimizer": ADAM}),
    "bf16": (False, {"precision": "bf16"}),
    "recomputed": (True, {"sync_batchnorm": True, "grad_checkpointing": True}),
    "frozen, dampened": (False, {"quantization": _low_bit(method="test-asr", freezing=0.02, dampening=1e-2)}),
    "balanced": (False, {"quantization": _low_bit(method="test-balanced")}),
    "sharded, balanced": (False, {"shard": True, "quantization": _low_bit(method="test-balanced")}),
    "sharded": (True, {"shard": True, "sync_batchnorm": True, "grad_checkpointing": True}),
    "sharded, with everything": (
        False,
        {
            "shard": True, "accumulate": 2, "grad_clip": 0.5, "ema": 0.8, "optimizer": ADAM,
            "quantization": _low_bit(method="test-asr", granularity="channel"),
        },
    ),
}  # fmt: skip


class Block(nn.Module):
    """Two layers on one input, so that they share its quantizer."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.side = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8) if batch_norm else nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + self.side(x))


class Net(nn.Module):
    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(batch_norm), Block(batch_norm))
        self.last = nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(F.relu(self.first(x))).mean((2, 3))) * self.scale


class Part:
    """This process's equal part of each batch; for evaluation, every `world_size`-th image in batches of four."""

    def __init__(self, images: int, rank: int, world_size: int, train: bool) -> None:
        generator = torch.Generator().manual_seed(images)
        x, y = torch.randn(images, 3, 8, 8, generator=generator), torch.randint(5, (images,), generator=generator)
        if train:
            self.batches = [
                (a.chunk(world_size)[rank], b.chunk(world_size)[rank]) for a, b in zip(x.split(BATCH), y.split(BATCH))
            ]
        else:
            self.batches = list(zip(x[rank::world_size].split(4), y[rank::world_size].split(4)))

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        assert first == 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


def train(name: str) -> dict[str, Any]:
    """Calibrate, train one epoch, evaluate; what came of it."""
    added = {method.name: method for method in (ASR, BALANCED)}
    METHODS.update(added)
    try:
        return _train(name)
    finally:
        for method in added:
            del METHODS[method]


def _train(name: str) -> dict[str, Any]:
    batch_norm, changes = VARIANTS[name]
    config = replace(PLAIN, **changes)
    if not dist.is_initialized():
        config = replace(config, shard=False)
    accelerator = make_accelerator(config)
    place = loader_place(accelerator)
    place.pop("device")
    batches = Part(BATCH * BATCHES, train=True, **place)
    torch.manual_seed(0)
    net = Net(batch_norm)
    task = make_task(config, net, accelerator.device)
    model = prepare(net, config.quantization).to(memory_format=config.memory_format)
    if config.quantization is not None:
        lowbit.calibrate(model, batches)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = Trainer(config, model, task, accelerator, print)
    numbers = trainer.train_epoch(0, batches, lambda *_: None)
    # 9 images: five on the first of two processes, which makes one batch more.
    loss, accuracy = evaluate(trainer.network, Part(9, train=False, **place), accelerator, config.memory_format)
    network, rest = trainer.network_state(keep=True), trainer.state_dict(keep=True)
    again = prepare(Net(batch_norm), config.quantization)
    again.load_state_dict(network)
    restored = Trainer(config, again, task, accelerator, print, saved=rest)
    return {
        "start": start,
        "network": network,
        "rest": rest,
        "restored": (restored.network_state(keep=True), restored.state_dict(keep=True)),
        "train_loss": numbers["train_loss"],
        "test": (loss, accuracy),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, variant in enumerate(VARIANTS):
        outcome = train(variant)
        torch.save(outcome, Path(sys.argv[1]) / f"{number}.{dist.get_rank()}.pt")
    end(0)
