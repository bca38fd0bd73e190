"""The fused kernels against the plain functions: value and every gradient, every method, both granularities."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

from lowbit import METHODS, Grid, fake_quantize
from lowbit.quantizer import kernels
from lowbit.quantizer.methods import Method

# Rows with different gradients; the others differ from them in where they start, or in what comes before.
ROWS: dict[str, Method] = {
    "lsq": METHODS["lsq"],
    "lg-lsq": METHODS["lg-lsq"],
    "ewgs": METHODS["ewgs"],
    "dsq": METHODS["dsq"],
    "pact activations": METHODS["pact"].for_activations,
    "minmax": METHODS["minmax"],
}


@pytest.fixture
def fused(monkeypatch, compiler):
    """Kernels for tensors of any size, counted."""
    ran = []
    run = kernels._run

    def counting(*arguments, **options):
        ran.append(arguments[0])
        return run(*arguments, **options)

    monkeypatch.setattr(kernels, "smallest", 1)
    monkeypatch.setattr(kernels, "_run", counting)
    return ran


def everything(x, step, offset, gradient, grid, method, batch_dim=None):
    """[x̂, ∂L/∂x, ∂L/∂s, ∂L/∂β]."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, step, offset)]
    x_hat = fake_quantize(leaves[0], leaves[1], grid, offset=leaves[2], method=method, batch_dim=batch_dim)
    x_hat.backward(gradient)
    return [x_hat.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]


def compare(*arguments, **options):
    """Run once with kernels and once without; the fused result."""
    fused = everything(*arguments, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "smallest", 10**9)
        plain = everything(*arguments, **options)
    for a, b in zip(fused[:1], plain[:1]):
        assert torch.equal(a, b)
    for a, b in zip(fused[1:], plain[1:]):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    return fused


@pytest.mark.parametrize("shape", [(), (6, 1, 1, 1)], ids=["tensor", "channel"])
@pytest.mark.parametrize("row", ROWS)
def test_value_and_every_gradient(row, shape, fused):
    generator = torch.Generator().manual_seed(0)
    for grid, size in ((Grid(2, signed=False), 5), (Grid(4, signed=True), 7)):
        x, gradient = (torch.randn(6, 4, size, size, generator=generator) for _ in range(2))
        x[0, 0, 0, :4] = torch.tensor([0.0, 0.25, 0.75, 100.0])  # ties and the far outside, the step being ½
        step = torch.full(shape, 0.5) if not shape else torch.rand(shape, generator=generator) + 0.25
        compare(x, step, None, gradient, grid, ROWS[row])
    assert len(fused) == 4


def test_offset_and_layouts_and_types(fused):
    """With an offset; in channels-last memory; a gradient in another layout; bfloat16; N without the batch."""
    grid = Grid(3, signed=False)
    x, gradient = torch.randn(4, 6, 5, 5), torch.randn(4, 6, 5, 5)
    step, offset = torch.tensor(0.3), torch.tensor(-0.7)
    compare(x, step, offset, gradient, grid, "lsq+", batch_dim=0)
    last = x.to(memory_format=torch.channels_last)
    x_hat, grad_x, _, _ = compare(last, step, None, gradient, grid, "lsq", batch_dim=0)
    assert x_hat.stride() == last.stride() == grad_x.stride()
    compare(x.bfloat16(), step, None, gradient.bfloat16(), grid, "lsq")
    assert len(fused) == 6


@pytest.mark.parametrize(
    ("shape", "step_shape"), [((6, 4, 25), (6, 4, 1)), ((2, 3, 4, 5, 5), (2, 1, 1, 1, 1))], ids=["group", "channels"]
)
def test_groups_of_inputs_and_of_channels(shape, step_shape, fused):
    compare(torch.randn(shape), torch.rand(step_shape) + 0.25, None, torch.randn(shape), Grid(4, signed=True), "lsq")
    assert len(fused) == 2


def test_the_binary_grid(fused):
    compare(torch.randn(40), torch.tensor(0.5), None, torch.randn(40), Grid(1, signed=True), "lg-lsq")
    assert len(fused) == 2


@pytest.mark.parametrize(
    ("x", "step"),
    [
        (torch.randn(6, 4).t(), torch.tensor(0.5)),  # not in the order of memory
        (torch.randn(6, 4), torch.rand(1, 4) + 0.1),  # elements that share a step lie apart
        (torch.randn(6, 4).double(), torch.tensor(0.5)),
    ],
)
def test_what_no_kernel_serves_runs_plain(x, step, fused):
    fake_quantize(x, step, Grid(4, signed=True))
    assert not fused


def test_small_tensors_run_plain():
    assert kernels._groups(torch.zeros(8), torch.tensor(1.0)) is None


def test_a_backward_pass_can_be_differentiated(fused):
    """The scaling of EWGS is linear in |G|: its second derivative to the gradient is not zero."""
    x = torch.randn(50, requires_grad=True)
    loss = fake_quantize(x, torch.tensor(0.4), Grid(3, signed=True), method="ewgs").pow(3).sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    assert second.abs().sum() > 0


def test_without_a_compiler_it_says_so_once_and_runs(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernels, "smallest", 1)
    monkeypatch.setattr(kernels, "_works", True)
    monkeypatch.setattr(kernels, "_values_kernel", lambda *_: broken)
    x, step, grid = torch.randn(10), torch.tensor(0.5), Grid(4, signed=True)
    with pytest.warns(UserWarning, match="run unfused, and slower: torch.compile does not work here"):
        first = fake_quantize(x, step, grid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(first, fake_quantize(x, step, grid))


def test_where_compiling_is_off_or_looked_upon_it_runs_all_the_same(fused):
    x, step, grid = torch.randn(40), torch.tensor(0.5), Grid(4, signed=True)
    expected = fake_quantize(x, step, grid)
    with FlopCounterMode(display=False):
        assert torch.equal(fake_quantize(x, step, grid), expected)
    torch.compiler.set_stance("force_eager")
    try:
        assert torch.equal(fake_quantize(x, step, grid), expected)
    finally:
        torch.compiler.set_stance("default")
    assert kernels._works and len(fused) == 2  # none under the dispatch mode


def test_a_kernel_is_compiled_a_bounded_number_of_times(monkeypatch):
    """Whatever the shapes, strides and the state of autocast: once for each type, with and without channels."""
    backend = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(kernels, "smallest", 1)
    makers = (kernels._values_kernel, kernels._gradients_kernel)
    for maker in makers:
        maker.cache_clear()
    torch.manual_seed(0)
    grid, passes = Grid(4, signed=True), 0
    try:
        for dtype in (torch.float32, torch.bfloat16):
            for size in (
                (8, 3, 3, 3),
                (16, 8, 1, 1),
                (24, 1, 5, 5),
                (4, 2, 7, 7),
                (32, 16, 1, 1),
                (6, 12, 1, 3),
                (5, 9),
                (7, 1),
            ):
                for channels_last in (False, True):
                    x = torch.randn(size, dtype=dtype)
                    x = x.to(memory_format=torch.channels_last) if channels_last and len(size) == 4 else x
                    for step in (torch.tensor(0.3), torch.full((size[0], *(1,) * (len(size) - 1)), 0.3)):
                        leaf, s = x.detach().requires_grad_(), step.requires_grad_()
                        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=passes % 2 == 0):
                            y = fake_quantize(leaf, s, grid)
                        y.backward(torch.randn_like(y))
                        assert y.stride() == x.stride() and leaf.grad is not None and s.grad is not None
                        passes += 1
    finally:
        for maker in makers:
            maker.cache_clear()
    # Forward and backward, two types, with and without channels; and anew for channels of one element.
    assert passes == 64 and backend.frame_count == 8 + 4
