"""Batch-norm wherever it stands: on images and on features, behind a layer, behind something else, and first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowbit
from lowbit.integer.ops import Convolution, Linear


class Shared(nn.Module):
    """Layers and batch-norms called in several places, in other company in each."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.other, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        if self.how == "one norm behind two layers":
            x = self.norm(self.second(x)).relu()
        elif self.how == "one norm behind a layer and alone":
            x = self.norm(x).relu()
        elif self.how == "one layer before two norms":
            x = self.other(self.second(self.norm(self.second(x)).relu()))
        elif self.how == "one layer before a norm and alone":
            x = self.second(self.other(self.second(x)).relu())
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    "how",
    [
        "one norm behind two layers",
        "one norm behind a layer and alone",
        "one layer before two norms",
        "one layer before a norm and alone",
    ],
)
def test_shared_layers_and_norms(how, tmp_path):
    """Each place has its own grid of biases; parameters and statistics are one, as in training in full precision."""
    torch.manual_seed(0)
    model, x = Shared(how), torch.randn(16, 3, 6, 6)
    for norm in (model.norm, model.other):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    prepared = lowbit.prepare(model, weights=4, activations=4, integer_only=True, accumulator_bits=14)
    lowbit.calibrate(prepared, [x])
    assert {name for name in prepared.state_dict() if "norm" in name or "running" in name} <= set(model.state_dict())
    prepared.train()(x).square().mean().backward()
    calls = {"one norm behind two layers": 2, "one norm behind a layer and alone": 2, "one layer before two norms": 2}
    assert int(prepared.norm.num_batches_tracked) == calls.get(how, 1)
    integer = lowbit.to_integer(prepared.eval(), x)
    torch.testing.assert_close(integer(x), prepared(x).detach(), rtol=1e-5, atol=1e-5)
    assert lowbit.export(integer, tmp_path / "net.onnx", batches=[x]).differ == 0
    assert lowbit.verify(prepared, tmp_path / "net.onnx", [x]).ok


IMAGES, FEATURES, SERIES = (3, 6, 6), (12,), (3, 9)

NETWORKS = {
    "behind ReLU": (FEATURES, lambda: [nn.Linear(12, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)], 1),
    "first": (FEATURES, lambda: [nn.BatchNorm1d(12), nn.Linear(12, 3)], 1),
    "last": (FEATURES, lambda: [nn.Linear(12, 8), nn.ReLU(), nn.BatchNorm1d(8)], 1),
    "with ReLU behind it": (FEATURES, lambda: [nn.BatchNorm1d(12), nn.ReLU(), nn.BatchNorm1d(12), nn.Linear(12, 3)], 2),
    "behind a linear layer": (FEATURES, lambda: [nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)], 0),
    "behind flattened images": (
        IMAGES,
        lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3)],
        1,
    ),
    "behind an average": (
        IMAGES,
        lambda: [nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3)],
        1,
    ),
    "of images": (IMAGES, lambda: [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)], 1),
    "of series": (SERIES, lambda: [nn.Conv1d(3, 4, 3), nn.ReLU(), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 3)], 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norm_becomes_integers(name, tmp_path):
    shape, layers, alone = NETWORKS[name]
    torch.manual_seed(0)
    model, x = nn.Sequential(*layers()), torch.randn(32, *shape)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight, 0.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    prepared = lowbit.calibrate(lowbit.prepare(model, weights=4, activations=4, integer_only=True), [x]).eval()
    integer = lowbit.to_integer(prepared, x)
    layers_of = sum(isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) for module in model.modules())
    assert sum(isinstance(node, (Convolution, Linear)) for node in integer.graph.nodes) == layers_of + alone
    torch.testing.assert_close(integer(x), prepared(x).detach(), rtol=1e-5, atol=1e-5)
    # At 8 bits it is near the network in full precision: the right channels have the right numbers.
    fine = lowbit.prepare(model, weights=8, activations=8, method="minmax", granularity="channel", integer_only=True)
    fine = lowbit.to_integer(lowbit.calibrate(fine, [x]).eval(), x)
    assert float((fine(x) - model.eval()(x)).abs().max()) < 0.05 * float(model(x).abs().max())
    assert lowbit.export(integer, tmp_path / "net.onnx", batches=[x]).ok
    assert lowbit.verify(prepared, tmp_path / "net.onnx", [x]).ok
