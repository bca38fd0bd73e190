"""timm's convolutions that pad as TensorFlow does or standardize their weights: what timm computes, quantized and in integers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import lowbit
from lowbit import LowbitError
from lowbit.integer.ops import Convolution
from lowbit.layers.quantized import QuantizedLayer
from lowbit.lowering.calls import describe_layer
from tests.lowering.networks import Forward, agreement, finish, images, start, trained

layers = pytest.importorskip("timm.layers")

X = images(4, 3, 9, 7)
CASES = {
    "Conv2dSame": {"stride": 2},
    "Conv2dSame dilated": {"dilation": 2, "groups": 4, "bias": False},
    "StdConv2d": {"stride": 2},
    "StdConv2dSame": {"stride": (3, 2)},
    "ScaledStdConv2d": {"groups": 2},
    "ScaledStdConv2dSame": {"stride": 2, "gamma": 1.7},
}


def layer_of(case: str) -> nn.Module:
    layer = getattr(layers, case.partition(" ")[0])(8, 8, 3, **CASES[case])
    if hasattr(layer, "gain"):
        nn.init.normal_(layer.gain)
    return layer


@pytest.mark.parametrize("case", CASES)
def test_without_rounding_it_is_timms_layer(case):
    layer, x = layer_of(case), torch.randn(2, 8, 9, 7)
    prepared = lowbit.prepare(nn.Sequential(layer), weights=None, activations=None)
    torch.testing.assert_close(prepared(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("case", CASES)
def test_in_integers(case, granularity, tmp_path):
    """The codes are those of the weight that is used; `to_integer` proves every node."""
    model = Forward(lambda self, x: finish(self, self.conv(start(self, x)).relu()), conv=layer_of(case))
    prepared = trained(model, X, granularity=granularity)
    network = lowbit.to_integer(prepared, X)
    compared, differ = agreement(prepared, X)
    assert compared > 1000 and differ <= 0.002 * compared
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0
    (node,) = (n for n in network.graph.nodes if isinstance(n, Convolution) and n.name == "conv")
    conv = prepared.conv
    real = node.weight.codes.float() * node.weight.scale.reshape(-1, *[1] * 3)
    assert float((real - conv.weight_quantizer(conv.used_weight())).abs().max()) < 1e-6
    prepared.train()(X).square().mean().backward()
    own = dict(conv.named_parameters())
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for name, p in own.items() if name != "bias"), own


def test_its_name_and_its_copies():
    prepared = lowbit.prepare(nn.Sequential(layer_of("ScaledStdConv2dSame")))
    assert describe_layer("0", prepared[0]) == "layer '0' (ScaledStdConv2dSame)"
    lowbit.calibrate(prepared, [torch.randn(2, 8, 9, 7)])
    x = torch.randn(2, 8, 9, 7)
    for again in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert isinstance(again[0], QuantizedLayer) and torch.equal(again(x), prepared(x))


def test_elements_of_a_standardized_weight_cannot_be_frozen():
    prepared = lowbit.prepare(nn.Sequential(layer_of("StdConv2d")))
    lowbit.calibrate(prepared, [torch.randn(2, 8, 9, 7)])
    assert float(lowbit.dampening_loss(prepared).detach()) > 0
    with pytest.raises(LowbitError, match=r"the weight of layer '0' is standardized.*dampening_loss"):
        lowbit.OscillationFreezer(prepared, torch.optim.SGD(prepared.parameters(), lr=0.1))
