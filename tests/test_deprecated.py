"""Names of version 0.1.0: each still works, and says what it is called now."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import lowbit
from lowbit.quantizer import rounding

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
