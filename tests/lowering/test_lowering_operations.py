"""Subtraction, nearest upsampling, average pooling: the trained network, its integers and its ONNX file agree."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError
from lowbit.integer.ops import AveragePool, GlobalAveragePool, Subtract, Upsample
from tests.lowering.networks import Forward, agreement, finish, images, start, trained

X = images(4, 3, 6, 5)


def proved(model: nn.Module, tmp_path, operation: type, ties: float = 0.001) -> lowbit.IntegerNetwork:
    """Trained against integers (but for a share of ties), integers against their file, and finite gradients everywhere."""
    prepared = trained(model, X)
    compared, differ = agreement(prepared, X)
    assert compared > 1000 and differ <= ties * compared
    network = lowbit.to_integer(prepared, X)
    assert any(isinstance(node, operation) for node in network.graph.nodes)
    report = lowbit.export(network, tmp_path / "network.onnx")
    assert report.ok and report.differ == 0 and report.compared > 1000
    prepared.train()(X).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in prepared.parameters() if p.requires_grad)
    return network


def in_place(self, x):
    y = self.second(start(self, x))
    y -= start(self, x)
    return self.head(y.mean((2, 3)))


def gate(self, x):
    return torch.sigmoid(start(self, x).mean((2, 3), keepdim=True))


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: finish(self, start(self, x) - self.second(start(self, x))),
        lambda self, x: finish(self, torch.sub(input=start(self, x), other=F.silu(start(self, x)))),
        lambda self, x: self.head((self.second(start(self, x)).sub_(start(self, x), alpha=1)).mean((2, 3))),
        lambda self, x: finish(self, start(self, x) - gate(self, x)),
        lambda self, x: finish(self, F.relu(gate(self, x) - start(self, x))),
        lambda self, x: self.head(start(self, x).mean((2, 3)).sub(self.second(start(self, x)).mean((2, 3)))),
        in_place,
    ],
)
def test_subtraction(function, tmp_path):
    proved(Forward(function), tmp_path, Subtract)


def test_which_of_two_is_subtracted():
    prepared = trained(Forward(lambda self, x: finish(self, gate(self, x) - start(self, x))), X)
    network = lowbit.to_integer(prepared, X)
    expected = prepared(X).detach()
    torch.testing.assert_close(network(X), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
    (node,) = (node for node in network.graph.nodes if isinstance(node, Subtract))
    assert [network.graph.by_name[name].shape_of() for name in node.inputs] == [(8, 1, 1), (8, 6, 5)]


def test_shapes_that_subtraction_does_not_broadcast_are_refused():
    prepared = trained(Forward(lambda self, x: finish(self, start(self, x) - start(self, x)[:, :, :1])), X)
    with pytest.raises(LowbitError, match=r"sub.*equal or"):
        lowbit.to_integer(prepared, X)


UPSAMPLINGS = {
    "module": (nn.Upsample(scale_factor=2), (2, 2)),
    "old module": (nn.UpsamplingNearest2d(scale_factor=3), (3, 3)),
    "module by size": (nn.Upsample(size=(6, 20)), (1, 4)),
    "exact": (nn.Upsample(scale_factor=(2.0, 1.0), mode="nearest-exact"), (2, 1)),
    "exact by 41": (nn.Upsample(scale_factor=(41, 1), mode="nearest-exact"), (41, 1)),
    "recomputed": (nn.Upsample(scale_factor=5, recompute_scale_factor=True), (5, 5)),
}


@pytest.mark.parametrize("name", UPSAMPLINGS)
def test_upsampling_layers(name, tmp_path):
    layer, factors = UPSAMPLINGS[name]
    network = proved(Forward(lambda self, x: finish(self, self.up(start(self, x))), up=layer), tmp_path, Upsample)
    assert {node.factors for node in network.graph.nodes if isinstance(node, Upsample)} == {factors}


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: finish(self, F.interpolate(start(self, x), scale_factor=2)),
        lambda self, x: finish(self, F.relu(self.norm(F.interpolate(self.first(x), (12, 10))))),
        # As in a feature pyramid: to another tensor's size, and added to it.
        lambda self, x: finish(
            self, start(self, x) + F.interpolate(self.second(F.max_pool2d(start(self, x), (2, 1))), size=x.shape[2:])
        ),
    ],
)
def test_upsampling_functions(function, tmp_path):
    proved(Forward(function), tmp_path, Upsample)


def test_upsampling_in_one_dimension(tmp_path):
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv1d(8, 4, 3), nn.Flatten(), nn.LazyLinear(2)
    )
    x = images(8, 3, 30)
    model(x)
    prepared = trained(model, x)
    assert agreement(prepared, x)[1] == 0
    network = lowbit.to_integer(prepared, x)
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0
    assert any(isinstance(node, Upsample) for node in network.graph.nodes)


def test_upsampling_that_changes_nothing_is_nothing():
    network = lowbit.to_integer(
        trained(Forward(lambda self, x: finish(self, F.interpolate(start(self, x), scale_factor=1))), X), X
    )
    assert not any(isinstance(node, Upsample) for node in network.graph.nodes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale_factor": 2, "mode": "bilinear"}, r"interpolate in .*: mode 'bilinear' has none; 'nearest' has"),
        ({"scale_factor": 2, "mode": "bilinear", "antialias": True}, "mode 'bilinear'"),
        ({"scale_factor": 1.5}, r"scale_factor 1\.5 has none; whole factors, 1 or more, have"),
        ({"scale_factor": (2, 0.5)}, r"scale_factor \(2, 0\.5\)"),
    ],
)
def test_other_interpolation_is_named_before_training(options, words):
    with pytest.raises(LowbitError, match=words):
        lowbit.prepare(
            Forward(lambda self, x: finish(self, F.interpolate(start(self, x), **options))), integer_only=True
        )


def test_a_bilinear_layer_is_named_with_its_class():
    model = Forward(lambda self, x: finish(self, self.up(start(self, x))), up=nn.UpsamplingBilinear2d(scale_factor=2))
    with pytest.raises(LowbitError, match=r"layer 'up' \(UpsamplingBilinear2d\): mode 'bilinear' has none"):
        lowbit.prepare(model, integer_only=True)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (
            nn.Upsample(size=(9, 5)),
            r"layer 'up' \(Upsample\) resizes \(6, 5\) to \(9, 5\), .*prepare without integer_only",
        ),
        (nn.Upsample(size=(3, 5)), r"resizes \(6, 5\) to \(3, 5\)"),
        # In float32, 1/41 · 41·i is less than i: torch repeats some positions 42 times.
        (nn.Upsample(scale_factor=(41, 1)), r"by \(41, 1\) does not repeat every position as often.*'nearest-exact'"),
    ],
)
def test_upsampling_that_only_shapes_tell_is_refused(layer, words):
    prepared = trained(Forward(lambda self, x: finish(self, self.up(start(self, x))), up=layer), X)
    with pytest.raises(LowbitError, match=words):
        lowbit.to_integer(prepared, X)


@pytest.mark.parametrize(
    ("layer", "operation"),
    [
        (nn.AvgPool2d(3, stride=1, padding=1), AveragePool),  # keeps the size, and averages all the same
        (nn.AvgPool2d((5, 4)), AveragePool),  # gives one position, and not of all
        (nn.AvgPool2d((6, 5)), GlobalAveragePool),
        (nn.AvgPool2d(2), AveragePool),
    ],
)
def test_average_pooling_averages_what_it_says(layer, operation, tmp_path):
    model = Forward(lambda self, x: self.head(self.pool(start(self, x)).mean((2, 3))), pool=layer)
    network = proved(model, tmp_path, operation, ties=0.005)  # means of a few codes are often ties
    (node,) = (node for node in network.graph.nodes if node.name == "pool")
    assert type(node) is operation


def test_average_pools_whose_padding_does_not_count_are_refused():
    layer = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    prepared = trained(Forward(lambda self, x: finish(self, self.pool(start(self, x))), pool=layer), X)
    with pytest.raises(LowbitError, match=r"layer 'pool' \(AvgPool2d\): only plain average pooling"):
        lowbit.to_integer(prepared, X)
