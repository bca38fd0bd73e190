"""Padding by reflected, replicated and circular positions: as torch has it, inside of layers and on its own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError
from lowbit.integer.ops import IndexSelect, MaxPool
from tests.lowering.networks import Forward, agreement, finish, images, start, trained

X = images(4, 3, 6, 5)


def checked(model: nn.Module, x: torch.Tensor, tmp_path) -> None:
    prepared = trained(model, x)
    network = lowbit.to_integer(prepared, x)
    assert any(isinstance(node, IndexSelect) for node in network.graph.nodes)
    compared, differ = agreement(prepared, x)
    assert compared > 300 and differ <= 0.002 * compared
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 0), "same"])
def test_padding_modes_of_convolutions(mode, padding, tmp_path):
    layer = nn.Conv2d(8, 8, (3, 2), padding=padding, padding_mode=mode)
    checked(Forward(lambda self, x: finish(self, F.relu(self.conv(start(self, x)))), conv=layer), X, tmp_path)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReflectionPad2d((1, 2, 0, 3)),
        nn.ReplicationPad2d(7),
        nn.CircularPad2d((0, 1, 2, 0)),
    ],
)
def test_padding_layers(layer, tmp_path):
    checked(Forward(lambda self, x: finish(self, self.pad(start(self, x))), pad=layer), X, tmp_path)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_functions(mode, tmp_path):
    checked(Forward(lambda self, x: finish(self, F.pad(start(self, x), (2, 1, 0, 1), mode))), X, tmp_path)


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: F.max_pool2d(F.pad(x, (0, 1, 1, 2), value=-math.inf), 3, 2),
        lambda self, x: self.pool(F.pad(x, (1, 1), "constant", -math.inf)),
        lambda self, x: self.pool(self.lowest(self.zeros(x).relu())),
        lambda self, x: F.max_pool2d(F.pad(x, (0, 1), value=-math.inf), 2, 2, ceil_mode=True),
    ],
)
def test_padding_that_no_maximum_takes(function, tmp_path):
    """As TensorFlow's "SAME" maximum pools have it: the pool pads in its place."""
    model = Forward(lambda self, x: finish(self, function(self, self.norm(self.first(x)))), pool=nn.MaxPool2d(2, 1))
    model.lowest, model.zeros = nn.ConstantPad2d((1, 0, 0, 1), -math.inf), nn.ConstantPad2d((0, 1, 1, 0), 0.0)
    prepared = trained(model, X)
    network = lowbit.to_integer(prepared, X)
    assert agreement(prepared, X)[1] <= 2
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0
    assert sum(isinstance(node, MaxPool) for node in network.graph.nodes) == 1


@pytest.mark.parametrize("behind", [lambda x: x.relu(), lambda x: x.amax((2, 3), keepdim=True)])
def test_padding_by_infinity_elsewhere_is_refused(behind):
    model = Forward(lambda self, x: finish(self, behind(F.pad(start(self, x), (1, 1), value=-math.inf))))
    with pytest.raises(LowbitError, match=r"pad in .*: padding by −∞ has one only right before a maximum pool"):
        lowbit.prepare(model, integer_only=True)


def test_timms_maximum_pool_with_same_padding(tmp_path):
    layer = pytest.importorskip("timm.layers.pool2d_same").MaxPool2dSame(3, 2)
    prepared = trained(Forward(lambda self, x: finish(self, self.pool(start(self, x))), pool=layer), X)
    network = lowbit.to_integer(prepared, X)
    assert agreement(prepared, X)[1] <= 2
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0


def test_one_dimension(tmp_path):
    x = images(6, 3, 20)
    layers = (
        nn.ReflectionPad1d((3, 0)),
        nn.Conv1d(3, 6, 4),
        nn.ReLU(),
        nn.Conv1d(6, 4, 3, padding=1, padding_mode="circular"),
    )
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
    model(x)
    checked(model, x, tmp_path)
