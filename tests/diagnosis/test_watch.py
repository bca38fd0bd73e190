"""What is logged of quantizers during training: its numbers against a loop that keeps everything, when it looks, and its price."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit.diagnosis.watch import APART, LOOKS, WINDOW, Watch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


def network(**settings) -> nn.Module:
    torch.manual_seed(0)
    return lowbit.calibrate(lowbit.prepare(Net(), weights=2, activations=3, **settings), [torch.randn(64, 6)])


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:2"])
def test_a_look_against_everything_kept(granularity):
    model = network(granularity=granularity)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    watch = Watch(model, optimizer)
    watch.begin(0, 100, 1)
    x, y = torch.randn(64, 6), torch.randint(4, (64,))
    layer, quantizer = model.b, model.b.weight_quantizer
    codes = [quantizer.codes(layer.weight).long()]
    first = {}
    for i in range(WINDOW):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if i == 0:
            step, gradient = quantizer.step.clone(), quantizer.raw_step.grad.clone()
            relative = float(layer.weight.grad.norm() / layer.weight.detach().norm())
            first = {"step": float(step.mean()), "gradient": float(gradient.norm() / quantizer.raw_step.norm())}
        optimizer.step()
        codes.append(quantizer.codes(layer.weight).long())
    (look,) = watch.take()
    assert (look["epoch"], look["step"]) == (0, WINDOW) and watch.take() == []
    seen = look["quantizers"]["b.weight_quantizer"]
    changes = [(after - before) for before, after in pairwise(codes)]
    flipped = torch.zeros_like(codes[0], dtype=torch.bool)
    for place in torch.cartesian_prod(*map(torch.arange, codes[0].shape)).tolist():
        signs = [int(change[tuple(place)].sign()) for change in changes if int(change[tuple(place)])]
        flipped[tuple(place)] = any(a == -b for a, b in pairwise(signs))
    assert flipped.any() and any(change.any() for change in changes)
    assert seen["changed"] == pytest.approx(float(torch.stack([c != 0 for c in changes]).double().mean()), rel=1e-3)
    assert seen["oscillating"] == pytest.approx(float(flipped.double().mean()), rel=1e-3)
    assert seen["step"] == pytest.approx(first["step"], rel=1e-3) and seen["moved"] == pytest.approx(1)
    assert seen["gradient"] == pytest.approx(first["gradient"], rel=1e-3)
    assert seen["pace"] == pytest.approx(first["gradient"] / relative, rel=1e-3)
    x_hat = quantizer(layer.weight).detach()
    assert seen["error"] == pytest.approx(
        float((x_hat - layer.weight).detach().norm() / layer.weight.detach().norm()), rel=1e-3
    )
    assert set(look["quantizers"]["b.input_quantizer"]) == {"step", "moved", "gradient"}


def taken(
    watch: Watch, optimizer: torch.optim.Optimizer, epochs: range, steps: int, whole: int
) -> list[tuple[int, int]]:
    looks = []
    for epoch in epochs:
        watch.begin(epoch, steps, whole)
        for _ in range(steps):
            optimizer.step()
        looks += [(look["epoch"], look["step"]) for look in watch.take()]
    return looks


@pytest.mark.parametrize(("steps", "epochs"), [(24, 10), (70, 3), (300, 40)])
def test_when_it_looks(steps, epochs, monkeypatch):
    monkeypatch.setattr("lowbit.diagnosis.watch._Look.numbers", lambda self: {})
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    looks = taken(Watch(model, optimizer), optimizer, range(epochs), steps, epochs)
    places = [step for _, step in looks]
    assert 2 <= len(looks) <= LOOKS + 1
    assert min(b - a for a, b in pairwise(places)) >= APART - WINDOW
    assert places[-1] > steps * epochs / 2
    # A run that goes on looks where one that was never interrupted does.
    again = taken(Watch(model, optimizer), optimizer, range(1, epochs), steps, epochs)
    assert again[-3:] == looks[-3:]


def test_it_changes_nothing():
    runs = []
    for watched in (True, False):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        watch = Watch(model, optimizer) if watched else None
        if watch:
            watch.begin(0, 8, 1)
        generator = torch.Generator().manual_seed(0)
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.randn(16, 6, generator=generator)).square().sum().backward()
            optimizer.step()
        runs.append({name: value.clone() for name, value in model.state_dict().items()})
        if watch:
            assert watch.take()
            watch.remove()
            optimizer.step()
            assert watch.take() == []
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_methods_without_learned_steps():
    model = network(method="dorefa")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer)
    watch.begin(0, 10, 1)
    for _ in range(WINDOW):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().sum().backward()
        optimizer.step()
    (look,) = watch.take()
    assert set(look["quantizers"]["b.weight_quantizer"]) == {"changed", "oscillating", "error"}
