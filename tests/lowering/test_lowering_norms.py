"""Batch-norm wherever it stands: on images and on features, behind a layer, behind something else, and first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowbit
from lowbit.integer.ops import Convolution, Linear

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
