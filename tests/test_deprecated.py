"""Names of version 0.1.0: each still works, and says what it is called now."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import lowbit
from lowbit.quantizer import rounding
from lowbit.verification.report import Report, Row

DATA = torch.linspace(-1, 2, 101)


def quantizer(method: str | lowbit.Method = "lsq") -> lowbit.Quantizer:
    made = lowbit.Quantizer(4, method=method, batch_dim=0)
    made.initialize(DATA)
    return made


def test_snap_offsets_rounds_zero_points():
    with pytest.warns(DeprecationWarning, match=r"lowbit\.snap_offsets .* use lowbit\.round_zero_points"):
        function = lowbit.snap_offsets
    assert function is lowbit.round_zero_points


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Factor", "GradientFunction"),
        ("arctan_slope", "arctan_derivative"),
        ("tanh_slope", "tanh_derivative"),
        ("error_pull", "error_scaling"),
    ],
)
def test_names_of_the_gradients_of_rounding(old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} .* use lowbit.quantizer.rounding.{new}"):
        assert getattr(rounding, old) is getattr(rounding, new)


def test_a_module_has_no_other_names():
    with pytest.raises(AttributeError, match="no attribute 'snap_offset'"):
        _ = lowbit.snap_offset


def test_fields_of_a_method():
    surrogate, scaling = rounding.asr(3.0), rounding.mde(0.1)
    with pytest.warns(DeprecationWarning, match="'slope' of Method .* use 'surrogate_gradient'"):
        first = lowbit.Method("first", slope=surrogate)
    with pytest.warns(DeprecationWarning, match="'pull' of Method .* use 'gradient_scaling'"):
        second = replace(first, pull=scaling)
    assert second == lowbit.Method("first", surrogate_gradient=surrogate, gradient_scaling=scaling)
    with pytest.warns(DeprecationWarning, match="use Method.surrogate_gradient"):
        assert second.slope is surrogate
    with pytest.warns(DeprecationWarning, match="use Method.gradient_scaling"):
        assert second.pull is scaling


def test_methods_and_properties_of_a_quantizer():
    made = lowbit.Quantizer(4, method=lowbit.METHODS["lsq+4"].for_activations)
    with pytest.warns(DeprecationWarning, match="use Quantizer.initialized"):
        assert made.started is False
    with pytest.warns(DeprecationWarning, match=r"use Quantizer.initialize\(\)"):
        made.start(DATA)
    assert made.initialized
    with pytest.warns(DeprecationWarning, match=r"use Quantizer.integer_zero_point \(its opposite\)"):
        assert made.has_fraction is True
    with pytest.warns(DeprecationWarning, match=r"use Quantizer.round_zero_point\(\)"):
        made.snap()
    assert made.integer_zero_point
    with pytest.warns(DeprecationWarning, match=r"use Quantizer.reset\(\)"):
        made.restart()
    assert not made.initialized


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("parts_at", "first_difference"),
        ("conversion_parts_at", "first_conversion_difference"),
        ("trained_parts_at", "first_trained_difference"),
    ],
)
def test_properties_of_a_report(old, new):
    row = Row(
        "conv", compared=9, file_differ=1, file_largest=1, trained_differ=2, trained_largest=1, conversion_differ=1
    )
    report = Report([row], 1, None, {})
    with pytest.warns(DeprecationWarning, match=f"use Report.{new}"):
        assert getattr(report, old) == getattr(report, new) == "conv"


def residual() -> nn.Module:
    """A sum between layers, which gets a quantizer of its own in an integer-only network."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.second(self.first(x)) + self.first(x))

    torch.manual_seed(0)
    return Residual()


def test_quantizers_between_layers():
    """Their submodule was called `streams`: in rules, and in the names of a checkpoint."""
    with pytest.warns(DeprecationWarning, match=r"'streams\.…' in the rule .* use 'activation_quantizers\.…'"):
        rules = [lowbit.Rule(r"streams\..*first.*", activations=6)]
        old = lowbit.prepare(residual(), integer_only=True, rules=rules)
    rules = [lowbit.Rule(r"activation_quantizers\..*first.*", activations=6)]
    source, target = (lowbit.prepare(residual(), integer_only=True, rules=rules) for _ in range(2))
    widths = {name: quantizer.bits for name, quantizer in lowbit.quantizers(source)}
    assert widths == {name: quantizer.bits for name, quantizer in lowbit.quantizers(old)} and 6 in widths.values()
    lowbit.calibrate(source, [torch.randn(8, 4)])
    saved = {name.replace("activation_quantizers.", "streams."): value for name, value in source.state_dict().items()}
    assert any(name.startswith("streams.") for name in saved)
    target.load_state_dict(saved)
    x = torch.randn(3, 4)
    assert torch.equal(source.eval()(x), target.eval()(x))


@pytest.mark.parametrize(
    ("old", "new"),
    [("slope_value", "surrogate_value"), ("slope_norm", "surrogate_norm"), ("pull_value", "scaling_value")],
)
def test_buffers_of_a_quantizer(old, new):
    made = quantizer("lg-lsq")
    with pytest.warns(DeprecationWarning, match=f"use Quantizer.{new}"):
        assert getattr(made, old) is getattr(made, new)


def test_buffers_of_a_checkpoint():
    """0.1.0 saved neither under these names nor, at first, the norm."""
    source = quantizer(lowbit.Method("mine", surrogate_gradient=rounding.asr(3.0), gradient_scaling=rounding.mde(0.1)))
    saved = source.state_dict()
    saved["slope_value"], saved["pull_value"] = saved.pop("surrogate_value"), saved.pop("scaling_value")
    del saved["surrogate_norm"]
    target = quantizer(lowbit.Method("mine", surrogate_gradient=rounding.asr(5.0), gradient_scaling=rounding.mde(0.2)))
    assert target.surrogate_norm != source.surrogate_norm
    nn.Module.load_state_dict(target, saved)
    assert {name: value.tolist() for name, value in target.state_dict().items()} == {
        name: value.tolist() for name, value in source.state_dict().items()
    }


def test_metadata_of_an_integer_network():
    model = lowbit.calibrate(lowbit.prepare(residual(), integer_only=True), [torch.randn(8, 4)])
    integer = lowbit.to_integer(model.eval(), torch.randn(1, 4))
    with pytest.warns(DeprecationWarning, match=r"use IntegerNetwork.with_metadata\(\)"):
        integer = integer.described({"trained": "not at all"})
    with pytest.warns(DeprecationWarning, match="use IntegerNetwork.metadata"):
        assert integer.about == integer.metadata == {"trained": "not at all"}


def test_the_momentum_of_running_means():
    with pytest.warns(DeprecationWarning, match="'memory' of Balance .* use 'momentum'"):
        balance = lowbit.Balance(memory=0.5)
    with pytest.warns(DeprecationWarning, match=r"use Balance\.momentum"):
        assert balance.memory == balance.momentum == 0.5
    model = lowbit.calibrate(lowbit.prepare(residual(), activations=None))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(DeprecationWarning, match="'memory' of OscillationFreezer"):
        freezer = lowbit.OscillationFreezer(model, optimizer, memory=0.5)
    assert freezer.momentum == 0.5
    freezer.remove()
    with pytest.warns(DeprecationWarning, match="'memory' of TransitionRate"):
        lowbit.TransitionRate(model, optimizer, memory=0.5).remove()
