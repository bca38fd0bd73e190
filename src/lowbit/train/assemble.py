"""From a config to a network in training, its data and its optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

import lowbit
from lowbit import models
from lowbit.checksum import checksum
from lowbit.data import Splits, split_loaders
from lowbit.errors import LowbitError
from lowbit.processes import agreed
from lowbit.train.build import build_float, prepare, record, recorded
from lowbit.train.checks import check_classes, check_shape, check_start
from lowbit.train.config import TrainConfig
from lowbit.train.machine import loader_place, move
from lowbit.train.state import Origin, Saved
from lowbit.train.tasks import make_task
from lowbit.train.tracking import versions
from lowbit.train.trainer import Trainer


def assemble(
    config: TrainConfig, accelerator: Accelerator, saved: Saved | None, say: Callable[[str], None]
) -> tuple[Trainer, Splits, Origin]:
    """The network ready for its next epoch, its images, and what both are made from; writes nothing.

    Args:
        saved: what a run goes on from. Otherwise quantizers are started here, from training images.
        say: prints one line.

    Raises:
        LowbitError: weights or images that are unusable or don't fit, or are not those that the run was started with; on
            every process.
    """
    with agreed():
        check_start(config)
        # A checkpoint has all weights; only a teacher still needs those that training started from.
        own = config.model.without_weights() if saved and config.task != "distill" else config.model
        original = build_float(own)
        task = make_task(config, original, accelerator.device)
        model = prepare(original, config.quantization)
        splits = split_loaders(config.data, seed=config.seed, **loader_place(accelerator))
        train = splits.train
        check_classes(config, train.num_classes)
        for shape in {train.image_shape, splits.test.image_shape}:
            check_shape(config, original, shape)
        origin = _origin(config, original, splits, accelerator)
        if saved and saved.origin is not None:
            saved.origin.check(origin, config.data.path)
        if len(train) < config.accumulate:
            raise LowbitError(
                f"accumulate is {config.accumulate}, but an epoch has only {len(train)} batches: lower it, or data.batch_size"
            )
        if saved:
            models.load_weights(recorded(model, train.image_shape), saved.weights)
    move(model, accelerator.device, config.memory_format)
    if not saved and config.quantization is not None:
        lowbit.calibrate(model, itertools.islice(train, config.quantization.calibration_batches))
        if config.quantization.integer_only:
            lowbit.round_zero_points(model)
            _warn_unless_integer(model, train.image_shape, say)
    return Trainer(config, model, task, accelerator, say, saved.trainer if saved else None), splits, origin


def _origin(config: TrainConfig, original: nn.Module, splits: Splits, accelerator: Accelerator) -> Origin:
    return Origin(
        data=splits.digests,
        teacher=checksum("", original.state_dict()) if config.task == "distill" else None,
        versions={**versions(), "processes": str(accelerator.num_processes)},
        settings=record(config, may_change=True),
    )


def _warn_unless_integer(model: nn.Module, shape: tuple[int, ...], say: Callable[[str], None]) -> None:
    """Say before training what would be found after it. No error: ranges that are too wide may narrow in training."""
    device = next(model.parameters()).device
    try:
        lowbit.to_integer(model, torch.zeros(1, *shape, device=device))
    except LowbitError as error:
        say(f"warning: this network could not be exported as it starts: {error}")
