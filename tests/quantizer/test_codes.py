"""Codes: the integers behind x̂."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lowbit
from lowbit import METHODS, Grid, Quantizer
from tests.quantizer import oracle

SHAPES = {
    "tensor": (None, ()),
    "channel": (None, (4, 1)),
    "group": ((4, 2, 3), (4, 2, 1)),
    "channels": ((2, 2, 6), (2, 1, 1)),
}


@st.composite
def quantizers(draw) -> tuple[Quantizer, torch.Tensor]:
    """A quantizer of any method and shape, some while after it was initialized, and an input."""
    method = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    method = method.for_activations if draw(st.booleans()) else method
    bits = draw(st.integers(1, 8))
    view, step_shape = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    signed = draw(st.sampled_from([None, True]))
    narrow = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    x = torch.randn(4, 6, generator=generator)
    quantizer = Quantizer(
        bits, method=method, signed=signed, narrow=narrow, view=view, step_shape=step_shape, name="a quantizer"
    )
    quantizer.initialize(x + draw(st.sampled_from([0.0, 1.0])))
    if draw(st.booleans()):
        quantizer.round_zero_point()
    with torch.no_grad():
        quantizer.raw_step.mul_(draw(st.sampled_from([1.0, 0.37, 1.9])))
        if quantizer.offset is not None and quantizer.uses_offset:
            quantizer.offset.add_(0.1)
    return quantizer, x * draw(st.sampled_from([1.0, 0.2, 4.0]))


@given(quantizers())
def test_the_quantized_tensor_is_step_times_code_plus_offset(drawn):
    quantizer, x = drawn
    q, grid = quantizer.codes(x), quantizer.grid
    assert q.dtype == torch.int32 and q.shape == x.shape
    assert grid.qn <= int(q.min()) and int(q.max()) <= grid.qp
    if grid.binary:
        assert not (q == 0).any()
    step = quantizer.step_for(x)
    viewed = q if quantizer.view is None else q.reshape(quantizer.view)
    x_hat = viewed * step
    if quantizer.uses_offset:
        x_hat = x_hat + (quantizer.offset if not quantizer.integer_zero_point else -(quantizer.zero_point * step))
    assert torch.equal(quantizer(x), x_hat.reshape(x.shape))


@given(quantizers())
def test_an_integer_network_stores_the_code_itself(drawn):
    """real = scale·(stored − zero point) gives x̂ back: the stored number is found from x̂ alone."""
    quantizer, x = drawn
    x_hat = quantizer(x).detach()
    viewed = x_hat if quantizer.view is None else x_hat.reshape(quantizer.view)
    stored = (viewed.double() / quantizer.step_for(x).double() + quantizer.zero_point.double()).round()
    assert torch.equal(quantizer.codes(x).double(), stored.reshape(x.shape))


@pytest.mark.parametrize("grid", [Grid(1, True), Grid(2, True, True), Grid(3, False), Grid(4, True), Grid(8, False)])
def test_codes_are_the_nearest_levels(grid):
    """By the book, ties and both ends included."""
    quantizer = Quantizer(grid.bits, signed=grid.signed, narrow=grid.narrow)
    quantizer.initialize(torch.ones(4))
    with torch.no_grad():
        quantizer.raw_step.fill_(0.5)
        quantizer.initial_step.fill_(0.5)
    v = np.arange(4 * (grid.qn - 3), 4 * (grid.qp + 3)) / 4
    expected = [oracle.nearest_level(min(max(each, grid.qn), grid.qp), grid.binary) for each in v]
    assert quantizer.codes(torch.tensor(v * 0.5, dtype=torch.float32)).tolist() == expected


def test_codes_need_a_step():
    with pytest.raises(lowbit.LowbitError, match=r"input of layer 'a'.*lowbit\.calibrate"):
        Quantizer(4, name="the input of layer 'a'").codes(torch.randn(3))


@pytest.mark.parametrize("x", [torch.rand(3, 6, dtype=torch.float64), torch.rand(3, 6).to(torch.bfloat16)])
def test_codes_of_other_types(x):
    quantizer = Quantizer(3)
    quantizer.initialize(torch.rand(9))
    assert torch.equal(quantizer.codes(x), (x.double() / quantizer.step.double()).round().clamp(0, 7).int())


def test_the_oscillation_freezer_keeps_codes_in_the_shape_of_groups():
    """As it always did: its saved state loads."""
    model = lowbit.calibrate(lowbit.prepare(nn.Sequential(nn.Linear(6, 4)), granularity="group:3", activations=None))
    freezer = lowbit.OscillationFreezer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert freezer.state_dict()["0.codes"].shape == (4, 2, 3)
    assert torch.equal(
        freezer.state_dict()["0.codes"].reshape(4, 6).int(), model[0].weight_quantizer.codes(model[0].weight)
    )
