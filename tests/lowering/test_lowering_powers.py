"""Integer networks with power-of-two steps: all multipliers are powers of two, and the trained network computes the same codes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import lowbit
from lowbit.integer.ops import AveragePool, Convolution, Linear


def block(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Residual(nn.Module):
    """Convolutions with batch-norm, one without, a sum, batch-norm behind a sum, averages of 4 and of 16 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.depthwise = block(3, 8), block(8, 8), block(8, 8, groups=8)
        self.norm, self.pool = nn.BatchNorm2d(8), nn.AvgPool2d(2)
        self.third, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = torch.relu(self.norm(x + self.depthwise(self.second(x))))
        return self.last(self.third(self.pool(x)).relu().mean((2, 3)))


def trained(granularity: str = "tensor", bits: int = 4, **options) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    network, x = Residual(), torch.rand(32, 3, 8, 8)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)  # of both signs
            nn.init.normal_(module.bias)
    network(x)
    options = {"scales": "power-of-two", "integer_only": True, **options}
    prepared = lowbit.prepare(network, weights=bits, activations=bits, granularity=granularity, **options)
    lowbit.calibrate(prepared, [x])
    optimizer = torch.optim.SGD(lowbit.parameter_groups(prepared, weight_decay=1e-4), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()
    return prepared.eval(), x


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_trained_network_is_the_integer_network(granularity, bits, tmp_path):
    """Sums of products of codes with powers of two are exact in float32, ties included, so that nothing may differ."""
    prepared, x = trained(granularity, bits)
    integer = lowbit.to_integer(prepared, x[:1])
    signs = set()
    for node in integer.graph.nodes:
        for multiplier in node.multipliers(integer.graph.input_types(node)):
            fraction, _ = torch.frexp(multiplier.exact)
            assert bool((fraction.abs() == 0.5).all()), node.name
            assert torch.equal(multiplier.exact, multiplier.single.double())
            signs |= set(fraction.sign().flatten().tolist())
    assert signs == {-1.0, 1.0}
    assert any(isinstance(node, AveragePool) for node in integer.graph.nodes)
    for name in ("onnx", "qonnx"):
        path = tmp_path / f"{name}.onnx"
        assert lowbit.export(integer, path, name).ok
        report = lowbit.verify(prepared, path, [torch.rand(16, 3, 8, 8)])
        assert (
            report.ok and report.differ == 0 and report.conversion_differ == 0 and not report.first_trained_difference
        ), report.text()


def test_batch_norm_behind_no_layer_keeps_seven_bits_of_its_gain():
    prepared, x = trained()
    integer = lowbit.to_integer(prepared, x[:1])
    alone = [n for n in integer.graph.nodes if isinstance(n, Convolution) and n.weight.bits == 8 and n.groups == 8]
    (node,) = alone
    gain = prepared.norm.weight / torch.sqrt(prepared.norm.running_var + prepared.norm.eps)
    codes = node.weight.codes.flatten()
    assert bool((codes >= 64).all())
    torch.testing.assert_close(codes * node.weight.scale, gain.detach(), rtol=1 / 127, atol=0)


def test_training_sees_the_gains_that_evaluation_has():
    """With the statistics of one batch as running statistics, training and evaluation compute the same but for the bias's grid."""
    torch.manual_seed(0)
    network, x = nn.Sequential(block(3, 8), nn.Conv2d(8, 4, 1)), torch.randn(16, 3, 6, 6)
    norm = network[0][1]
    nn.init.normal_(norm.weight)
    norm.momentum = 1.0
    prepared = lowbit.prepare(network, weights=8, activations=8, integer_only=True, scales="power-of-two")
    network(x)
    lowbit.calibrate(prepared, [x])
    prepared.train()(x)  # running statistics are now those of the quantized batch
    found = prepared(x)
    prepared.eval()
    torch.testing.assert_close(found, prepared(x), rtol=0, atol=0.03 * float(found.detach().abs().max()))
    free = lowbit.calibrate(lowbit.prepare(network, weights=8, activations=8, integer_only=True), [x]).train()
    assert float((free(x) - found).abs().max()) > 0.1 * float(found.detach().abs().max())


def test_weights_alone_leave_activations_free():
    prepared, x = trained(scales="power-of-two-weights")
    integer = lowbit.to_integer(prepared, x[:1])
    (linear,) = (node for node in integer.graph.nodes if isinstance(node, Linear))
    assert bool((torch.frexp(linear.weight.scale)[0] == 0.5).all())
    (kind,) = integer.graph.input_types(linear)
    assert torch.frexp(torch.tensor(kind.scale, dtype=torch.float64))[0] != 0.5


def test_it_compiles_for_training_and_evaluation():
    torch.manual_seed(0)
    network, x = nn.Sequential(block(3, 4), nn.Conv2d(4, 2, 1)), torch.rand(8, 3, 6, 6)
    prepared = lowbit.prepare(network, integer_only=True, scales="power-of-two", granularity="channel")
    lowbit.calibrate(prepared, [x])
    for training in (False, True):
        torch._dynamo.reset()
        plain, compiled = copy.deepcopy(prepared).train(training), copy.deepcopy(prepared).train(training)
        found, expected = torch.compile(compiled, fullgraph=True, backend="aot_eager")(x), plain(x)
        if training:  # sums in another order move some codes
            found, expected = found.mean(0), expected.mean(0)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.01 * float(expected.detach().abs().max()))
