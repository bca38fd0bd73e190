"""Training of small networks on an NVIDIA GPU without the time that it takes to launch kernels.

A step of a network for 32×32 images is hundreds of kernels of a few microseconds each. `ReplayedTrainer` runs the first
steps of a run as `Trainer` does, records one whole step of the optimizer as a CUDA graph, and replays that for the rest.
What changes from step to step (images, labels, learning rate, what a method anneals) lies in tensors that the graph reads.
The kernels are those of the trainer's step, compiled or not, and so are the losses: uncompiled, on an H200, those of three epochs of
ResNet-8 at W2A2 were the same to every digit printed, by LSQ and by LG-LSQ, in 1.1 instead of 3.0 s for 93 steps. Sixteen runs at
once do 815 steps a second together. Nothing is looked at during training (`lowbit.diagnosis.watch`).

It is for campaigns alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from campaigns.accuracy.cell import without_seed
from lowbit.inputs import Inputs
from lowbit.train import TrainConfig
from lowbit.train.trainer import Trainer

_WARM = 3
"""Steps that are run before one is recorded: they compile the quantizers' kernels and make the optimizer's state."""


class ReplayedTrainer(Trainer):
    """A `Trainer` whose steps are replayed wherever nothing has to be decided between them."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        config = self.config
        self.replayed = self.can_replay() and getattr(self.model, "replayable", True) and not (
            config.accumulate > 1 or config.grad_clip or config.ema or self.attached
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

    def restart(self, config: TrainConfig, model: nn.Module, accelerator: Any) -> bool:
        """Begin another run of the same steps; False where the network is another."""
        mine, others = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (self.model, model))
        if {name: x.shape for name, x in mine.items()} != {name: x.shape for name, x in others.items()}:
            return False
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(others[name])
            for state in self.raw.state.values():
                for value in state.values():
                    if isinstance(value, Tensor):
                        value.zero_()
        self.config, self.accelerator = config, accelerator
        return True

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
        loss, self._count = self.step(self._inputs, self._targets)
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
            self._check_gradients()
            self._warmed += 1
        else:
            self._inputs, self._targets = inputs.clone(), targets.clone()
            self._replay = self.record(self._whole_step)
            self._replay()
        return self._loss, self._count


class Restarted:
    """Makes trainers as the loop asks for them: for a seed after another of one row the same again.

    Its step has been compiled and recorded. Everything that a run begins with is copied into it.
    """

    def __init__(self, make: type[ReplayedTrainer] = ReplayedTrainer) -> None:
        self._make, self._row, self._trainer = make, "", None

    def __call__(
        self, config: TrainConfig, model: nn.Module, task: Any, accelerator: Any, say: Any, *others: Any
    ) -> Any:
        saved, row = others[0], without_seed(config.recipe)
        known = self._trainer if saved is None and row == self._row else None
        if known is not None and known.replayed and known.restart(config, model, accelerator):
            return known
        self._trainer = None  # its memory is free before another one is made
        self._row, self._trainer = row, self._make(config, model, task, accelerator, say, *others)
        return self._trainer
