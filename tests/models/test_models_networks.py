"""The networks with a short name against what is published of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowbit import models
from lowbit._torchvision import import_torchvision
from lowbit.models.squeezenext import SqueezeNext

timm = pytest.importorskip("timm")


# Short names that are others in torchvision.
THERE = {
    "vgg16-bn": "vgg16_bn",
    "mobilenetv2": "mobilenet_v2",
    "shufflenetv2-x1.0": "shufflenet_v2_x1_0",
    "shufflenetv2-x0.5": "shufflenet_v2_x0_5",
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", models.NETWORKS)
def test_published_number_of_parameters(name):
    network = models.NETWORKS[name]
    with torch.device("meta"):
        model = models.create(name)
    count = parameters(model)
    if network.with_statistics:
        count += sum(buffer.numel() for key, buffer in model.named_buffers() if "running_" in key)
    figure, _, million = network.published.partition(" ")
    if million:
        decimals = len(figure.partition(".")[2])
        assert f"{count / 1e6:.{decimals}f}" == figure
    else:
        assert f"{count:,}" == figure


def test_sizes_that_torchvision_publishes():
    torchvision = import_torchvision()
    for network in models.NETWORKS.values():
        if network.source.startswith("torchvision"):
            there = THERE.get(network.name, network.name)
            published = torchvision.models.get_model_weights(there).DEFAULT.meta["num_params"]
            assert network.published == f"{published:,}"


def test_page_of_networks():
    """docs/networks.md has a row for each, with its input and its size."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "networks.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", text, flags=re.MULTILINE)
    assert [name for name, *_ in rows] == list(models.NETWORKS)
    for name, shape, ours, published in rows:
        network = models.NETWORKS[name]
        with torch.device("meta"):
            assert ours.startswith(f"{parameters(models.create(name)):,}")
        assert shape == "×".join(map(str, network.input_shape))
        assert published.startswith(network.published) and published.endswith(network.source)


@pytest.mark.parametrize(("depth", "layers"), [(20, 20), (32, 32), (44, 44), (56, 56), (110, 110)])
def test_cifar_resnets_have_as_many_layers_as_they_say(depth, layers):
    with torch.device("meta"):
        model = models.create(f"cifar-resnet{depth}")
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == layers


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_preact_resnets_are_as_large_as_timms(depth):
    with torch.device("meta"):
        assert parameters(models.create(f"preact-resnet{depth}")) == parameters(timm.create_model(f"resnetv2_{depth}"))


def _copy_in_order(source: nn.Module, target: nn.Module, channels: int = 3) -> None:
    """Parameters and statistics from layer to layer, in the order in which both call them."""
    with torch.no_grad():
        for a, b in zip(_in_order(source, channels), _in_order(target, channels), strict=True):
            for key, value in a.state_dict().items():  # a head may be a 1x1 convolution
                b.state_dict()[key].copy_(value.reshape(b.state_dict()[key].shape))


def _in_order(model: nn.Module, channels: int) -> list[nn.Module]:
    called: list[nn.Module] = []
    leaves = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    hooks = [leaf.register_forward_hook(lambda module, *_: called.append(module)) for leaf in leaves]
    model(torch.zeros(1, channels, 64, 64))
    for hook in hooks:
        hook.remove()
    return called


def _timms_preact_resnet(depth: int) -> nn.Module:
    """timm's, with batch-norms that do something; γ is positive because timm's first pooling comes before one."""
    torch.manual_seed(0)
    model = timm.create_model(f"resnetv2_{depth}", num_classes=7).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


def _assert_same_outputs(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_preact_resnet50_computes_what_timms_does():
    theirs, ours = _timms_preact_resnet(50), models.create("preact-resnet50", num_classes=7).eval()
    _copy_in_order(theirs, ours)
    _assert_same_outputs(ours, theirs, torch.randn(2, 3, 96, 64))


def test_preact_resnet18_computes_what_timms_does_behind_the_first_stage():
    # In the first block ours takes the activated tensor as shortcut, as the paper has it.
    theirs = _timms_preact_resnet(18).stages[1:]
    model = models.create("preact-resnet18").eval()
    ours = nn.Sequential(model.layer2, model.layer3, model.layer4)
    _copy_in_order(theirs, ours, channels=64)
    _assert_same_outputs(ours, theirs, torch.randn(2, 64, 24, 16))


def test_squeezenext_of_width_1_has_the_papers_size():
    assert f"{parameters(SqueezeNext(width=1)) / 1e6:.2f}" == "0.72"
    # 111 convolutions, as in the authors' network definition
    assert sum(isinstance(module, nn.Conv2d) for module in SqueezeNext().modules()) == 111


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet8", [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
        ("mobilenetv1-0.25", [(256, 3, 3)]),
        ("ds-cnn", [(64, 25, 5)]),
    ],
)
def test_sizes_within_the_mlperf_tiny_networks(name, shapes):
    model = models.create(name).eval()
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    outputs = model(torch.randn(1, *models.NETWORKS[name].input_shape))
    assert outputs.shape == (1, models.NETWORKS[name].num_classes)
    assert set(shapes) <= set(seen) and seen[-1] == shapes[-1]
