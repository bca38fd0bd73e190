"""From a config to a network in training, its data and its optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from accelerate import Accelerator
from torch import nn

import lowbit
from lowbit import models
from lowbit.checksum import checksum
from lowbit.data import DataSet, Splits
from lowbit.errors import LowbitError
from lowbit.inputs import Inputs, each
from lowbit.processes import agreed
from lowbit.train.blockwise import BlockwiseTrainer
from lowbit.train.build import build_float, go_on_from, prepare, record, recorded
from lowbit.train.checks import check_classes, check_shape, check_start, check_teacher
from lowbit.train.config import TrainConfig
from lowbit.train.machine import loader_place, move
from lowbit.train.state import Origin, Saved
from lowbit.train.tasks import kind_of, make_task
from lowbit.train.tracking import versions
from lowbit.train.trainer import OnStep, Trainer


def assemble(
    config: TrainConfig,
    data: DataSet,
    accelerator: Accelerator,
    saved: Saved | None,
    say: Callable[[str], None],
    on_step: OnStep | None = None,
) -> tuple[Trainer, Splits, Origin]:
    """The network ready for its next epoch, its images, and what both are made from; writes nothing.

    Args:
        data: of the config.
        saved: the checkpoint that a run continues from. Without one quantizers are initialized here, from training images.
        say: prints one line.
        on_step: called before every batch.

    Raises:
        LowbitError: weights or images that are unusable or don't fit, or are not those that the run was started with; on
            every process.
    """
    with agreed():
        check_start(config)
        # A checkpoint has all weights; only a teacher still needs those that training started from.
        teaches = kind_of(config.task).has_teacher and config.distillation.teacher is None
        own = config.model.without_weights() if saved and not teaches else config.model
        original = build_float(own)
        task = make_task(config, original, accelerator.device)
        model = prepare(original, config.quantization)
        splits = data.loaders(seed=config.seed, **loader_place(accelerator))
        train = splits.train
        check_classes(config, train.num_classes)
        for example in {loader.image_shape: loader.example for loader in (train, splits.test)}.values():
            check_shape(config, original, example)
            check_teacher(config, task.teacher, example)
        # A task of one's own that has one need not say which: then it is the network itself.
        teacher = original if task.teacher is None and kind_of(config.task).has_teacher else task.teacher
        origin = _origin(config, teacher, splits, accelerator)
        if saved and saved.origin is not None:
            saved.origin.check(origin, config.data.path)
        if len(train) < config.accumulate:
            raise LowbitError(
                f"accumulate is {config.accumulate}, but an epoch has only {len(train)} batches: lower it, or data.batch_size"
            )
        if saved:
            models.load_weights(recorded(model, train.example), saved.weights)
        elif config.quantization is not None and config.quantization.start is not None:
            alike = go_on_from(recorded(model, train.example), config.quantization, config.quantization.start)
            say(f"from the weights of {config.quantization.start}{', and its quantizers' if alike else ''}")
    move(model, accelerator.device, config.memory_format)
    if not saved and config.quantization is not None:
        lowbit.calibrate(model, itertools.islice(train, config.quantization.calibration_batches))
        if config.quantization.integer_only:
            lowbit.round_zero_points(model)
            _warn_unless_integer(model, train.example, say)
    kind = BlockwiseTrainer if kind_of(config.task).blockwise else Trainer
    trainer = kind(config, model, task, accelerator, say, saved.trainer if saved else None, on_step)
    return trainer, splits, origin


def _origin(config: TrainConfig, teacher: nn.Module | None, splits: Splits, accelerator: Accelerator) -> Origin:
    return Origin(
        data=splits.digests,
        teacher=None if teacher is None else checksum("", teacher.state_dict()),
        versions={**versions(), "processes": str(accelerator.num_processes)},
        settings=record(config, may_change=True),
    )


def _warn_unless_integer(model: nn.Module, example: Inputs, say: Callable[[str], None]) -> None:
    """Say before training what would be found after it. No error: ranges that are too wide may narrow in training."""
    device = next(model.parameters()).device
    try:
        lowbit.to_integer(model, each(lambda x: x.to(device), example))
    except LowbitError as error:
        say(f"warning: this network could not be exported as it starts: {error}")
