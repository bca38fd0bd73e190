"""fake_quantize against an independent oracle: value and every gradient, every method, grid and granularity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit import METHODS, Grid, LowbitError, Method, fake_quantize
from lowbit.quantizer.methods import lg_lsq
from lowbit.quantizer.rounding import GradientFunction, asr, mde
from lowbit.quantizer.step import StepGradient, size_scale, soft_value_inside, ssg_inside, unit_scale
from tests.quantizer import oracle


def lsq_g(n, qp):
    return 1 / np.sqrt(n * qp)


# What each published row must do, in the oracle's own terms.
ROWS = {
    "lsq": dict(form="lsq", slope=None, pull=None, scale=lsq_g),
    "lsq+": dict(form="lsq", slope=None, pull=None, scale=lsq_g),
    "lg-lsq": dict(form="soft", slope=lambda t: oracle.arctan_slope(t, 2.0), pull=0.05, scale=lsq_g),
    "ewgs": dict(form="lsq", slope=None, pull=1e-3, scale=lsq_g),
    "dsq": dict(form="lsq", slope=lambda t: oracle.tanh_slope(t, 2.197), pull=None, scale=lsq_g),
    "pact": dict(form=None, slope=None, pull=None, scale=lsq_g),
    "pact activations": dict(form="clip", slope=None, pull=None, scale=lambda n, qp: 1 / qp**2),
    "dorefa": dict(form=None, slope=None, pull=None, scale=lsq_g),
    "minmax": dict(form=None, slope=None, pull=None, scale=lsq_g),
    "asr only": dict(form="lsq", slope=lambda t: oracle.arctan_slope(t, 7.0), pull=None, scale=lsq_g),
    "mde only": dict(form="lsq", slope=None, pull=0.5, scale=lsq_g),
    "ssg + asr": dict(form="soft", slope=lambda t: oracle.arctan_slope(t, 2.0), pull=None, scale=lsq_g),
    "soft value": dict(
        form=lambda v: oracle.soft_round(v, lambda t: oracle.arctan_slope(t, 3.0)) - v,
        slope=None,
        pull=None,
        scale=lsq_g,
    ),
    "g = 1/sqrt(N)": dict(form="lsq", slope=None, pull=None, scale=lambda n, qp: n**-0.5),
    "g = 1": dict(form="lsq", slope=None, pull=None, scale=lambda n, qp: 1.0),
}
OWN = {
    "pact activations": METHODS["pact"].activations,
    "asr only": lg_lsq(ssg=False, asr_k=7.0, mde_delta=None),
    "mde only": lg_lsq(ssg=False, asr_k=None, mde_delta=0.5),
    "ssg + asr": Method("custom", surrogate_gradient=asr(2.0), step_gradient=StepGradient(inside=ssg_inside)),
    "soft value": Method("custom", step_gradient=StepGradient(inside=soft_value_inside(3.0))),
    "g = 1/sqrt(N)": Method("custom", step_gradient=StepGradient(scale=size_scale)),
    "g = 1": Method("custom", step_gradient=StepGradient(scale=unit_scale)),
}
GRIDS = [
    *(Grid(bits, signed=False) for bits in range(1, 9)),
    *(Grid(bits, signed=True) for bits in range(1, 9)),
    *(Grid(bits, signed=True, narrow=True) for bits in range(2, 9)),
]
STEPS = {"tensor": (), "channel": (3, 1, 1), "column": (1, 1, 4), "each": (3, 2, 4), "one": (1, 1, 1)}


def test_every_method_of_the_table_is_held_against_the_oracle():
    # LSQ+'s configurations differ from its row in the activations' grid alone.
    assert set(METHODS) - {f"lsq+{configuration}" for configuration in (1, 2, 3, 4)} <= set(ROWS)


def awkward(grid: Grid, step: np.ndarray, offset: np.ndarray, rng) -> np.ndarray:
    """Data of shape [3, 2, 4] with ties, both range edges, values far outside and ordinary ones."""
    positions = rng.uniform(grid.qn - 2, grid.qp + 2, size=(3, 2, 4))
    special = [
        grid.qn,
        grid.qp,
        grid.qn + 0.5,
        grid.qp - 0.5,
        0.0,
        0.5,
        -0.5,
        1.5,
        grid.qn - 0.5,
        grid.qp + 0.5,
        -1e6,
        1e6,
    ]
    places = rng.permutation(24)[: len(special)]
    positions.reshape(-1)[places] = special
    # Powers of two as steps make (x − β)/s exact, so that a tie stays a tie.
    return positions * step + offset


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("row", ROWS)
def test_value_and_every_gradient(row, grid):
    if row == "soft value" and grid.binary:
        return  # it is for grids whose levels are 1 apart
    rng = np.random.default_rng(GRIDS.index(grid))
    method = OWN.get(row, row)
    for shape in STEPS.values():
        for batch_dim in (None, 0, 1):
            for with_offset in (False, True):
                step = 2.0 ** rng.integers(-4, 3, size=shape)
                offset = rng.integers(-4, 4, size=shape) * 0.25 if with_offset else np.zeros(shape)
                x, gradient = awkward(grid, step, offset, rng), rng.normal(size=(3, 2, 4))
                tx, ts = torch.tensor(x, requires_grad=True), torch.tensor(step, requires_grad=True)
                tb = torch.tensor(offset, requires_grad=True) if with_offset else None
                out = fake_quantize(tx, ts, grid, offset=tb, method=method, batch_dim=batch_dim)
                out.backward(torch.tensor(gradient))
                value, gx, gs, gb = oracle.quantize(
                    x, step, offset if with_offset else None, gradient,
                    qn=grid.qn, qp=grid.qp, binary=grid.binary, batch_dim=batch_dim, **ROWS[row],
                )  # fmt: skip
                close = dict(rtol=1e-6 if ROWS[row]["slope"] or ROWS[row]["pull"] else 1e-12, atol=1e-12)
                np.testing.assert_array_equal(out.detach().numpy(), value)
                np.testing.assert_allclose(tx.grad.numpy(), gx, **close)
                if ROWS[row]["form"] is None:
                    assert ts.grad is None
                    assert tb is None or tb.grad is None
                    continue
                np.testing.assert_allclose(ts.grad.numpy(), gs, rtol=1e-6, atol=1e-9)
                if with_offset:
                    np.testing.assert_allclose(tb.grad.numpy(), gb, rtol=1e-12, atol=1e-12)


def test_lsq_by_hand():
    """Seven numbers, worked out on paper: s = ½, unsigned 2-bit grid {0, 1, 2, 3}, N = 7, g = 1/sqrt(21)."""
    x = torch.tensor([-0.3, 0.0, 0.2, 0.25, 0.75, 1.2, 9.0], dtype=torch.float64, requires_grad=True)
    step = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    out = fake_quantize(x, step, Grid(2, signed=False))
    out.sum().backward()
    assert out.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.5]
    assert x.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    # q − v: 0 − 0.4, 0 − 0.5, 2 − 1.5, 2 − 2.4; then Qp = 3; below zero Qn = 0
    assert step.grad.item() == pytest.approx((-0.4 - 0.5 + 0.5 - 0.4 + 3) / 21**0.5, rel=1e-12)


def test_only_the_tensors_that_need_it_get_a_gradient():
    x, step = torch.randn(4, 4), torch.tensor(0.1, requires_grad=True)
    fake_quantize(x, step, Grid(4, signed=True)).sum().backward()
    assert x.grad is None and step.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype):
    torch.manual_seed(0)
    x = torch.randn(64, 64).to(dtype).requires_grad_()
    step = torch.tensor(1e-6 if dtype == torch.bfloat16 else 1e-2, requires_grad=True)
    out = fake_quantize(x, step, Grid(8, signed=True))
    assert out.dtype == dtype and step.dtype == torch.float32
    exact = fake_quantize(x.detach().float(), step, Grid(8, signed=True))
    assert torch.equal(out, exact.to(dtype))
    out.sum().backward()
    assert x.grad.dtype == dtype and step.grad.dtype == torch.float32 and torch.isfinite(step.grad)


def test_keeps_nothing_but_its_input_for_the_backward_pass():
    x = torch.randn(100, 100, requires_grad=True)
    step = torch.tensor(0.1, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fake_quantize(x, step, Grid(4, signed=True))
    large = [t for t in kept if t.numel() > 1]
    assert len(large) == 1 and large[0].data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("step_shape", "batch_dim", "words"),
    [((3,), None, "does not broadcast"), ((1, 1, 1, 2), None, "does not broadcast"), ((), 5, "not a dimension")],
)
def test_wrong_shapes_are_refused(step_shape, batch_dim, words):
    with pytest.raises(LowbitError, match=words):
        fake_quantize(torch.randn(2, 2), torch.ones(step_shape), Grid(4, signed=True), batch_dim=batch_dim)


@pytest.mark.parametrize(
    ("x", "step", "words"),
    [
        (torch.ones(3, dtype=torch.int64), torch.tensor(1.0), "floating-point"),
        (torch.ones(3), 0.5, "step must be a tensor"),
    ],
)
def test_arguments_that_are_no_tensors(x, step, words):
    with pytest.raises(LowbitError, match=words):
        fake_quantize(x, step, Grid(4, signed=True))


def test_unknown_method_names_the_close_one():
    with pytest.raises(LowbitError, match="Did you mean 'lsq"):
        fake_quantize(torch.randn(2), torch.tensor(1.0), Grid(4, signed=True), method="lqs")


def test_a_users_own_row_takes_a_few_lines():
    def half(position, value):
        return torch.full_like(position, 0.5) * value

    mine = Method("mine", surrogate_gradient=GradientFunction(half, value=3.0))
    x = torch.linspace(-0.9, 0.9, 7, requires_grad=True)
    fake_quantize(x, torch.tensor(1.0), Grid(3, signed=True), method=mine).sum().backward()
    assert x.grad.tolist() == [1.5] * 7


# Laws of the reconstructed LG-LSQ, as properties.


@given(k=st.floats(0.01, 200), c=st.floats(-20, 20))
def test_arctan_slope_is_positive(k, c):
    assert arctan(c, k) > 0


@given(k=st.floats(0.01, 50), cell=st.integers(-8, 7))
@settings(max_examples=30)
def test_arctan_slope_integrates_to_one_over_each_cell(k, cell):
    n = 20000
    places = cell + (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert arctan(places, k).mean().item() == pytest.approx(1, abs=1e-4)


@given(c=st.floats(-8, 8))
def test_small_k_is_the_straight_through_estimator(c):
    assert arctan(c, 1e-3) == pytest.approx(1, abs=1e-6)


def test_large_k_is_the_hard_round():
    assert arctan(0.5, 1e6) > 1e5  # at the jump
    assert arctan(0.3, 1e6) < 1e-4  # between jumps


@given(delta=st.floats(0, 1.999), error=st.floats(-0.5, 0.5), gradient=st.floats(-1e3, 1e3))
def test_pull_is_positive_and_lengthens_steps_toward_the_level(delta, error, gradient):
    factor = float(mde(delta).function(*torch.tensor([error, gradient, delta], dtype=torch.float64)))
    assert factor > 0
    if error * gradient > 0 and delta > 1e-6 and abs(error) > 1e-6:
        # x lies above its level and descent lowers it (or the mirror image): the step is made longer.
        assert factor > 1


def test_zero_delta_is_the_plain_estimator():
    x, step = torch.randn(50, requires_grad=True), torch.tensor(0.3)
    for method in ("lsq", lg_lsq(ssg=False, asr_k=None, mde_delta=0.0)):
        fake_quantize(x, step, Grid(3, signed=True), method=method).sin().sum().backward()
    plain = torch.autograd.grad(fake_quantize(x, step, Grid(3, signed=True)).sin().sum(), x)[0]
    torch.testing.assert_close(x.grad, 2 * plain)


def test_mde_brings_weights_nearer_to_their_levels_in_training():
    """E|c − q| after descent on a noisy quadratic falls against δ = 0."""

    def distance(delta: float) -> float:
        torch.manual_seed(0)
        w = torch.randn(2000, requires_grad=True)
        target, step = torch.randn(2000), torch.tensor(0.5)
        method = lg_lsq(ssg=False, asr_k=None, mde_delta=delta)
        for _ in range(200):
            w_hat = fake_quantize(w, step, Grid(3, signed=True), method=method)
            loss = ((w_hat - target - 0.5 * torch.randn(2000)) ** 2).sum()
            (gradient,) = torch.autograd.grad(loss, w)
            w.data -= 0.02 * gradient
        v = (w.detach() / step).clamp(-4, 3)
        return float((v - v.round()).abs().mean())

    assert distance(0.5) < 0.9 * distance(0.0)


def arctan(c, k: float) -> torch.Tensor:
    value = torch.tensor(k, dtype=torch.float64)
    return asr(k).function(torch.as_tensor(c, dtype=torch.float64), value) * asr(k).norm_of(value)


@given(
    bits=st.integers(2, 8),
    step=st.floats(1e-3, 1e3),
    data=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30),
)
def test_output_is_on_the_grid_and_quantizing_again_changes_nothing(bits, step, data):
    x, s, grid = (
        torch.tensor(data, dtype=torch.float64),
        torch.tensor(step, dtype=torch.float64),
        Grid(bits, signed=True),
    )
    once = fake_quantize(x, s, grid)
    codes = once / s
    torch.testing.assert_close(codes, codes.round(), atol=1e-9, rtol=0)
    assert codes.min() >= grid.qn - 1e-9 and codes.max() <= grid.qp + 1e-9
    assert torch.equal(fake_quantize(once, s, grid), once)
    inside = (x / s > grid.qn) & (x / s < grid.qp)
    assert ((once - x).abs()[inside] <= s / 2 * (1 + 1e-9)).all()
