"""What is said before a network becomes integers: training that diverged; and steps that would make ties."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError
from lowbit.lowering.convert import convert
from lowbit.lowering.trained import trained_runner


def network(method="lsq", **options) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    x = torch.randn(8, 3, 6, 6)
    return lowbit.calibrate(lowbit.prepare(model, method=method, integer_only=True, **options), [x]).eval(), x


@pytest.mark.parametrize(
    ("place", "factor", "words"),
    [
        (
            "0.weight_quantizer",
            2000.0,
            r"the weight of layer '0' \(Conv2d\) was initialized with the step 0\.\d+, which training",
        ),
        ("0.weight_quantizer", -0.5, r"training has driven to -0\.\d+, beyond the bound \d"),
        ("3.input_quantizer", 1e-4, r"the input of layer '3' \(Linear\) was initialized with"),
        (
            "3.weight_quantizer",
            0.0,
            r"the weight of layer '3' \(Linear\) was initialized with the step 0\.\d+, which .* to 0, beyond",
        ),
    ],
)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_step_that_ran_away_is_refused_unless_told(place, factor, words, granularity, tmp_path):
    model, x = network(granularity=granularity)
    lowbit.to_integer(model, x)
    step = model.get_submodule(place).raw_step
    with torch.no_grad():
        step.reshape(-1)[-1].mul_(factor)  # one channel is enough
    with pytest.raises(LowbitError, match=rf"{words}.*: training has diverged.*allow_diverged=True"):
        lowbit.to_integer(model, x)
    integer = lowbit.to_integer(model, x, allow_diverged=True)  # which computes what evaluation does
    assert lowbit.export(integer, tmp_path / "net.json", "json", batches=[x]).ok
    assert lowbit.verify(model, tmp_path / "net.json", [x]).ok


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["raw_step", "offset"])
def test_what_is_not_finite_is_refused_always(what, value):
    model, x = network("lsq+4")
    lowbit.round_zero_points(model)
    with torch.no_grad():
        getattr(model.get_submodule("3.input_quantizer"), what).fill_(value)
    words = rf"the input of layer '3' \(Linear\) has a {what.removeprefix('raw_')} that is not finite: training has diverged"
    for options in ({}, {"allow_diverged": True}):
        with pytest.raises(LowbitError, match=words):
            lowbit.to_integer(model, x, **options)


def test_fractional_networks_are_looked_at_too(tmp_path):
    model, x = network("lsq+4")
    with torch.no_grad():
        model.get_submodule("0.weight_quantizer").raw_step.neg_()
    with pytest.raises(LowbitError, match="training has diverged"):
        lowbit.export(model, tmp_path / "net.onnx", "qonnx", batches=[x])
    lowbit.export(model, tmp_path / "net.onnx", "qonnx", batches=[x], allow_diverged=True)


@pytest.mark.parametrize("method", ["lsq", "minmax", "dorefa", "pact"])
def test_steps_that_are_not_learned_or_hardly_moved_have_not_diverged(method):
    model, x = network(method)
    for _, quantizer in lowbit.quantizers(model):
        if quantizer.method.range is not None:
            with torch.no_grad():
                quantizer.raw_step.fill_(-1.0)  # is not what is computed with
        assert not quantizer.diverged
    lowbit.to_integer(model, x)


def differing(model: nn.Module, x: torch.Tensor) -> int:
    """Codes of the trained network that are not those of the integer one."""
    graph, places = convert(model, x[:1])
    trained = trained_runner(model, graph, places)({next(iter(graph.inputs)): x}).codes
    codes = lowbit.to_integer(model, x[:1]).codes(x)
    return sum(int((trained[name] != codes[name]).sum()) for name in trained)


class Padded(nn.Module):
    """An average behind codes that are moved, with a clamp behind it, for two layers and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x):
        x = nn.functional.max_pool2d(nn.functional.relu(self.first(x)), 2, 1)
        x = nn.functional.relu6(nn.functional.avg_pool2d(x, (2, 4), 1))
        return self.left(x) + self.right(x)


@pytest.mark.parametrize("method", ["lsq", "lsq+", "dorefa"])
@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2), None], ids=["global", "window", "moved"])
def test_steps_around_an_average_make_no_ties(pool, method):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(32, 8, 1), nn.ReLU()]
    model = Padded() if pool is None else nn.Sequential(*layers)
    x = torch.randn(6, 3, 8, 8)
    prepared = lowbit.calibrate(lowbit.prepare(model, method=method, integer_only=True), [x]).eval()
    lowbit.round_zero_points(prepared)
    assert differing(prepared, x) == 0
    pairs = {
        float(q.step)
        for name, q in lowbit.quantizers(prepared)
        if name.startswith("activation_quantizers") or "input" in name
    }
    if method == "lsq" and pool is not None:
        ratios = [a / b for a in pairs for b in pairs if 1 < a / b < 1.001]
        assert ratios == [pytest.approx(1 + 2**-12, abs=1e-6)]


class Selected(nn.Module):
    """Two branches on one grid, which are summed: as a selective kernel's are, and as their halves' sum is."""

    def __init__(self, stack: bool) -> None:
        super().__init__()
        self.stack = stack
        self.left, self.right, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        pair = [F.relu(self.left(x)), F.relu(self.right(x))]
        if self.stack:
            return self.last(torch.stack(pair, 1).sum(1))
        a, b = torch.cat(pair, 1).chunk(2, 1)
        return self.last(a + b)


@pytest.mark.parametrize("stack", [True, False], ids=["stack", "parts"])
def test_steps_around_a_sum_on_one_grid_make_no_ties(stack):
    torch.manual_seed(0)
    x = torch.randn(6, 3, 8, 8)
    prepared = lowbit.prepare(Selected(stack), integer_only=True, example_input=x, first_last=8)
    assert differing(lowbit.calibrate(prepared, [x]).eval(), x) == 0


def test_other_networks_are_initialized_as_before():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(32, 8, 1))
    x = torch.randn(8, 3, 8, 8)
    plain = lowbit.calibrate(lowbit.prepare(model, method="lsq"), [x])
    features = model[:3](x)
    assert float(plain[3].input_quantizer.step) == pytest.approx(float(2 * features.abs().mean() / 255**0.5), rel=1e-6)
