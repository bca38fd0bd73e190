"""A network of each kind that has a short name, at 4 bits: prepare, calibrate, one training step, integers, a verified file.

The networks are the real ones; what is small are the inputs: two random samples, images of 32x32 where the network takes
them. That says nothing of accuracy, and all of whether each operation of each network has its quantizers, its
gradients, its integer form and its place in the exported file.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit import models
from lowbit.train.build import prepare, recorded
from lowbit.train.config import QuantizationConfig

# Smallest sides that the networks take.
SIDES = {"deit-tiny": 224, "squeezenext-23-2x": 64}

# Deeper or thinner copies of the blocks of others in the table, and VGG-16, whose 134 million weights take half a minute for
# operations that smaller networks have too. campaigns/networks.py takes them all the way.
REPEATED = {
    *(
        "vgg16-bn",
        "preact-resnet50",
        "resnet34",
        "resnet101",
        "resnet152",
        "preact-resnet34",
        "preact-resnet101",
        "preact-resnet152",
    ),
    *("cifar-resnet32", "cifar-resnet44", "cifar-resnet56", "cifar-resnet110", "shufflenetv2-x0.5"),
}


def small(name: str) -> tuple[nn.Module, Tensor]:
    """The network with five classes, and two samples of its input."""
    torch.manual_seed(0)
    network = models.NETWORKS[name]
    model = models.create(name, num_classes=None if network.num_classes is None else 5)
    for module in model.modules():
        # A residual branch whose batch-norm starts at zero gives zeros, from which no step can start.
        if isinstance(module, nn.BatchNorm2d) and not bool(module.weight.any()):
            nn.init.ones_(module.weight)
    shape = network.input_shape
    if network.num_classes == 1000:
        side = SIDES.get(name, 32)
        shape = (3, side, side)
    # From two samples alone, batch-norm's variances would be no variances.
    x = torch.randn(16, *shape)
    lowbit.reestimate_batchnorm(model, [x])
    return model, x[:2]


def train_a_step(model: nn.Module, x: Tensor) -> None:
    """One step of SGD on one batch, and what must hold of it."""
    optimizer = torch.optim.SGD(lowbit.parameter_groups(model, weight_decay=1e-4), lr=1e-4)
    output = model.train()(x)
    loss = F.mse_loss(output, x) if output.shape == x.shape else F.cross_entropy(output, torch.tensor([0, 1]))
    loss.backward()
    assert bool(loss.isfinite())
    for name, quantizer in lowbit.quantizers(model):
        gradient = quantizer.raw_step.grad
        assert gradient is not None and bool(gradient.isfinite().all()), name
    # Random weights and two samples make gradients of any size.
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@pytest.mark.parametrize("name", [name for name in models.NETWORKS if name not in REPEATED])
def test_network(name, tmp_path):
    model, x = small(name)
    prepared = lowbit.calibrate(lowbit.prepare(model), [x])
    assert {quantizer.bits for _, quantizer in lowbit.quantizers(prepared)} == {4, 8}
    train_a_step(prepared, x)

    del prepared
    integer_only = lowbit.prepare(model, integer_only=True)
    del model
    lowbit.calibrate(integer_only, [x])
    train_a_step(integer_only, x)
    integer = lowbit.to_integer(integer_only.eval(), x[:1])
    path = tmp_path / "network.onnx"
    lowbit.export(integer, path, batches=[x[:1]])
    report = lowbit.verify(integer_only, path, [x])
    assert report.ok and report.samples == 2, report.text()
    assert sum(row.file_differ for row in report.rows) == 0
    assert sum(row.compared for row in report.rows) > 0


def test_a_checkpoint_of_a_transformer_loads_into_one_that_is_recorded_for_its_images():
    config = QuantizationConfig(integer_only=True)
    first, second = (prepare(models.create("deit-tiny", num_classes=5), config) for _ in range(2))
    shape = models.NETWORKS["deit-tiny"].input_shape
    example = torch.randn(1, *shape)
    state = lowbit.calibrate(recorded(first, example), [example]).state_dict()
    with pytest.raises(lowbit.LowbitError, match="takes an example to be recorded"):
        second.load_state_dict(state)
    recorded(second, example).load_state_dict(state)
    x = torch.randn(2, *shape)
    assert torch.equal(first.eval()(x), second.eval()(x))
