"""The quantizer's learned state: where it starts, what it survives, what a checkpoint brings back."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lowbit import METHODS, LowbitError, Quantizer
from lowbit.grid import Grid
from lowbit.quantizer.initialization import Statistics, least_squares_init
from lowbit.quantizer.methods import lsq_plus


def started(bits=4, *, data=None, **options) -> Quantizer:
    quantizer = Quantizer(bits, **options)
    quantizer.initialize(torch.linspace(-1, 2, 101) if data is None else data)
    return quantizer


def test_lsq_starts_at_twice_the_mean_magnitude():
    x = torch.tensor([[-1.0, 2.0], [3.0, -6.0]])
    assert started(4, data=x).step.item() == pytest.approx(2 * 3.0 / math.sqrt(7))
    unsigned = started(4, data=x.abs())
    assert unsigned.step.item() == pytest.approx(2 * 3.0 / math.sqrt(15))
    per_channel = started(4, data=x, signed=True, step_shape=(2, 1))
    torch.testing.assert_close(per_channel.step, torch.tensor([[1.5], [4.5]]) * 2 / math.sqrt(7))


def test_lsq_plus_weights_start_at_three_sigma():
    w = torch.tensor([1.0, 3.0, 5.0, 7.0])  # mean 4, standard deviation sqrt(5)
    step = started(4, data=w, signed=True, method="lsq+").step.item()
    assert step == pytest.approx((4 + 3 * math.sqrt(5)) / 8, rel=1e-6)


@pytest.mark.parametrize("step_shape", [(), (3, 1, 1)])
def test_moments_are_those_of_all_batches(step_shape):
    """Of data far from zero, where squares in single precision would leave nothing of the variance."""
    generator = torch.Generator().manual_seed(0)
    batches = [1000 + torch.randn(3, 5, 50 + i, generator=generator) for i in range(4)]
    statistics = Statistics(step_shape)
    for batch in batches:
        statistics.update(batch)
    everything = torch.cat([b.reshape(3 if step_shape else 1, -1) for b in batches], dim=1).double()
    torch.testing.assert_close(statistics.mean.double(), everything.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics.std.double(), everything.std(1, correction=0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("narrow", [False, True])
def test_three_sigmas_reach_to_the_end_of_any_grid(narrow):
    method = METHODS["lsq"].varied(init_weights="three-sigma")
    w = torch.tensor([-9.0, 1.0, 3.0, 5.0])  # mean 0, standard deviation sqrt(29)
    step = started(3, data=w, method=method, narrow=narrow).step.item()
    assert step == pytest.approx(3 * math.sqrt(29) / (3 if narrow else 4), rel=1e-6)
    unsigned = started(3, data=torch.tensor([1.0, 3.0, 5.0, 7.0]), method=method).step.item()
    assert unsigned == pytest.approx((4 + 3 * math.sqrt(5)) / 7, rel=1e-6)


@pytest.mark.parametrize(("data", "signed"), [(torch.linspace(0, 1, 50), False), (torch.linspace(-0.01, 1, 50), True)])
def test_sign_is_decided_from_data(data, signed):
    assert started(4, data=data).grid.signed is signed


@pytest.mark.parametrize(
    ("configuration", "signed", "offset"), [(1, False, False), (2, True, False), (3, True, True), (4, False, True)]
)
def test_lsq_plus_configurations(configuration, signed, offset):
    quantizer = started(4, method=lsq_plus(configuration).for_activations)
    assert quantizer.grid.signed is signed and quantizer.uses_offset is offset


def test_lsq_plus_learns_an_offset_only_where_data_goes_negative():
    row = METHODS["lsq+"].for_activations
    silu = nn.functional.silu(torch.randn(5000))
    negative, positive = started(data=silu, method=row), started(data=silu.relu(), method=row)
    assert negative.uses_offset and not negative.grid.signed and negative.offset.requires_grad
    assert -0.3 < negative.offset.item() < -0.1  # SiLU's minimum is −0.278
    assert not positive.uses_offset and positive.offset.item() == 0 and not positive.offset.requires_grad


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4, 8]), st.booleans())
def test_least_squares_start_is_no_worse_than_a_fine_scan(seed, bits, with_offset):
    generator = torch.Generator().manual_seed(seed)
    x = nn.functional.silu(torch.randn(1000, generator=generator) * 2)
    grid = Grid(bits, signed=not with_offset)
    step, beta = least_squares_init(Statistics.of(x), grid, with_offset)

    def error(s, b):
        return float((((x - b) / s).round().clamp(grid.qn, grid.qp) * s + b - x).square().mean())

    low, high = float(x.min()), float(x.max())
    bottoms = [low * i / 10 for i in range(11)] if with_offset else [0.0]
    scan = [
        error(width, bottom)
        for bottom in bottoms
        for i in range(1, 61)
        if (width := (high - bottom) * i / 60 / (grid.qp - grid.qn if with_offset else grid.qp)) > 0
    ]
    assert error(step, beta) <= 1.05 * min(scan)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (torch.zeros(3, 3), "all zero"),
        (torch.tensor([1.0, float("nan")]), "NaN or infinity"),
        (torch.tensor([1.0, float("inf")]), "NaN or infinity"),
        (torch.empty(0, 3), "empty"),
    ],
)
def test_data_that_gives_no_step_is_refused(data, words):
    quantizer = Quantizer(4, name="the weight of layer 'conv1'")
    with pytest.raises(LowbitError, match=f"conv1.*{words}"):
        quantizer.initialize(data)
    assert not quantizer.initialized


def test_a_grid_that_cannot_hold_the_data_is_refused():
    for method in ("lsq", "minmax", "dorefa"):
        with pytest.raises(LowbitError, match=r"input of layer 'fc'.* all negative"):
            Quantizer(
                4, method=METHODS[method].for_activations, signed=False, name="the input of layer 'fc'"
            ).initialize(-torch.rand(5))
    with pytest.raises(LowbitError, match="no positive step"):
        Quantizer(4).initialize(torch.rand(5) * 1e-40)  # its lower bound would not be a number above zero


def test_a_pruned_channel_gets_a_step_from_the_others():
    w = torch.randn(4, 3, 3, 3)
    w[2] = 0
    quantizer = started(4, data=w, signed=True, step_shape=(4, 1, 1, 1))
    assert (quantizer.step > 0).all() and torch.equal(quantizer(w)[2], w[2])


def test_not_started_says_what_to_do():
    with pytest.raises(LowbitError, match=r"input of layer 'a'.*lowbit\.calibrate"):
        Quantizer(4, name="the input of layer 'a'")(torch.randn(3))


def test_starts_once():
    quantizer = started(data=torch.ones(4))
    before = quantizer.step
    quantizer.initialize(100 * torch.ones(4))
    assert torch.equal(quantizer.step, before)


@pytest.mark.parametrize("lr", [1.0, 1e3, 1e10, 1e38, float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["lsq", "lsq+", "lg-lsq", "ewgs", "dsq"])
def test_the_step_stays_positive_and_finite_whatever_the_learning_rate(lr, method):
    torch.manual_seed(0)
    x = torch.randn(8, 16)
    quantizer = started(3, data=x, method=METHODS[method].for_activations, batch_dim=0)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["lr"] = lr
    for _ in range(6):
        optimizer.zero_grad()
        (quantizer(x) - torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
        assert (quantizer.step > 0).all() and torch.isfinite(quantizer.step).all()


def test_bounding_the_step_leaves_ordinary_steps_exactly_alone():
    quantizer = started()
    with torch.no_grad():
        quantizer.raw_step.mul_(0.01)
    assert torch.equal(quantizer.step, quantizer.raw_step)


def test_a_checkpoint_starts_the_quantizer_and_it_never_starts_again():
    source, target = started(data=torch.rand(9)), Quantizer(4)
    with torch.no_grad():
        source.raw_step.mul_(1.5)  # as if trained
    target.load_state_dict(source.state_dict())
    target.initialize(torch.randn(100) * 50)
    assert target.grid == source.grid and torch.equal(target.step, source.step)


def test_a_checkpoint_of_another_width_is_refused():
    with pytest.raises(RuntimeError, match="has 3 bits but the checkpoint's has 4"):
        Quantizer(3).load_state_dict(started(4).state_dict())


def test_a_checkpoint_of_another_grid_is_refused():
    source = started(4, signed=True)
    with pytest.raises(RuntimeError, match="narrow signed grid"):
        Quantizer(4, signed=True, narrow=True).load_state_dict(source.state_dict())


@pytest.mark.parametrize("convert", [lambda q: q.half(), lambda q: q.to(torch.bfloat16), lambda q: q.double()])
def test_state_stays_float32(convert):
    quantizer = convert(started(method=lsq_plus(4).for_activations))
    assert {t.dtype for t in (*quantizer.parameters(), quantizer.initial_step)} == {torch.float32}


def test_works_under_autocast():
    quantizer = started(8, signed=True)
    x = torch.randn(4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer((x @ x) * 1e-3)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert quantizer.raw_step.grad.dtype == torch.float32 and quantizer.raw_step.grad != 0


def test_copies_and_pickles_after_use():
    quantizer = started(batch_dim=0)
    x = torch.randn(3, 3)
    expected = quantizer(x)
    for other in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(other(x), expected)


def test_a_quantizer_can_be_called_twice_with_one_tensor():
    quantizer, x = started(batch_dim=0), torch.randn(3, 3, requires_grad=True)
    for number in (1, 2):  # a graph is run backward once only, and each call has its own
        quantizer(x).sum().backward()
        if number == 1:
            first = quantizer.raw_step.grad.clone()
    torch.testing.assert_close(quantizer.raw_step.grad, 2 * first)


@pytest.mark.parametrize("view", [None, (3, 2, 2)])
def test_the_quantized_tensor_can_be_changed_in_place(view):
    x = torch.randn(3, 4, requires_grad=True)
    quantizer = started(data=x, signed=True, view=view, step_shape=() if view is None else (3, 2, 1))
    quantizer(x).mul(2).sum().backward()
    expected, x.grad = x.grad, None
    quantizer(x).mul_(2).sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize(("view", "step_shape"), [(None, ()), (None, (4, 1)), ((4, 2, 4), (4, 2, 1))])
def test_compiled_equals_eager(method, view, step_shape):
    torch.manual_seed(0)
    x = torch.randn(4, 8, requires_grad=True)
    quantizer = started(3, data=x, method=method, signed=True, view=view, step_shape=step_shape)
    gradient = torch.randn(4, 8)
    quantizer(x).backward(gradient)
    expected = [quantizer(x).detach(), x.grad.clone(), quantizer.raw_step.grad]
    x.grad, quantizer.raw_step.grad = None, None
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    compiled(x).backward(gradient)
    torch.testing.assert_close([compiled(x).detach(), x.grad, quantizer.raw_step.grad], expected)


def test_compiles_with_dynamic_shapes():
    torch._dynamo.reset()
    quantizer = started(3, batch_dim=0)
    compiled = torch.compile(quantizer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (5, 7):
        x = torch.randn(4, size)
        compiled(x).sum().backward()
        dynamic, quantizer.raw_step.grad = quantizer.raw_step.grad, None
        quantizer(x).sum().backward()
        torch.testing.assert_close(quantizer.raw_step.grad, dynamic)
        quantizer.raw_step.grad = None
