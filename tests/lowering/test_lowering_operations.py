"""Subtraction, resizing, pooling: the trained network, its integers and its ONNX file agree."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError
from lowbit.integer.ops import (
    AveragePool,
    Constant,
    Extremum,
    GlobalAveragePool,
    IndexSelect,
    LinearResize,
    MaxPool,
    Subtract,
    UnevenAveragePool,
    Upsample,
)
from lowbit.layers.resize import weighted_resize
from tests.lowering.networks import Forward, agreement, finish, images, start, trained

X = images(4, 3, 6, 5)


def proved(
    model: nn.Module, tmp_path, operation: type, ties: float = 0.001, least: int = 1000
) -> lowbit.IntegerNetwork:
    """Trained against integers (but for a share of ties), integers against their file, and finite gradients everywhere."""
    prepared = trained(model, X)
    compared, differ = agreement(prepared, X)
    assert compared > least and differ <= ties * compared
    network = lowbit.to_integer(prepared, X)
    assert any(isinstance(node, operation) for node in network.graph.nodes)
    report = lowbit.export(network, tmp_path / "network.onnx")
    assert report.ok and report.differ == 0 and report.compared > least
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
        lambda self, x: finish(self, start(self, x) - start(self, x)[:, :, :1]),
        lambda self, x: finish(self, start(self, x)[:, :, :1] - start(self, x)[:, :, :, :1]),
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


RESIZINGS = {
    "larger": nn.Upsample(size=(9, 5)),
    "smaller": nn.Upsample(size=(4, 3)),
    "both": nn.Upsample(size=(3, 11), mode="nearest-exact"),
    "factor": nn.Upsample(scale_factor=1.5),
    "factors": nn.Upsample(scale_factor=(2, 0.5)),
    "recomputed": nn.Upsample(scale_factor=(1.7, 1.4), recompute_scale_factor=True),
    # In float32, 1/41 · 41·i is less than i: torch repeats some positions 42 times; in float64 it does not.
    "by 41": nn.Upsample(scale_factor=(41, 1)),
}


@pytest.mark.parametrize("name", RESIZINGS)
def test_nearest_resizing_to_any_size(name, tmp_path):
    proved(Forward(lambda self, x: finish(self, self.up(start(self, x))), up=RESIZINGS[name]), tmp_path, IndexSelect)


LINEAR = {
    "twice": ({"scale_factor": 2, "mode": "bilinear"}, 16),
    "three times": ({"scale_factor": 3, "mode": "bilinear"}, 9),
    "a size": ({"size": (9, 7), "mode": "bilinear"}, 6 * 7),
    "smaller": ({"size": (4, 5), "mode": "bilinear"}, 4),
    "corners": ({"size": (11, 9), "mode": "bilinear", "align_corners": True}, 4),
    "one corner": ({"size": (1, 5), "mode": "bilinear", "align_corners": True}, 1),
    "a decimal": ({"scale_factor": 1.7, "mode": "bilinear"}, 34 * 34),
    "a decimal recomputed": ({"scale_factor": 1.7, "mode": "bilinear", "recompute_scale_factor": True}, 20 * 16),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_resizing(name, tmp_path):
    """Weights of quarters give halves often: ties, which float sums round to either side."""
    options, divisor = LINEAR[name]
    layer = nn.Upsample(**options)
    network = proved(
        Forward(lambda self, x: finish(self, self.up(start(self, x))), up=layer), tmp_path, LinearResize, ties=0.1
    )
    (node,) = (node for node in network.graph.nodes if isinstance(node, LinearResize))
    taps = node.taps((8, 6, 5)).values()
    assert divisor % math.prod(each.divisor for each in taps) == 0


@pytest.mark.parametrize(
    ("make", "resize", "shape"),
    [
        (nn.Conv1d, nn.Upsample(scale_factor=2, mode="linear"), (3, 30)),
        (nn.Conv3d, nn.Upsample(scale_factor=(1, 2, 2), mode="trilinear"), (3, 4, 5, 6)),
        (nn.Conv3d, nn.AvgPool3d((2, 1, 2), ceil_mode=True), (3, 5, 6, 7)),
        (nn.Conv3d, nn.AdaptiveAvgPool3d((2, 3, 4)), (3, 5, 6, 7)),
        (nn.Conv3d, nn.AvgPool3d(2, padding=1), (3, 5, 6, 7)),
        (nn.Conv3d, nn.MaxPool3d(3, 2, padding=1), (3, 6, 7, 8)),
        (nn.Conv3d, nn.AdaptiveMaxPool3d((2, 1, 3)), (3, 6, 7, 8)),
        (nn.Conv1d, nn.AvgPool1d(4, 3, padding=2, count_include_pad=False), (3, 30)),
        (nn.Conv1d, nn.AdaptiveMaxPool1d(7), (3, 30)),
    ],
)
def test_one_and_three_dimensions(make, resize, shape, tmp_path):
    model = nn.Sequential(make(3, 6, 3, padding=1), nn.ReLU(), resize, make(6, 4, 1), nn.Flatten(), nn.LazyLinear(2))
    x = images(3, *shape)
    model(x)
    prepared = trained(model, x)
    network = lowbit.to_integer(prepared, x)
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0
    compared, differ = agreement(prepared, x)
    assert differ <= 0.1 * compared


@pytest.mark.parametrize(
    "layer",
    [nn.Upsample(size=(6, 5), mode="bilinear"), nn.UpsamplingBilinear2d(size=(6, 5)), nn.AdaptiveAvgPool2d((None, 5))],
)
def test_linear_resizing_to_the_same_size_is_nothing(layer):
    network = lowbit.to_integer(trained(Forward(lambda self, x: finish(self, self.up(start(self, x))), up=layer), X), X)
    assert not any(isinstance(node, LinearResize | UnevenAveragePool | AveragePool) for node in network.graph.nodes)


WEIGHTED = {
    "cubic, 256ths": {"scale_factor": 2, "mode": "bicubic"},
    "cubic, rounded": {"size": (9, 7), "mode": "bicubic", "align_corners": True},
    "antialiased": {"size": (4, 3), "mode": "bilinear", "antialias": True},
    "both": {"scale_factor": 0.7, "mode": "bicubic", "antialias": True, "recompute_scale_factor": True},
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_cubic_and_antialiased_resizing(name, tmp_path):
    """In integers, and in training within the rounding of two dimensions' weights of torch's own."""
    options = WEIGHTED[name]
    model = Forward(lambda self, x: finish(self, F.interpolate(start(self, x), **options)))
    network = proved(model, tmp_path, LinearResize, ties=0.02, least=300)
    (node,) = (node for node in network.graph.nodes if isinstance(node, LinearResize))
    assert any(min(point[2:]) < 0 for point in node.points) == (options["mode"] == "bicubic")
    exact = F.interpolate(X.double(), **options)
    assert float((weighted_resize(X, **options) - exact).abs().max()) < 2 * 8 * 2**-12 * float(X.abs().max())


def test_a_bicubic_layer():
    layer = nn.Upsample(scale_factor=2.0, mode="bicubic")
    model = trained(Forward(lambda self, x: finish(self, self.up(start(self, x))), up=layer), X)
    assert any(isinstance(node, LinearResize) for node in lowbit.to_integer(model, X).graph.nodes)
    torch.testing.assert_close(weighted_resize(X, None, 2.0), layer(X), atol=1e-5, rtol=0)


def test_weights_that_no_accumulator_holds_are_refused():
    layer = nn.Upsample(scale_factor=(1.0001, 1.0003), mode="bilinear")
    with pytest.raises(LowbitError, match=r"layer 'up' \(Upsample\) resizes .*1/\d+, more than 32-bit"):
        trained(Forward(lambda self, x: finish(self, self.up(start(self, x))), up=layer), X)


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


UNEVEN = {
    "padding does not count": nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    "ceiling": nn.AvgPool2d(2, ceil_mode=True),
    "ceiling and padding": nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
    "a divisor": nn.AvgPool2d((2, 3), 2, divisor_override=5),
    "adaptive": nn.AdaptiveAvgPool2d((4, 3)),
    "adaptive in one": nn.AdaptiveAvgPool2d((None, 2)),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_uneven_average_pools(name, tmp_path):
    model = Forward(lambda self, x: self.head(self.pool(start(self, x)).mean((2, 3))), pool=UNEVEN[name])
    proved(model, tmp_path, UnevenAveragePool, ties=0.05)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False),  # of even sizes
        lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
        lambda x: F.interpolate(x, size=(3, 2), mode="area"),
        lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
    ],
)
def test_pools_that_come_out_even(function, tmp_path):
    x = images(4, 3, 6, 8)
    prepared = trained(Forward(lambda self, x: self.head(function(start(self, x)).mean((2, 3)))), x)
    network = lowbit.to_integer(prepared, x)
    assert any(isinstance(node, AveragePool) for node in network.graph.nodes)
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.adaptive_max_pool2d(x, (4, 3)),
        lambda x: F.adaptive_max_pool2d(x, (3, 5)),
        lambda x: F.adaptive_max_pool2d(x, 1),
        lambda x: x.amax((2, 3), keepdim=True),
        lambda x: torch.amax(x, dim=(-1, -2)).view(-1, 8, 1, 1),
        nn.AdaptiveMaxPool2d((2, None)).forward,
    ],
)
def test_adaptive_and_global_maxima(function, tmp_path):
    proved(Forward(lambda self, x: finish(self, function(start(self, x)))), tmp_path, MaxPool, least=400)


def test_maxima_over_other_dimensions():
    prepared = trained(Forward(lambda self, x: finish(self, start(self, x) - start(self, x).amax(1, keepdim=True))), X)
    compared, differ = agreement(prepared, X)
    assert differ <= 0.002 * compared
    assert any(isinstance(node, Extremum) for node in lowbit.to_integer(prepared, X).graph.nodes)


NUMBERS = {
    "product": lambda self, x: start(self, x) * self.size.weight,
    "sum": lambda self, x: self.size.weight + start(self, x),
    "difference": lambda self, x: self.size.weight - start(self, x),
    "quotient": lambda self, x: start(self, x) / (self.size.weight.exp() + 1),
    "part": lambda self, x: start(self, x) * self.size.several.softmax(0)[1],
}


@pytest.mark.parametrize("example", [True, False], ids=["shapes", "no shapes"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_parameter_without_dimensions(name, example, tmp_path):
    """A learned temperature or gate, or one element of a parameter: it was refused once the network was trained."""
    torch.manual_seed(0)
    size = nn.Module()
    size.weight, size.several = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor([0.2, 0.9]))
    model = Forward(lambda self, x: finish(self, NUMBERS[name](self, x)), size=size)
    prepared = lowbit.prepare(model, integer_only=True, example_input=X if example else None)
    lowbit.calibrate(prepared, [X]).eval()
    network = lowbit.to_integer(prepared, X)
    assert any(isinstance(node, Constant) and node.codes.shape == (1,) for node in network.graph.nodes)
    assert lowbit.export(network, tmp_path / "network.onnx").ok
    compared, differ = agreement(prepared, X)
    assert compared > 1000 and differ <= 0.001 * compared
