"""Convolutions and linear layers that forward computes as functions, with weights of its own making."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit.layers.function import QuantizedFunction
from tests.lowering.networks import images

X = images(4, 3, 9, 7)


class Standardized(nn.Module):
    """Weight standardization, a weight used twice, a tied linear layer, with biases and without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gain = nn.Conv2d(3, 8, 3), nn.Parameter(torch.full((8, 1, 1, 1), 0.5))
        self.weight, self.bias = nn.Parameter(torch.randn(8, 4, 3, 3)), nn.Parameter(torch.randn(8))
        self.table = nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True) * self.gain
        x = F.relu(self.first(x))
        x = F.relu(F.conv2d(x, w, self.bias, stride=2, padding=1, groups=2))
        x = F.relu(F.conv2d(x, w, padding=1, groups=2)).mean((2, 3))
        return F.linear(x @ self.table.T, self.table.T, self.bias)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_weight_that_is_used_is_what_is_quantized(granularity, tmp_path):
    model = Standardized()
    names = set(model.state_dict())
    network = lowbit.prepare(model, integer_only=True, granularity=granularity, example_input=X)
    assert names <= set(network.state_dict())
    lowbit.calibrate(network, [X])
    optimizer = torch.optim.SGD(network.parameters(), 1e-5)
    before = network(X).detach()
    network(X).square().sum().backward()
    for name in ("weight", "gain", "bias", "table"):
        assert float(getattr(network, name).grad.abs().sum()) > 0, name
    optimizer.step()
    assert not torch.equal(network(X), before)
    network.eval()
    integer = lowbit.to_integer(network, X)
    assert torch.allclose(integer(X), network(X), atol=1e-4)
    weights = [node.weight for node in integer.graph.nodes if hasattr(node, "weight")]
    assert [weight.bits for weight in weights] == [8, 4, 4, 4, 4]
    assert lowbit.export(integer, tmp_path / "n.onnx", batches=[X]).ok


def test_rules_reach_functions_by_their_names():
    network = lowbit.prepare(
        Standardized(), integer_only=True, rules=[lowbit.Rule("functions.conv2d", weights=2)], example_input=X
    )
    functions = {name: each for name, each in network.named_modules() if isinstance(each, QuantizedFunction)}
    assert {name: each.parameter_quantizer.bits for name, each in functions.items()} == {
        "functions.conv2d": 2, "functions.conv2d_1": 4, "functions.linear": 4, "functions.matmul": 4,
    }  # fmt: skip
