"""What a step of a training takes, measured on a small one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import lowbit
from lowbit.inputs import Inputs, each
from lowbit.saved import saved_bytes
from lowbit.train.config import TrainConfig
from lowbit.train.machine import arranged, move
from lowbit.train.recompute import recompute_activations
from lowbit.train.tasks import kind_of, make_task
from lowbit.train.trainer import make_optimizer

_FEW = 2  # images; batch-norm needs two
_IMAGES = 3
_IMAGES_ON_ACCELERATOR = 16
_PATIENCE = 3.0  # seconds after which the first step is not repeated to warm up


@dataclass(frozen=True)
class StepCost:
    """What one training step takes: bytes, and seconds for an image forward and backward."""

    device: str
    images: int
    """Images it was measured with."""
    weights: int
    """Parameters and buffers, also of the average and the teacher where there are."""
    gradients: int
    optimizer: int
    kept: int
    """What autograd keeps for the backward pass whatever the batch, such as quantized weights."""
    kept_per_image: int
    """The same for each image, and its pixels."""
    seconds: float

    def activations(self, batch: int) -> int:
        """Bytes kept for the backward pass of `batch` images."""
        return self.kept + batch * self.kept_per_image

    def memory(self, batch: int) -> int:
        """Bytes of a step with `batch` images in one process, without what operations need in passing."""
        return self.weights + self.gradients + self.optimizer + self.activations(batch)


@torch.compiler.set_stance("force_eager")
def measure_step(
    config: TrainConfig, original: nn.Module, model: nn.Module, example: Inputs, target: Any = None
) -> StepCost:
    """Take a training step or two on a few random images, or on one sample several times, and measure.

    On the device that training would use. Nothing is compiled, also no quantizers: that takes longer than the steps.
    Quantizers that are not initialized yet are, from the random images, and the weights change: give copies.

    Args:
        original: the full-precision network, or the teacher where that is another one.
        model: the prepared network.
        example: inputs of one sample, see `shapes.example_inputs`; of a `target` its own values, else random ones are taken.
        target: what its data gives beside it; by default the number of a class.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    count = _IMAGES if device.type == "cpu" else _IMAGES_ON_ACCELERATOR
    generator = torch.Generator().manual_seed(config.seed)

    def several(x: Tensor) -> Tensor:
        if target is None and x.is_floating_point():
            return arranged(torch.randn(count, *x.shape[1:], generator=generator).to(device), config.memory_format)
        return arranged(x.expand(count, *x.shape[1:]).clone().to(device), config.memory_format)

    inputs = each(several, example)
    targets = torch.zeros(count, dtype=torch.int64, device=device) if target is None else tree_map(several, target)
    tensors = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    move(model, device, config.memory_format)
    if config.quantization is not None:
        lowbit.calibrate(model, [inputs])
    if config.grad_checkpointing:
        recompute_activations(model)
    # What a teacher has learned makes no difference here.
    itself = replace(config.distillation, teacher=None, init=None, pretrained=False)
    taught = replace(config, model=replace(config.model, init=None, pretrained=True), distillation=itself)
    task = make_task(taught, original, device)
    optimizer = make_optimizer(config.optimizer, model)
    autocast = torch.autocast(
        device.type, {"fp16": torch.float16}.get(config.precision, torch.bfloat16), enabled=config.precision != "no"
    )
    model.train()

    def forward(number: int) -> Tensor:
        with autocast:
            few_targets = tree_map(lambda y: y[:number], targets)
            return task(model, each(lambda x: x[:number], inputs), few_targets)[0]

    given = [*model.parameters(), *model.buffers(), *tensors]
    few, all_ = (saved_bytes(lambda number=number: forward(number), given) for number in (_FEW, count))
    kept_per_image = (all_ - few) // (count - _FEW)
    for _ in range(2):
        optimizer.zero_grad()
        _wait(device)
        began = time.monotonic()
        forward(count).backward()
        _wait(device)
        seconds = time.monotonic() - began
        if seconds > _PATIENCE:
            break
    optimizer.step()
    weights = _bytes(model.parameters()) + _bytes(model.buffers())
    return StepCost(
        device=str(device),
        images=count,
        weights=weights * (1 if config.ema is None else 2)
        + (_bytes([*original.parameters(), *original.buffers()]) if kind_of(config.task).has_teacher else 0),
        gradients=_bytes(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
        optimizer=_bytes(v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)),
        kept=few - _FEW * kept_per_image,
        kept_per_image=kept_per_image + sum(x.untyped_storage().nbytes() for x in tensors) // count,
        seconds=seconds / count,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
