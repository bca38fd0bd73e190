"""What the benchmarks run: the training step of one network on one batch of random data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit import models
from lowbit.models.networks import NETWORKS

FULL_PRECISION = "full precision"


def images(batch: int, size: int, device: str) -> Tensor:
    """[batch, 3, size, size] of normal noise, channels-last."""
    torch.manual_seed(0)
    return torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last)


def image_size(network: str) -> int:
    """Height and width of the images that the network was published with."""
    known = NETWORKS.get(network)
    return 224 if known is None else known.input_shape[-1]


def float_network(name: str, device: str) -> nn.Module:
    """The network in full precision with random weights, the same ones at every call, channels-last."""
    torch.manual_seed(0)
    return models.create(name).to(device, memory_format=torch.channels_last)


def network(name: str, method: str, bits: int, x: Tensor) -> nn.Module:
    """The network prepared at `bits` by `method` and calibrated on x; in full precision for `FULL_PRECISION`."""
    model = float_network(name, x.device.type)
    if method == FULL_PRECISION:
        return model
    return lowbit.calibrate(lowbit.prepare(model, weights=bits, activations=bits, method=method), [x])


def compiled_alone(function: Callable, *, fullgraph: bool = True, dynamic: bool | None = None) -> Callable:
    """The function compiled, as if no other had been.

    The compiler keeps what it made with a function's code, which closures of one definition share: each would check the
    others' conditions before its own, and from the ninth on be refused. A copy of the code has its own.
    """
    alone = FunctionType(function.__code__.replace(), function.__globals__, closure=function.__closure__)
    return torch.compile(alone, fullgraph=fullgraph, dynamic=dynamic)


class TrainingStep:
    """Forward, loss, backward and optimizer step; on a GPU under bfloat16 autocast.

    Args:
        model: gives logits for at least ten classes.
        x: a batch of images, on the model's device.
        compiled: forward and loss through `torch.compile`, the backward pass with them.
        fullgraph: whether a graph break is an error. Where it is not, every piece is compiled for its own shapes.
    """

    def __init__(self, model: nn.Module, x: Tensor, *, compiled: bool, fullgraph: bool = True) -> None:
        self.model, self.x = model.train(), x
        self.labels = torch.arange(len(x), device=x.device) % 10
        groups = lowbit.parameter_groups(model, weight_decay=1e-4)
        self.optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9)

        def loss() -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
                return F.cross_entropy(model(x), self.labels)

        self.forward = (
            compiled_alone(loss, fullgraph=fullgraph, dynamic=None if fullgraph else False) if compiled else loss
        )

    def __call__(self) -> None:
        self.clear()
        self.forward().backward()
        self.optimizer.step()

    def clear(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def given(self) -> Iterator[Tensor]:
        """What is there before the step and stays: parameters, buffers, the batch."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        yield from (self.x, self.labels)
