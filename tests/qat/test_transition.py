"""Transition-rate scheduling against the definition, computed without the optimizer or the class."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import lowbit
from lowbit import LowbitError, TransitionRate

LR, MOMENTUM, DECAY, FACTOR, MOMENTUM = 2.0, 0.9, 0.01, 0.002, 0.9


def network(bits: int = 3) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    prepared = lowbit.prepare(model, weights=bits, activations=bits, first_last=bits)
    return lowbit.calibrate(prepared, [torch.randn(32, 8)])


def loss(model: nn.Module, number: int) -> torch.Tensor:
    return model(torch.randn(32, 8, generator=torch.Generator().manual_seed(number))).square().mean()


def scheduled(model: nn.Module) -> tuple[torch.optim.Optimizer, TransitionRate]:
    optimizer = torch.optim.SGD(lowbit.parameter_groups(model, weight_decay=DECAY), lr=LR, momentum=MOMENTUM)
    return optimizer, TransitionRate(model, optimizer, FACTOR, momentum=MOMENTUM)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, rates: TransitionRate, number: int, of: int) -> None:
    rates.set_progress(number / of)
    optimizer.zero_grad()
    loss(model, number).backward()
    optimizer.step()


@pytest.mark.parametrize("bits", [2, 3])
def test_weights_move_at_the_rate_that_transitions_ask_for(bits: int) -> None:
    model, steps = network(bits), 25
    optimizer, rates = scheduled(model)
    layers = [model[0], model[3]]
    widths = [[-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]] * 2
    start = [float(layer.weight_quantizer.step) for layer in layers]
    velocity: list[torch.Tensor | None] = [None, None]
    u, k = [LR, LR], [0.0, 0.0]
    lowest = []
    for number in range(steps):
        before = [layer.weight.detach().clone() for layer in layers]
        optimizer.zero_grad()
        rates.set_progress(number / steps)
        loss(model, number).backward()
        gradients = [layer.weight.grad.clone() for layer in layers]
        optimizer.step()
        for i, layer in enumerate(layers):
            g = gradients[i] + DECAY * before[i]
            velocity[i] = g if velocity[i] is None else MOMENTUM * velocity[i] + g
            expected = before[i] - u[i] * velocity[i]
            torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-4, atol=1e-6)
            codes = [(w / start[i]).clamp(*widths[i]).round() for w in (before[i], layer.weight.detach())]
            k[i] = MOMENTUM * k[i] + (1 - MOMENTUM) * float((codes[0] != codes[1]).float().mean())
            wanted = FACTOR * math.sqrt(bits) * 0.5 * (1 + math.cos(math.pi * number / steps))
            u[i] = max(0.0, u[i] + LR * (wanted - k[i]))
            assert float(layer.weight_quantizer.step) == start[i]  # not learned on
        torch.testing.assert_close(rates.rates, torch.tensor(k, dtype=torch.float64), rtol=1e-5, atol=1e-9)
        lowest.append(min(u))
    assert min(lowest) < 0.7 * LR, lowest  # transitions did slow the weights down


def test_other_parameters_keep_the_schedule_of_the_optimizer() -> None:
    model = network()
    optimizer, rates = scheduled(model)
    before = copy.deepcopy(model.state_dict())
    for group in optimizer.param_groups:  # as a scheduler does it
        group["lr"] = 0.0
    step(model, optimizer, rates, 0, 10)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.weight", "3.weight"}


def test_it_goes_on_from_saved_state() -> None:
    whole = network()
    optimizer, rates = scheduled(whole)
    for number in range(4):
        step(whole, optimizer, rates, number, 8)
    again = network()
    again.load_state_dict(whole.state_dict())
    optimizer_again, rates_again = scheduled(again)
    optimizer_again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rates_again.load_state_dict(rates.state_dict())
    for number in range(4, 8):
        step(whole, optimizer, rates, number, 8)
        step(again, optimizer_again, rates_again, number, 8)
    for (name, value), other in zip(whole.state_dict().items(), again.state_dict().values()):
        assert torch.equal(value, other), name
    with pytest.raises(LowbitError, match="another network"):
        rates.load_state_dict({"rate": torch.zeros(3), "lr": torch.zeros(3)})


def test_removed_it_leaves_steps_to_be_learned() -> None:
    model = network()
    optimizer, rates = scheduled(model)
    quantizer = model[0].weight_quantizer
    assert not quantizer.raw_step.requires_grad
    rates.remove()
    assert quantizer.raw_step.requires_grad
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = model[0].weight.detach().clone()
    optimizer.zero_grad()
    loss(model, 0).backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before) and quantizer.raw_step.grad is not None


def test_what_it_cannot_schedule_is_refused() -> None:
    plain = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(LowbitError, match="no quantized weights"):
        TransitionRate(plain, torch.optim.SGD(plain.parameters(), lr=1.0))
    model = network()
    with pytest.raises(LowbitError, match="the weight of layer '0' is not trained by the optimizer"):
        TransitionRate(model, torch.optim.SGD(model[3].parameters(), lr=1.0))
