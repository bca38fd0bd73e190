"""Whether config, network and images fit together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lowbit.data import Loader
from lowbit.data.own import is_own
from lowbit.errors import LowbitError
from lowbit.inputs import Inputs, call, each, shapes
from lowbit.layers.modes import evaluation
from lowbit.train.config import TrainConfig
from lowbit.train.distillation import DistillationConfig
from lowbit.train.tasks import TASKS, kind_of


def with_data(config: TrainConfig, path: str | None, *, allow_remote: bool) -> TrainConfig:
    """The config of a run, perhaps somebody else's, with the data at `path`, or where the config has it.

    Raises:
        LowbitError: the config has it at a URL, and that is not allowed.
    """
    if path is None and "://" in config.data.path and not allow_remote:
        raise LowbitError(
            f"the run's images are at {config.data.path!r}, which would be contacted: allow it with --allow-remote, or "
            "give images that are here with --data"
        )
    return replace(config, data=replace(config.data, path=path or config.data.path))


def check_start(config: TrainConfig) -> None:
    """Refuse a network at low bits that starts from nothing, and a reconstruction of one that was at low bits before."""
    if config.quantization is not None and config.quantization.start is not None and kind_of(config.task).blockwise:
        raise LowbitError(
            f"task {config.task}: the target is the network in full precision, but quantization.start (--start) is a run at "
            "low bits: give model.init (--init) alone"
        )
    if config.quantization is not None and not config.model.trained and not config.model.from_scratch:
        raise LowbitError(
            f"{config.model.name} would start at low bits from random weights: give trained ones (--init FILE or the "
            "folder of a run in full precision; --model.pretrained where its library has them), or "
            "--model.from-scratch if random ones are meant"
        )


def check_classes(config: TrainConfig, num_classes: int | None, *, fewer: bool = False) -> None:
    """Refuse data of more classes than the network's, and of `fewer` where those may stand for others.

    Data or networks without classes have none to be compared.

    Raises:
        LowbitError: the numbers don't fit.
    """
    wanted = config.model.num_classes
    if wanted is None or num_classes is None or not kind_of(config.task).takes_classes:
        return
    if num_classes > wanted or (num_classes < wanted and not fewer):
        raise LowbitError(
            f"{config.data.path}: {num_classes} classes, but the network has {wanted} (model.num_classes); give data with "
            f"as many, or train with --model.num-classes {num_classes}"
        )


@torch.no_grad()
def check_shape(config: TrainConfig, network: nn.Module, example: Inputs, *, name: str | None = None) -> None:
    """Refuse inputs that the network cannot take, and outputs that are not as many as classes.

    Args:
        example: inputs of one sample, [1, …].
        name: what messages call the network; None: its name in the config.

    Raises:
        LowbitError: they do not go through it, or its output does not fit the task.
    """
    name = name or config.model.name
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    try:
        with evaluation(network):
            outputs = call(network, each(lambda x: x.to(device), example))
    except Exception as error:  # networks refuse in their own ways, often in a layer far behind the input
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LowbitError(
            f"{name} does not take images of {shapes(example)} ({reason}): set data.channels and "
            "data.image_size to what it takes"
            if not is_own(config.data.path)
            else f"{name} does not take inputs of {shapes(example)} ({reason}), which {config.data.path} gives"
        ) from error
    classes = config.model.num_classes
    if classes is None or not kind_of(config.task).gives_classes:
        return
    found = tuple(outputs.shape[1:]) if isinstance(outputs, Tensor) else type(outputs).__name__
    if found != (classes,):
        raise LowbitError(
            f"{name} has an output of shape {found} for one sample, but there are {classes} classes: give a network "
            "with as many outputs (your own is told them where it takes num_classes), or another --task"
        )


def check_teacher(config: TrainConfig, teacher: nn.Module | None, example: Inputs) -> None:
    """Refuse a teacher where nobody is taught, and one that does not take the inputs or has another number of outputs.

    Args:
        teacher: looked at only where the config names another network than the trained one.

    Raises:
        LowbitError: it doesn't fit.
    """
    if config.distillation != DistillationConfig() and config.task in TASKS and not kind_of(config.task).has_teacher:
        raise LowbitError(f"task {config.task} has no teacher, but distillation is set: give --task distill")
    if config.distillation.teacher is not None and teacher is not None:
        check_shape(config, teacher, example, name=f"the teacher {config.distillation.teacher}")


def check_test(config: TrainConfig, network: nn.Module, test: Loader) -> None:
    """Refuse test images of other classes or another shape than the network's, where training images don't tell.

    Raises:
        LowbitError: they don't fit.
    """
    # Where classes are numbered in the order of their names, one that is missing shifts the numbers of others.
    check_classes(config, test.num_classes, fewer=test.class_names is None)
    check_shape(config, network, test.example)
