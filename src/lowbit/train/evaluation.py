"""Loss and accuracy on images: of a network, of a run's checkpoint, and of an integer network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils._pytree import tree_leaves, tree_map_only

from lowbit.data import Loader, eval_loader
from lowbit.errors import LowbitError
from lowbit.inputs import Inputs, batch_size, call, each
from lowbit.inputs import shapes as sample_shapes
from lowbit.integer.network import IntegerNetwork
from lowbit.processes import agreed, named
from lowbit.train.build import load
from lowbit.train.checkpoint import Which
from lowbit.train.checks import check_test, with_data
from lowbit.train.config import TrainConfig
from lowbit.train.machine import arranged, determinism, loader_place, make_accelerator, move
from lowbit.train.tasks import Classify, Task, evaluation_task


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Loader, accelerator: Accelerator, layout: torch.memory_format, task: Task | None = None
) -> tuple[float, float]:
    """(mean loss, accuracy in percent) over all samples of the loaders of all processes.

    The loss is that of the task, by default cross-entropy. It is not a number where any output is not finite, also one of
    which it would not depend; the accuracy is not a number where the task has none.
    """
    task = task or Classify()
    model.eval()
    finite = torch.ones((), dtype=torch.bool, device=accelerator.device)
    loss = torch.zeros((), device=accelerator.device)
    counts = torch.zeros(2, dtype=torch.int64, device=accelerator.device)
    most = int(accelerator.gather(torch.tensor([len(loader)], device=accelerator.device)).max())
    counted = True
    for inputs, targets in loader:
        with accelerator.autocast():
            outputs = call(model, each(partial(arranged, layout=layout), inputs))
        outputs = tree_map_only(Tensor, lambda x: x.float() if x.is_floating_point() else x, outputs)
        for part in tree_leaves(outputs):
            finite &= part.isfinite().all() if isinstance(part, Tensor) else True
        count = batch_size(inputs)
        loss += task.loss(outputs, inputs, targets) * count
        right = task.right(outputs, targets)
        counted = counted and right is not None
        counts[0] += 0 if right is None else right
        counts[1] += count
    # Another process may have a batch more, and takes this one's part of the weights for it.
    for _ in range(len(loader), most) if isinstance(model, FSDPModule) else ():
        call(model, inputs)
    loss = torch.where(finite, loss, torch.nan)
    correct, seen = accelerator.reduce(counts, "sum").tolist()
    return float(accelerator.reduce(loss, "sum")) / seen, 100 * correct / seen if counted else math.nan


def evaluate_run(
    folder: str | Path, *, checkpoint: Which = "best", data: str | None = None, allow_remote: bool = False
) -> tuple[float, float]:
    """(loss, accuracy in percent) of a run's checkpoint on the test images, of another data path where one is given.

    `allow_remote` lets it contact a URL that the run's config names as its data path.

    Raises:
        LowbitError: the folder holds no run or no checkpoint, the data is unusable or at a URL that is not allowed, or
            the network's outputs are not finite.
    """
    with named():
        with agreed():
            model, config = load(folder, checkpoint)
            config = with_data(config, data, allow_remote=allow_remote)
            accelerator = make_accelerator(config)
            test = eval_loader(config.data, **loader_place(accelerator))
            check_test(config, model, test)
        with determinism(config.deterministic):
            move(model, accelerator.device, config.memory_format)
            loss, accuracy = evaluate(model, test, accelerator, config.memory_format, evaluation_task(config))
        if not math.isfinite(loss):
            error = LowbitError(
                f"{folder} ({checkpoint}): the network's outputs are not finite; its training has diverged"
            )
            error.everywhere = True
            raise error
        return loss, accuracy


def evaluate_network(network: IntegerNetwork, data: str) -> tuple[float, float]:
    """(loss, accuracy in percent) of an integer network on test images, read as its file says (`about["images"]`).

    Raises:
        LowbitError: the file doesn't say it, the network is not a classifier of one image, or the data is unusable or of other
            classes or another shape.
    """
    with named():
        with agreed():
            config = _images_of(network, data)
            accelerator = make_accelerator(config)
            test = eval_loader(config.data, **loader_place(accelerator))
            _check_takes(network, test, data)
        return evaluate(_Reference(network), test, accelerator, torch.contiguous_format)


class _Reference(nn.Module):
    """An integer network where a module is wanted. It computes on the CPU."""

    def __init__(self, network: IntegerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor | None = None, **named: Tensor) -> Tensor:
        given: Inputs = named if images is None else images
        device = next(iter(given.values())).device if isinstance(given, Mapping) else given.device
        found = self.network(each(lambda x: x.cpu().float() if x.is_floating_point() else x.cpu(), given))
        assert isinstance(found, Tensor)  # of one output, see `_check_takes`
        return found.to(device)


def _images_of(network: IntegerNetwork, data: str) -> TrainConfig:
    images = network.metadata.get("images")
    if not isinstance(images, dict):
        raise LowbitError(
            "the network does not say what its images are read as (mean, size, …): export its run again, with "
            "`lowbit export --format lowbit`"
        )
    config = TrainConfig.from_dict({"data": {**images, "path": data}})
    size, shapes = config.data.image_size, list(network.graph.inputs.values())
    if size is not None and any(shape[1:] != (size, size) for shape in shapes):  # before images are made that large
        raise LowbitError(f"the network's file says that images are read at {size}x{size}, but it takes {shapes}")
    return config


def _check_takes(network: IntegerNetwork, test: Loader, data: str) -> None:
    graph = network.graph
    shapes = list(graph.inputs.values())
    wanted = {k: tuple(x.shape[1:]) for k, x in test.example.items()} if isinstance(test.example, Mapping) else None
    classes = [graph.by_name[name].shape_of() for name in graph.outputs]
    if (wanted is None and len(shapes) != 1) or len(classes) != 1 or len(classes[0]) != 1:
        raise LowbitError("the network is not a classifier of one image: it has no accuracy")
    takes = shapes[0] == test.image_shape if wanted is None else wanted == dict(graph.inputs)
    if not takes or (test.num_classes or 0) > classes[0][0]:
        raise LowbitError(
            f"{data}: images of {sample_shapes(test.example)} in {test.num_classes} classes, but the network takes "
            f"{', '.join('x'.join(map(str, shape)) for shape in shapes)} in {classes[0][0]}"
        )
