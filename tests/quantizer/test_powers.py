"""Steps that are powers of two: their value, their gradient, what of a network has them, and what a checkpoint says."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

import lowbit
from lowbit import METHODS, LowbitError, Quantizer
from lowbit.layers.sites import quantizers
from lowbit.quantizer.functional import fake_quantize
from lowbit.quantizer.methods import SCALES
from lowbit.quantizer.powers import nearest_power_of_two

ROUNDED = METHODS["lsq"].varied(scales="power-of-two")


def powers(steps: torch.Tensor) -> bool:
    return all(math.frexp(step)[0] == 0.5 for step in steps.flatten().tolist())


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_nearest_power_of_two_is_the_rounded_logarithm(dtype, recorded):
    torch.manual_seed(0)
    x = (torch.randn(20_000, dtype=torch.float64) * torch.exp(8 * torch.randn(20_000, dtype=torch.float64))).to(dtype)
    x = x[x.abs() > 1e-37]
    expected = torch.tensor([math.copysign(2.0 ** round(math.log2(abs(v))), v) for v in x.tolist()], dtype=dtype)
    nearest = torch.jit.trace(nearest_power_of_two, x[0]) if recorded else nearest_power_of_two
    assert torch.equal(nearest(x), expected)
    root, zero = torch.tensor(math.sqrt(2), dtype=dtype), torch.zeros((), dtype=dtype)
    for near in (torch.nextafter(root, zero), root, torch.nextafter(root, zero + 2)):
        assert float(nearest(near)) == (2.0 if Fraction(float(near)) ** 2 > 2 else 1.0)
    assert float(nearest(zero)) == 0


@pytest.mark.parametrize(("view", "step_shape"), [(None, ()), (None, (4, 1)), ((4, 2, 4), (4, 2, 1))])
def test_the_gradient_goes_straight_through_the_logarithm(view, step_shape):
    """∂/∂s of 2^round(log2 s) is 2^round(log2 s)/s: the gradient of the step that is computed with, times that."""
    torch.manual_seed(0)
    x, gradient = torch.randn(4, 8), torch.randn(4, 8)
    quantizer = Quantizer(3, method=ROUNDED, signed=True, view=view, step_shape=step_shape)
    quantizer.initialize(x * torch.rand(4, 1))
    step = torch.tensor([2.0 ** round(math.log2(s)) for s in quantizer.raw_step.flatten().tolist()]).reshape(step_shape)
    step.requires_grad_()
    viewed = x if view is None else x.reshape(view)
    x_hat = fake_quantize(viewed, step, quantizer.grid).reshape(4, 8)
    x_hat.backward(gradient)
    quantized = quantizer(x)
    quantized.backward(gradient)
    assert torch.equal(quantized, x_hat) and torch.equal(quantizer.step, step)
    torch.testing.assert_close(quantizer.raw_step.grad, step.grad * step.detach() / quantizer.raw_step.detach())


def test_a_step_is_learned_across_powers_and_back():
    quantizer = Quantizer(2, method=ROUNDED, signed=True)
    torch.manual_seed(0)
    x = torch.randn(400)
    quantizer.initialize(x)
    met = set()
    for factor in (1.0, 6.0, 1.0):
        optimizer = torch.optim.Adam([quantizer.raw_step], lr=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            (quantizer(x * factor) - x * factor).square().mean().backward()
            optimizer.step()
        met.add(float(quantizer.step))
        assert powers(quantizer.step) and not quantizer.diverged
    assert len(met) == 2


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_has_them(method, granularity):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(8, 1, 8, 8)
    prepared = lowbit.prepare(
        network, weights=3, activations=3, method=method, granularity=granularity, scales="power-of-two"
    )
    lowbit.calibrate(prepared, [x])
    optimizer = torch.optim.SGD(lowbit.parameter_groups(prepared, weight_decay=1e-4), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()
    for name, module in prepared.named_modules():
        if hasattr(module, "weight_quantizer"):
            step, grid = module.weight_quantizer.step_for(module.weight), module.weight_quantizer.grid
            assert powers(step) and powers(module.input_quantizer.step), name
            codes = module.weight_quantizer(module.weight) / step
            assert torch.equal(codes, codes.round()) and int(codes.min()) >= grid.qn and int(codes.max()) <= grid.qp


@pytest.mark.parametrize("scales", SCALES)
def test_of_weights_and_of_activations_apart(scales):
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    rule = lowbit.Rule("4", scales="power-of-two")
    prepared = lowbit.prepare(network, scales=scales, rules=[rule])
    lowbit.calibrate(prepared, [torch.rand(16, 4)])
    weights, activations = SCALES[scales]
    for name in ("0", "2"):
        layer = prepared.get_submodule(name)
        assert powers(layer.weight_quantizer.step) == weights and powers(layer.input_quantizer.step) == activations
    assert powers(prepared[4].weight_quantizer.step) and powers(prepared[4].input_quantizer.step)


def test_an_unknown_word_is_refused():
    with pytest.raises(LowbitError, match=r"scales='power-of-2'.*power-of-two"):
        lowbit.prepare(nn.Linear(2, 2), scales="power-of-2")


def test_a_checkpoint_says_what_its_steps_are():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(16, 4)
    free, rounded = (lowbit.calibrate(lowbit.prepare(network, scales=scales), [x]) for scales in (None, "power-of-two"))
    again = lowbit.prepare(network, scales="power-of-two")
    again.load_state_dict(rounded.state_dict())
    assert torch.equal(again(x), rounded(x)) and not torch.equal(free(x), rounded(x))
    for source, target in ((free, rounded), (rounded, free)):
        with pytest.raises(RuntimeError, match="prepare the network with the `scales`"):
            copy.deepcopy(target).load_state_dict(source.state_dict())


def test_a_checkpoint_from_before_there_were_any_loads():
    network, x = nn.Linear(4, 3), torch.rand(16, 4)
    prepared = lowbit.calibrate(lowbit.prepare(network), [x])
    old = {
        name: value[:5] if name.endswith("configuration") else value for name, value in prepared.state_dict().items()
    }
    again = lowbit.prepare(network)
    again.load_state_dict(old)
    assert all(quantizer.initialized for _, quantizer in quantizers(again)) and torch.equal(again(x), prepared(x))


def test_compiled_equals_eager():
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    quantizer = Quantizer(3, method=ROUNDED, signed=True, step_shape=(4, 1), batch_dim=0)
    quantizer.initialize(x)
    expected = quantizer(x)
    expected.square().sum().backward()
    gradient, quantizer.raw_step.grad = quantizer.raw_step.grad, None
    torch._dynamo.reset()
    found = torch.compile(quantizer, fullgraph=True)(x)
    found.square().sum().backward()
    torch.testing.assert_close([found, quantizer.raw_step.grad], [expected, gradient])
