"""What a training loop needs to know of a prepared network: parameter groups, and the methods' moving parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit.errors import LowbitError
from lowbit.layers.sites import quantized_layers, quantizers
from lowbit.quantizer.module import Quantizer


def parameter_groups(model: nn.Module, *, weight_decay: float, step_lr: float | None = None) -> list[dict]:
    """Parameter groups for any torch optimizer: everything with weight decay, steps and offsets without.

    A step whose method asks for decay (PACT's clip) stays with the weights. Parameters that do not require gradients
    are left out, and so are empty groups.

    Args:
        weight_decay: for the network's own parameters.
        step_lr: learning rate of steps and offsets; None is the optimizer's own.
    """
    steps: dict[int, Tensor] = {}
    for _, quantizer in quantizers(model):
        gradient = quantizer.method.step_gradient
        for parameter in (quantizer.raw_step, quantizer.offset):
            if parameter is not None and not (gradient is not None and gradient.decayed):
                steps[id(parameter)] = parameter
    groups = [
        {
            "params": [p for p in model.parameters() if p.requires_grad and id(p) not in steps],
            "weight_decay": weight_decay,
        },
        {"params": [p for p in steps.values() if p.requires_grad], "weight_decay": 0.0},
    ]
    if step_lr is not None:
        groups[1]["lr"] = step_lr
    return [group for group in groups if group["params"]]


def set_progress(model: nn.Module, fraction: float) -> None:
    """Set the methods' rounding parameters (ASR's k, MDE's δ) to their value when `fraction` of the training is done.

    Tensors change in place, so that a compiled network need not be compiled again.
    """
    for _, quantizer in quantizers(model):
        quantizer.set_progress(fraction)


def snap_offsets(model: nn.Module) -> nn.Module:
    """Make every learned offset (LSQ+) compute as its nearest integer zero point, in place; returns the model.

    An integer network has integer zero points only. Offsets stay learnable: training may go on with them snapped.
    """
    for _, quantizer in quantizers(model):
        quantizer.snap()
    return model


@dataclass
class _Pair:
    quantizer: Quantizer
    weight: Tensor


class Attachment:
    """What `attach` set up. `remove()` takes it off again; its state belongs into a checkpoint."""

    def __init__(self, pairs: list[_Pair], optimizer: torch.optim.Optimizer, memory: float) -> None:
        self._pairs, self._memory = pairs, memory
        # Per step: running means of (|∂L/∂s|/s)² and (‖∂L/∂w‖/‖w‖)², negative before the first measurement.
        device = pairs[0].weight.device if pairs else None
        self._running = torch.full((2, len(pairs)), -1.0, device=device)
        self._hook = optimizer.register_step_pre_hook(lambda *_: self._balance()) if pairs else None

    @torch.no_grad()
    def _balance(self) -> None:
        pairs = self._pairs
        step_gradients = [grad for p in pairs if (grad := p.quantizer.raw_step.grad) is not None]
        weight_gradients = [grad for p in pairs if (grad := p.weight.grad) is not None]
        if len(step_gradients) < len(pairs) or len(weight_gradients) < len(pairs):
            return
        now = torch.stack(
            [
                _norms(step_gradients) / _norms([p.quantizer.step for p in pairs]),
                _norms(weight_gradients) / _norms([p.weight for p in pairs]),
            ]
        ).square()
        self._running = torch.where(self._running < 0, now, self._memory * self._running + (1 - self._memory) * now)
        factor = (self._running[1] / self._running[0].clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
        torch._foreach_mul_(step_gradients, list(factor.unbind()))

    def state_dict(self) -> dict[str, Tensor]:
        return {"running": self._running.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["running"].shape != self._running.shape:
            raise LowbitError("the saved state of the step balancing belongs to another network or method")
        self._running = state["running"].to(self._running.device)

    def remove(self) -> None:
        if self._hook is not None:
            self._hook.remove()


def _norms(tensors: list[Tensor]) -> Tensor:
    """The norm of each tensor; of the whole one where processes hold parts of it."""
    return torch.stack(
        [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in torch._foreach_norm(tensors)]
    )


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, *, memory: float = 0.9) -> Attachment:
    """Hang onto the optimizer what the network's methods need around its steps; nothing for most methods.

    For a method with a balanced step gradient (SSG's magnitude; a reconstruction, methods.md §4): before every
    optimizer step the gradient of each weight's step is rescaled so that (|∂L/∂s|/s) / (‖∂L/∂w‖/‖w‖) stays near 1,
    the two relative gradients being root-mean-square running averages with the given memory.
    """
    pairs = [
        _Pair(layer.weight_quantizer, layer.weight)
        for _, layer in quantized_layers(model)
        if isinstance(layer.weight_quantizer, Quantizer)
        and layer.weight_quantizer.method.step_gradient is not None
        and layer.weight_quantizer.method.step_gradient.balanced
    ]
    return Attachment(pairs, optimizer, memory)
