"""Loss and accuracy of a network on images, and of a run's checkpoint."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lowbit.data import Loader, eval_loader
from lowbit.errors import LowbitError
from lowbit.processes import agreed, named
from lowbit.train.build import load
from lowbit.train.checkpoint import Which
from lowbit.train.checks import check_test
from lowbit.train.machine import determinism, loader_place, make_accelerator, move


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Loader, accelerator: Accelerator, layout: torch.memory_format
) -> tuple[float, float]:
    """(mean cross-entropy, accuracy in percent) over all images of the loaders of all processes.

    The cross-entropy is not a number where any output is not finite, also one of which it would not depend.
    """
    model.eval()
    finite = torch.ones((), dtype=torch.bool, device=accelerator.device)
    loss = torch.zeros((), device=accelerator.device)
    counts = torch.zeros(2, dtype=torch.int64, device=accelerator.device)
    most = int(accelerator.gather(torch.tensor([len(loader)], device=accelerator.device)).max())
    for images, labels in loader:
        with accelerator.autocast():
            logits = model(images.contiguous(memory_format=layout)).float()
        finite &= logits.isfinite().all()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        counts[0] += (logits.argmax(1) == labels).sum()
        counts[1] += len(labels)
    # Another process may have a batch more, and takes this one's part of the weights for it.
    for _ in range(len(loader), most) if isinstance(model, FSDPModule) else ():
        model(images)
    loss = torch.where(finite, loss, torch.nan)
    right, seen = accelerator.reduce(counts, "sum").tolist()
    return float(accelerator.reduce(loss, "sum")) / seen, 100 * right / seen


def evaluate_run(folder: str | Path, *, checkpoint: Which = "best", data: str | None = None) -> tuple[float, float]:
    """(loss, accuracy in percent) of a run's checkpoint on the test images, of another data path where one is given.

    Raises:
        LowbitError: the folder holds no run or no checkpoint, the data is unusable, or the network's outputs are not
            finite.
    """
    with named():
        with agreed():
            model, config = load(folder, checkpoint)
            config = replace(config, data=replace(config.data, path=data or config.data.path))
            accelerator = make_accelerator(config)
            test = eval_loader(config.data, **loader_place(accelerator))
            check_test(config, model, test)
        with determinism(config.deterministic):
            move(model, accelerator.device, config.memory_format)
            loss, accuracy = evaluate(model, test, accelerator, config.memory_format)
        if not math.isfinite(loss):
            error = LowbitError(
                f"{folder} ({checkpoint}): the network's outputs are not finite; its training has diverged"
            )
            error.everywhere = True
            raise error
        return loss, accuracy
