"""Gradients of a normalization of what hardly varies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowbit
from lowbit.quantizer.variation import weakened


def test_the_gradient_is_weakened_where_rounding_is_all_the_variation():
    x = torch.tensor([[0.0, 2.0], [3.0, 3.0], [5.0, 5.2], [0.0, 0.0]], requires_grad=True)  # variances 1, 0, 0.01, 0
    y = weakened(x, torch.tensor(0.04), (4, 2), (1,))
    assert torch.equal(y, x)
    y.backward(torch.ones_like(y))
    assert torch.allclose(x.grad, torch.tensor([[1.0], [0.0], [0.25], [0.0]]).expand(4, 2), atol=1e-4)


def test_without_a_mean_it_is_the_mean_square():
    x = torch.tensor([[3.0, 3.0], [0.1, 0.1], [0.0, 0.0]], requires_grad=True)
    weakened(x, torch.tensor(0.04), (3, 2), (1,), mean=False).sum().backward()
    assert torch.allclose(x.grad[:, 0], torch.tensor([1.0, 0.25, 0.0]), atol=1e-6)


class Deep(nn.Module):
    """Batch-norm after batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)) for _ in range(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def test_gradients_do_not_explode_through_batch_norms_of_what_is_equal():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    prepared = lowbit.prepare(Deep(), weights=4, activations=4, integer_only=True)
    lowbit.calibrate(prepared, [x]).train()
    same = torch.zeros(8, 3, 8, 8)  # so that every sample is the others, everywhere
    nn.functional.cross_entropy(prepared(same), torch.arange(8) % 4).backward()
    assert max(float(p.grad.norm()) for p in prepared.parameters() if p.grad is not None) < 100
    torch.optim.SGD(prepared.parameters(), lr=1e-3).step()
    lowbit.to_integer(prepared.eval(), x)


class Tokens(nn.Module):
    def __init__(self, norm) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv1d(3, 8, 1), norm

    def forward(self, x):
        return self.norm(self.layer(x).transpose(1, 2)).transpose(1, 2)


NORMS = {
    "batch": lambda: nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8)),
    "group": lambda: nn.Sequential(nn.Conv1d(3, 8, 1), nn.GroupNorm(2, 8)),
    "instance": lambda: nn.Sequential(nn.Conv1d(3, 8, 1), nn.InstanceNorm1d(8, affine=True)),
    "layer": lambda: Tokens(nn.LayerNorm(8)),
    "RMS": lambda: Tokens(nn.RMSNorm(8)),
    "L2": lambda: Tokens(lambda x: nn.functional.normalize(x, dim=-1)),
}


def prepared(norm: str, x: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = NORMS[norm]()
    layer = next(each for each in model.modules() if isinstance(each, nn.Conv1d))
    nn.init.constant_(layer.bias, 0.0 if norm in ("RMS", "L2") else 0.3)  # the same for every channel
    model = lowbit.prepare(model, weights=8, activations=8, integer_only=True, example_input=x[:1])
    return lowbit.calibrate(model, [x]).train()


def gradient_of_the_layer(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Of what the layer before the normalization gives."""
    found = []
    layer = next(each for each in model.modules() if isinstance(each, nn.Conv1d))
    handle = layer.register_forward_hook(lambda _module, _inputs, y: y.register_hook(found.append) and None)
    y = model(x)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    handle.remove()
    (gradient,) = found
    return gradient


@pytest.fixture
def as_torch_has_it(monkeypatch):
    def patch() -> None:
        for place in ("lowbit.lowering.folding.weakened", "lowbit.lowering.variation.weakened"):
            monkeypatch.setattr(place, lambda x, *_, **__: x)

    return patch


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_comes_from_what_is_equal(norm, as_torch_has_it):
    x = torch.randn(4, 3, 16)
    assert float(gradient_of_the_layer(prepared(norm, x), torch.zeros(4, 3, 16)).norm()) < 1e-4
    as_torch_has_it()
    assert float(gradient_of_the_layer(prepared(norm, x), torch.zeros(4, 3, 16)).norm()) > 100


@pytest.mark.parametrize("norm", NORMS)
def test_what_varies_is_trained_as_ever(norm, as_torch_has_it):
    x = torch.randn(4, 3, 16)
    found = gradient_of_the_layer(prepared(norm, x), x)
    as_torch_has_it()
    assert torch.allclose(found, gradient_of_the_layer(prepared(norm, x), x), rtol=1e-4, atol=1e-4)
