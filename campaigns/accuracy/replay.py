"""Training of small networks on an NVIDIA GPU without the time that it takes to launch kernels.

A step of a network for 32×32 images is hundreds of kernels of a few microseconds each. `ReplayedTrainer` runs the first
steps of a run as `Trainer` does, records one whole step of the optimizer as a CUDA graph, and replays that for the rest.
What changes from step to step (images, labels, learning rate, what a method anneals) lies in tensors that the graph reads.
The kernels are those of a step that is not compiled, and so are the losses: on an H200 those of three epochs of ResNet-8 at W2A2 were the
same to every digit printed, by LSQ and by LG-LSQ, in 1.1 instead of 3.0 s for 93 steps. Nothing is looked at during training (`lowbit.diagnosis.watch`).

It is for campaigns alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowbit.inputs import Inputs
from lowbit.train.trainer import Trainer

_WARM = 3
"""Steps that are run before one is recorded: they compile the quantizers' kernels and make the optimizer's state."""


class ReplayedTrainer(Trainer):
    """A `Trainer` whose steps are replayed wherever nothing has to be decided between them."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        config = self.config
        self.replayed = self.can_replay() and not (
            config.accumulate > 1 or config.grad_clip or config.ema or self.attached or config.compile
            or config.precision != "no" or self.on_step or config.optimizer.name not in ("sgd", "adam")
        )  # fmt: skip
        if not self.replayed:
            return
        if self.watch is not None:
            self.watch.remove()
            self.watch = None
        self.raw = self.optimizer.optimizer
        device = self.accelerator.device
        for group in self.raw.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
            group |= {"fused": True, "foreach": False} | ({"capturable": True} if "capturable" in group else {})
        self._warmed = 0
        self._replay: Callable[[], None] | None = None
        self._side = self.side_stream()

    def can_replay(self) -> bool:
        """Whether the device replays."""
        return self.accelerator.device.type == "cuda"

    def side_stream(self) -> Any:
        """The stream on which the first steps run, since what is recorded must not have run on the main one."""
        return torch.cuda.Stream()

    def warm(self, step: Callable[[], None]) -> None:
        """Run a step beside the main stream."""
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            step()
        torch.cuda.current_stream().wait_stream(self._side)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """What does again what the step does now, on the same memory; nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def _whole_step(self) -> None:
        self.raw.zero_grad(set_to_none=True)
        loss, self._count = self._step(self._inputs, self._targets)
        loss.backward()
        self.raw.step()
        self._loss = loss.detach()

    def _learn(self, inputs: Inputs, targets: Any) -> tuple[Tensor, Tensor | None]:
        if not self.replayed:
            return super()._learn(inputs, targets)
        if self._replay is not None:
            self._inputs.copy_(inputs)
            self._targets.copy_(targets)
            self._replay()
        elif self._warmed < _WARM:
            self._inputs, self._targets = inputs, targets
            self.warm(self._whole_step)
            self._warmed += 1
        else:
            self._inputs, self._targets = inputs.clone(), targets.clone()
            self._replay = self.record(self._whole_step)
            self._replay()
        return self._loss, self._count
