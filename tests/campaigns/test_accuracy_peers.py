"""The quantizers of others, as the accuracy campaign trains them."""

import pytest
import torch
from campaigns.accuracy import peers, results

import lowbit
from lowbit import models


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_torch_at_eight_bits_is_near_full_precision(images) -> None:
    exact = models.create("resnet8")
    models.load_weights(exact, results.weights_file(results.FOLDER, peers.START))
    network = models.create(peers.name_of("torch", 8), num_classes=10)
    with torch.no_grad():
        network.eval()(images[:1] * 0)  # scales begin at the first batch of training, and not before
        network.train()(images)
        y, expected = network(images), exact(images)
    weight = exact.block1.conv1.weight
    assert network.block1.conv1.of_weight.scale.item() == pytest.approx(2 * weight.abs().mean().item() / 127**0.5)
    assert (y - expected).norm() < 0.2 * expected.norm()


def test_lsq_net_computes_as_lsq_does_but_for_where_activations_begin() -> None:
    w = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    theirs = peers._LsqNet(-4, 3, w)
    ours = lowbit.Quantizer(3, signed=True)
    ours.initialize(w)
    assert float(theirs.s) == pytest.approx(float(ours.step), rel=1e-6)
    gradients = []
    for quantizer, step in ((theirs, theirs.s), (ours, ours.raw_step)):
        x = w.clone().requires_grad_()
        y = quantizer(x)
        y.square().sum().backward()
        gradients.append((y.detach(), x.grad, float(step.grad)))
    (y, x, s), (y_ours, x_ours, s_ours) = gradients
    torch.testing.assert_close(y, y_ours)
    torch.testing.assert_close(x, x_ours)
    assert s == pytest.approx(s_ours, rel=1e-4)
    assert float(peers._LsqNet(0, 3).s) == 1


@pytest.mark.parametrize("library", ["torch", "lsq-net"])
@pytest.mark.parametrize("bits", [2, 4])
def test_a_network_has_levels_of_its_bits(images, library: str, bits: int) -> None:
    network = models.create(peers.name_of(library, bits), num_classes=10)
    network(images)
    layers = {name: m for name, m in network.named_modules() if isinstance(m, peers._Quantized)}
    assert len(layers) == 10
    for name, layer in layers.items():
        width = 8 if name in ("stem.0", "linear") else bits
        weights = layer.of_weight(layer.layer.weight)
        assert 2 <= len(weights.unique()) <= 2**width
        assert (layer.of_input.low < 0) == (name == "stem.0")
        assert layer.of_input.high - layer.of_input.low == 2**width - 1


def test_an_unknown_library_has_no_network() -> None:
    with pytest.raises(AttributeError):
        peers.nobody_2  # noqa: B018
