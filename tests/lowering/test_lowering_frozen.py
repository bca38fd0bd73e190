"""Frozen batch-norms of torchvision and timm: folded behind a layer and on features, and frozen in training too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit._torchvision import import_torchvision
from lowbit.integer.ops import Convolution
from lowbit.lowering.calls import describe_layer
from tests.lowering.networks import Forward, agreement, finish, images, start, trained

Frozen = import_torchvision().ops.FrozenBatchNorm2d
X = images(4, 3, 9, 7)


def frozen(channels: int, kind: type[nn.Module] = Frozen) -> nn.Module:
    layer = kind(channels)
    layer.weight.normal_()
    layer.bias.normal_()
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    return layer


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: finish(self, F.relu(self.frozen(self.first(x)))),  # behind a layer
        lambda self, x: finish(self, F.relu(self.frozen(F.max_pool2d(start(self, x), 2)))),  # on features
    ],
)
def test_frozen_batch_norm(function, tmp_path):
    prepared = trained(Forward(function, frozen=frozen(8)), X)
    network = lowbit.to_integer(prepared, X)
    compared, differ = agreement(prepared, X)
    assert compared > 1000 and differ <= 0.002 * compared
    assert not any(type(node).__name__ in ("Add", "Multiply", "Lookup") for node in network.graph.nodes)
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0


def test_at_the_very_front(tmp_path):
    model = nn.Sequential(frozen(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    model(X)
    network = lowbit.to_integer(trained(model, X), X)
    assert isinstance(network.graph.nodes[1], Convolution)
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0


def test_it_stays_frozen_and_keeps_its_names():
    model = Forward(lambda self, x: finish(self, F.relu(self.frozen(self.first(x)))), frozen=frozen(8))
    names = {name for name in model.state_dict() if name.startswith("frozen.")}
    prepared = lowbit.calibrate(lowbit.prepare(model, integer_only=True), [X])
    before = {name: value.clone() for name, value in prepared.frozen.state_dict().items()}
    assert names <= set(prepared.state_dict()) and not list(prepared.frozen.parameters())
    prepared.train()
    assert not prepared.frozen.training
    torch.testing.assert_close(prepared.frozen(X.new_ones(2, 8, 3, 3)), prepared.eval().frozen(X.new_ones(2, 8, 3, 3)))
    prepared.train()(X).sum().backward()
    lowbit.reestimate_batchnorm(prepared, [X])
    assert all(torch.equal(value, before[name]) for name, value in prepared.frozen.state_dict().items())
    assert describe_layer("frozen", prepared.frozen) == "layer 'frozen' (FrozenBatchNorm2d)"
    given = {name: value for name, value in model.state_dict().items() if name in names}
    given["frozen.num_batches_tracked"] = torch.tensor(3)  # as in a checkpoint of a network that was not frozen
    assert prepared.load_state_dict(given, strict=False).unexpected_keys == []


def test_what_it_computes_is_torchvisions():
    layer, x = frozen(8), torch.randn(2, 8, 3, 3)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), layer)
    expected = model(x)
    prepared = lowbit.prepare(model, integer_only=True, weights=8, activations=8)
    with torch.no_grad():
        prepared.get_submodule("0").weight_quantizer = prepared.get_submodule("0").input_quantizer = nn.Identity()
    torch.testing.assert_close(prepared(x), expected, rtol=1e-4, atol=1e-5)


def test_timms_with_an_activation(tmp_path):
    kind = pytest.importorskip("timm.layers").FrozenBatchNormAct2d
    prepared = trained(Forward(lambda self, x: finish(self, self.frozen(self.first(x))), frozen=frozen(8, kind)), X)
    network = lowbit.to_integer(prepared, X)
    assert agreement(prepared, X)[1] <= 2
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0
