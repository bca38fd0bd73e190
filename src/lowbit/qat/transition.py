"""Transition-rate scheduling (TRS, ICCV 2025, arXiv 2404.19248): how many codes change a step is what is scheduled."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lowbit._deprecated import renamed_arguments
from lowbit.errors import LowbitError
from lowbit.layers.quantized import QuantizedLayer
from lowbit.qat.oscillation import learned_layers
from lowbit.quantizer.module import as_quantizer


@renamed_arguments(memory="momentum")
class TransitionRate:
    """Gives the weight of each layer a learning rate U of its own, at which its codes change as often as is wanted.

    Hangs onto `optimizer`. After each of its steps, k being the share of the layer's weights whose code that step
    changed, and R = λ·√bits·½(1 + cos π·fraction) the share wanted when `fraction` of the training is done:

        K ← m·K + (1 − m)·k        U ← max(0, U + η·(R − K))

    The next step moves the weight by U times the optimizer's update. U starts at the optimizer's learning rate, and η
    is that too. A schedule of the learning rate acts on the other parameters alone. Steps of weights are not learned
    on, since a code changes with them too.

    Args:
        model: a prepared and calibrated network.
        optimizer: the optimizer that trains it. Each quantized weight gets a parameter group of its own, so make its
            schedulers after this.
        factor: λ, of the rate at the start.
        momentum: m of the running means.

    Raises:
        LowbitError: no quantized weights, one without a step, or one that the optimizer does not train.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, factor: float = 5e-3, momentum: float = 0.99
    ) -> None:
        self._layers = list(learned_layers(model))
        if not self._layers:
            raise LowbitError("the model has no quantized weights whose transitions could be scheduled")
        self._momentum = momentum
        device = self._layers[0].weight.device
        initial = [float(_own_group(optimizer, layer)["lr"]) for layer in self._layers]
        self._lr = torch.tensor(initial, dtype=torch.float64, device=device)
        self._gain = self._lr.clone()
        self._rate = torch.zeros_like(self._lr)
        bits = [as_quantizer(layer.weight_quantizer).bits for layer in self._layers]
        self._wanted_first = factor * torch.tensor(bits, dtype=torch.float64, device=device).sqrt()
        self._wanted = self._wanted_first
        self._codes = [_codes(layer) for layer in self._layers]
        self._steps = [as_quantizer(layer.weight_quantizer).raw_step for layer in self._layers]
        self._steps = [step for step in self._steps if step.requires_grad]
        for step in self._steps:
            step.requires_grad_(False)
            step.grad = None
        self._hooks = (
            optimizer.register_step_pre_hook(lambda optimizer, *_: self._set_rates(optimizer)),
            optimizer.register_step_post_hook(lambda *_: self.update()),
        )

    @property
    def rates(self) -> Tensor:
        """K of each layer, in the order of `named_modules`."""
        return self._rate.clone()

    def set_progress(self, fraction: float) -> None:
        """Say how much of the training is done, before each step of the optimizer."""
        self._wanted = self._wanted_first * 0.5 * (1 + math.cos(math.pi * min(max(fraction, 0.0), 1.0)))

    def _set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        rates = {id(layer.weight): lr for layer, lr in zip(self._layers, self._lr.tolist())}
        for group in optimizer.param_groups:  # others than those made here, where the optimizer's state was loaded
            if len(group["params"]) == 1:
                group["lr"] = rates.get(id(group["params"][0]), group["lr"])

    @torch.no_grad()
    def update(self) -> None:
        """Count the codes that have changed, and set the rates; called after every optimizer step."""
        codes = [_codes(layer) for layer in self._layers]
        changed = torch.stack([(now != before).double().mean() for now, before in zip(codes, self._codes)])
        self._codes = codes
        self._rate.mul_(self._momentum).add_(changed, alpha=1 - self._momentum)
        self._lr.add_(self._gain * (self._wanted - self._rate)).clamp_(min=0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Its running averages, for a checkpoint."""
        return {"rate": self._rate.clone(), "lr": self._lr.clone()}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned; the network has the weights of that time already."""
        mine = self.state_dict()
        if saved.keys() != mine.keys() or any(
            saved[key].shape != value.shape or saved[key].dtype != value.dtype for key, value in mine.items()
        ):
            raise LowbitError("the saved state of the transition rates belongs to another network")
        self._rate.copy_(saved["rate"])
        self._lr.copy_(saved["lr"])

    def remove(self) -> None:
        """Stop: steps are learned on, and the weights' groups keep the learning rate that others give them."""
        for hook in self._hooks:
            hook.remove()
        for step in self._steps:
            step.requires_grad_(True)


def _codes(layer: QuantizedLayer) -> Tensor:
    return as_quantizer(layer.weight_quantizer).codes(layer.quantized_from()).to(torch.int8)


def _own_group(optimizer: torch.optim.Optimizer, layer: QuantizedLayer) -> dict:
    """The optimizer's group with the layer's weight alone, made from the group it was in."""
    for group in optimizer.param_groups:
        for place, parameter in enumerate(group["params"]):
            if parameter is layer.weight:
                own = {**group, "params": [group["params"].pop(place)]}
                optimizer.add_param_group(own)
                return optimizer.param_groups[-1]
    name = as_quantizer(layer.weight_quantizer).name
    raise LowbitError(f"{name} is not trained by the optimizer, so that its transitions cannot be scheduled")
