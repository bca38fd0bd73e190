"""Small networks, trained a little, and how far their integer form agrees with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit.integer.graph import Node
from lowbit.integer.validate import validate
from lowbit.lowering.convert import convert, trained_runner
from lowbit.lowering.proof import Proof, trial, trial_inputs


def trained(model: nn.Module, x: torch.Tensor, **options) -> nn.Module:
    """Prepared, calibrated, with batch-norm statistics and parameters away from where they start."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.momentum = None
    model.train()
    for _ in range(3):
        model(x + 0.1 * torch.randn_like(x))
    prepared = lowbit.calibrate(lowbit.prepare(model, integer_only=True, **options), [x])
    return lowbit.round_zero_points(prepared).eval()


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def agreement(model: nn.Module, x: torch.Tensor | dict[str, torch.Tensor]) -> tuple[int, int]:
    """(codes compared, codes that differ) between the trained network and the integer one."""
    graph, traced = convert(model, x)
    network = lowbit.IntegerNetwork(graph)
    inputs = x if isinstance(x, dict) else {next(iter(graph.inputs)): x}
    mine, theirs = network.codes(x), trained_runner(model, graph, traced)(inputs).codes
    pairs = [(mine[name].int(), codes) for name, codes in theirs.items()]
    return sum(a.numel() for a, _ in pairs), sum(int((a != b).sum()) for a, b in pairs)


def caught(model: nn.Module, batch: dict[str, torch.Tensor], change: Callable[[Node], Node]) -> bool:
    """Whether the proof sees that one kind of node was converted otherwise."""
    graph, places = convert(model, batch)
    other = validate(replace(graph, nodes=tuple(change(node) for node in graph.nodes)))
    assert any(a is not b and type(a) is type(b) for a, b in zip(graph.nodes, map(change, graph.nodes)))
    return bool(trial(Proof(model, other, places), trial_inputs(other, batch)))


class Forward(nn.Module):
    """Two convolutions, a batch-norm and a linear layer, used as a function says."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def start(self, x):
    return F.relu(self.norm(self.first(x)))


def finish(self, x):
    return self.head(self.second(x).mean((2, 3)))
