"""What a training loop needs to know of a prepared network: parameter groups, and the methods' moving parts."""

from __future__ import annotations

from torch import Tensor, nn

from lowbit._deprecated import renamed_in_module
from lowbit.layers.sites import quantizers


def parameter_groups(model: nn.Module, *, weight_decay: float, step_lr: float | None = None) -> list[dict]:
    """Parameter groups for any torch optimizer: everything with weight decay, steps and offsets without.

    A step whose method asks for decay (PACT's clip) stays with the weights. Parameters that do not require gradients
    are left out, and so are empty groups.

    Args:
        model: a prepared network.
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
    """Set what the methods anneal (ASR's k, MDE's δ, SSG's ratio) to its value when `fraction` of the training is done.

    Tensors change in place, so that a compiled network need not be compiled again.
    """
    for _, quantizer in quantizers(model):
        quantizer.set_progress(fraction)


def round_zero_points(model: nn.Module) -> nn.Module:
    """Round the zero point of every learned offset (LSQ+) to an integer from now on, in place; returns the model.

    An integer network has integer zero points only. Offsets stay learnable: training may go on with rounded zero
    points.
    """
    for _, quantizer in quantizers(model):
        quantizer.round_zero_point()
    return model


__getattr__ = renamed_in_module(__name__, {"snap_offsets": "round_zero_points"})
