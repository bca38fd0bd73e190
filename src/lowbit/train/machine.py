"""What training runs on: its processes and their devices, and the same bits again on them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn

from lowbit.errors import LowbitError
from lowbit.train.config import TrainConfig


def make_accelerator(config: TrainConfig) -> Accelerator:
    """This process's part of the job, at the config's precision.

    Raises:
        LowbitError: the precision or so many processes do not work here, or accelerate is to divide the network itself.
    """
    # Both are shared by all Accelerators of a process; a second run may want another precision.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    launched = int(os.environ.get("WORLD_SIZE", 1))
    try:
        accelerator = Accelerator(
            mixed_precision=config.precision,
            gradient_accumulation_steps=config.accumulate,
            # Every process normalises by its own statistics or all by the same; the first's are never handed to others.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            # accelerate looks for accelerators only, unless it is told.
            cpu=launched > 1 and not torch.accelerator.is_available(),
        )
    except ValueError as error:
        raise LowbitError(f"precision {config.precision!r} does not work here: {error}") from error
    if accelerator.num_processes < launched:
        raise LowbitError(
            f"the launcher started {launched} processes, but this machine's {accelerator.device} can't work in several: "
            "set ACCELERATE_USE_CPU=true to train on the CPU"
        )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise LowbitError(
            f"accelerate is configured for {accelerator.distributed_type.value}: lowbit divides a network by its own "
            "config (--shard); launch with `accelerate launch --multi_gpu` or torchrun"
        )
    return accelerator


def loader_place(accelerator: Accelerator) -> dict[str, Any]:
    """Which part of the data is this process's, and where it goes, as loaders take it."""
    return {
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "device": accelerator.device,
    }


def move(model: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    """Bring a network to a device, in place, its weights laid out in memory as `layout` says."""
    # pyrefly: ignore[no-matching-overload]  # torch documents memory_format, but annotates no overload with it
    return model.to(device, memory_format=layout)


class Pauses:
    """When a checkpoint in the middle of an epoch is due: so many minutes after the last, as the first process's clock says.

    Args:
        minutes: between two; 0 for never.
    """

    EVERY = 20
    """Several processes agree on it once in so many steps, because agreeing takes time."""

    def __init__(self, minutes: float, accelerator: Accelerator) -> None:
        self.minutes, self.accelerator = minutes, accelerator
        self._steps = 0
        self.begin()

    def begin(self) -> None:
        """A checkpoint has been written."""
        self._last = time.monotonic()

    def due(self) -> bool:
        """Asked after every step, by all processes alike."""
        self._steps += 1
        if self.minutes == 0:
            return False
        passed = time.monotonic() - self._last >= 60 * self.minutes
        if self.accelerator.num_processes == 1:
            return passed
        if self._steps % self.EVERY:
            return False
        mine = torch.tensor([float(passed and self.accelerator.is_main_process)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(mine, "sum"))


def arranged(x: Tensor, layout: torch.memory_format) -> Tensor:
    """A batch of inputs, laid out in memory as the network's weights are where it is one of images [B, C, H, W]."""
    return x.contiguous(memory_format=layout if x.dim() == 4 else torch.contiguous_format)


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Within: the same bits again on the same machine, also on an accelerator."""
    if not wanted:
        yield
        return
    deterministic: Any = torch.utils.deterministic  # torch gives the module its setting while it runs
    on, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, fill = torch.backends.cudnn.benchmark, deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(on, warn_only=warn)
        torch.backends.cudnn.benchmark = cudnn
        deterministic.fill_uninitialized_memory = fill
