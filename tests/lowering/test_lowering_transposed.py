"""Transposed convolutions and pixel shuffles: torch's own against their integer form, and that against its file."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit.integer.graph import FloatType
from lowbit.integer.ops import Convolution, Pad, PixelShuffle, PixelUnshuffle
from lowbit.lowering.handlers import transposed
from tests.lowering.networks import Forward, agreement, finish, images, start, trained

X = images(4, 3, 6, 5)

LAYERS = {
    "2×2 by 2": nn.ConvTranspose2d(8, 6, 2, stride=2),
    "4×4 by 2": nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1),
    "3×3 by 2": nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
    "stride of 1": nn.ConvTranspose2d(8, 6, 3, padding=1),
    "unequal": nn.ConvTranspose2d(8, 6, (3, 2), stride=(3, 1), padding=(0, 1), output_padding=(2, 0)),
    "groups": nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2, bias=False),
    "depthwise": nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, groups=8),
    "dilated": nn.ConvTranspose2d(8, 6, 3, stride=2, dilation=2, padding=3),
    "kernel below stride": nn.ConvTranspose2d(8, 6, 1, stride=3, output_padding=2),
    "much padding": nn.ConvTranspose2d(8, 6, 2, stride=1, padding=2),
}


def network_of(layer: nn.Module, leaves: bool, norm: bool) -> nn.Module:
    channels = layer.out_channels
    behind = [nn.BatchNorm2d(channels)] if norm else []
    last = [] if leaves else [nn.ReLU(), nn.Conv2d(channels, 3, 1)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), layer, *behind, *last)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("leaves", [False, True], ids=["inside", "last"])
@pytest.mark.parametrize("name", LAYERS)
def test_transposed_convolutions(name, leaves, granularity, tmp_path):
    """`to_integer` proves each node; here that few codes are on another side of a tie, and that the file has the same."""
    norm = granularity == "channel"
    prepared = trained(network_of(LAYERS[name], leaves, norm), X, granularity=granularity)
    network = lowbit.to_integer(prepared, X)
    compared, differ = agreement(prepared, X)
    assert compared > 300 and differ <= 0.002 * compared
    expected = prepared(X).detach()
    torch.testing.assert_close(network(X), expected, rtol=0.01, atol=0.01 * float(expected.abs().max()))
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0
    if leaves:
        assert isinstance(network.graph.nodes[-1].type, FloatType)
    elif LAYERS[name].stride != (1, 1):
        assert any(isinstance(node, PixelShuffle) for node in network.graph.nodes)
        assert not any(isinstance(node, Pad) for node in network.graph.nodes)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose1d(3, 4, 5, stride=3, padding=2, output_padding=1), (3, 9)),
        (nn.ConvTranspose3d(3, 4, (2, 3, 4), stride=(2, 1, 2), padding=(0, 1, 1)), (3, 3, 4, 5)),
    ],
)
def test_one_and_three_dimensions(layer, shape, tmp_path):
    x = images(3, *shape)
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    model(x)
    prepared = trained(model, x)
    network = lowbit.to_integer(prepared, x)
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0


def test_the_size_that_a_call_asks_for():
    layer = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1)
    prepared = trained(Forward(lambda self, x: finish(self, self.up(start(self, x), output_size=(12, 9))), up=layer), X)
    assert any(node.shape_of() == (8, 12, 9) for node in lowbit.to_integer(prepared, X).graph.nodes)


def test_binary_weights():
    """Where a phase has no weight, there is a 0, which takes two bits."""
    prepared = trained(network_of(nn.ConvTranspose2d(8, 6, 3, stride=2), False, False), X, weights=1, activations=2)
    network = lowbit.to_integer(prepared, X)
    (node,) = (node for node in network.graph.nodes if isinstance(node, Convolution) and node.shape_of()[0] == 24)
    assert node.weight.bits == 2


def test_the_phases_make_no_product_with_zeros():
    """A kernel of a multiple of the stride has as many products as the float layer, but for the rim."""
    codes = torch.ones(6, 8, 4, 4, dtype=torch.int8)
    axes = [transposed.Axis(32, 64, 4, 2, 1, 1)] * 2
    kernel, pads = transposed.phases(codes, axes)
    assert kernel.shape == (24, 8, 2, 2) and bool((kernel == 1).all()) and pads == ((1, 1), (1, 1))


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: finish(
            self, F.pixel_unshuffle(F.pixel_shuffle(torch.cat([start(self, x)] * 4, 1), 2), 2)[:, :8]
        ),
        lambda self, x: finish(self, self.up(torch.cat([start(self, x)] * 4, 1))),
    ],
)
def test_pixel_shuffle(function, tmp_path):
    prepared = trained(Forward(function, up=nn.PixelShuffle(2)), X)
    network = lowbit.to_integer(prepared, X)
    assert any(isinstance(node, PixelShuffle) for node in network.graph.nodes)
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0


def test_pixel_unshuffle(tmp_path):
    x = images(4, 3, 8, 6)
    layers = nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.PixelShuffle(2)
    prepared = trained(nn.Sequential(*layers), x)
    network = lowbit.to_integer(prepared, x)
    assert any(isinstance(node, PixelUnshuffle) for node in network.graph.nodes)
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0
    assert lowbit.verify(prepared, tmp_path / "network.onnx", [x]).ok
