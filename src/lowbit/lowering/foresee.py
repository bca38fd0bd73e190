"""What a prepared network will lack when it is converted: found before it is trained."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx

from lowbit.errors import LowbitError
from lowbit.layers.function import QuantizedFunction
from lowbit.layers.quantized import QuantizedLayer
from lowbit.lowering.convert import Converter
from lowbit.lowering.shapes import named_examples, shapes_of
from lowbit.quantizer.module import Quantizer


def check_convertible(model: fx.GraphModule, example_input: Any) -> None:
    """Refuse what `convert` would refuse of a network's operations once it is trained.

    The network is converted on steps that stand for those it will have: whether an operation has an integer form
    depends on how it is called and on shapes alone.

    Args:
        model: prepared for integers; it need not be calibrated, and is not changed.
        example_input: a batch of inputs, as `named_examples` takes them.

    Raises:
        LowbitError: naming every such operation, its class, its place and what to do.
    """
    shapes = shapes_of(model, named_examples(model, example_input))
    own = {id(each) for module in model.modules() if isinstance(module, Quantizer) for each in module.parameters()}
    trial = copy.deepcopy(model, {id(each): each for each in model.parameters() if id(each) not in own})
    inputs = torch.tensor([0.0, 1.0], device=next(model.parameters()).device)
    for module in trial.modules():
        if isinstance(module, QuantizedLayer) and isinstance(module.weight_quantizer, Quantizer):
            weight = _some_of(module.used_weight().detach(), module.weight_quantizer)
            module.weight_quantizer.initialize(weight if bool((weight != 0).any()) else torch.ones_like(weight))
        if isinstance(module, QuantizedFunction):
            module.parameter_quantizer.initialize(torch.ones(module.shape, device=inputs.device))
    for module in trial.modules():
        if isinstance(module, Quantizer):
            module.initialize(inputs)
    nodes = dict(zip(model.graph.nodes, trial.graph.nodes))
    refused: list[str] = []
    Converter(trial, {nodes[node]: shape for node, shape in shapes.items()}, refused).graph()
    if refused:
        raise LowbitError("these operations have no integer form:\n  " + "\n  ".join(dict.fromkeys(refused)))


def _some_of(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """The weight, or every so many of its elements where there are millions with one step."""
    every = weight.numel() >> 20
    return weight.flatten()[::every] if every > 1 and quantizer.raw_step.numel() == 1 else weight
