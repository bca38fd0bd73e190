"""How fast small steps are learned: in proportion to themselves."""

from __future__ import annotations

import pytest
import torch

from lowbit import METHODS
from lowbit.quantizer.module import Quantizer


def started(scale: float, **options) -> tuple[Quantizer, torch.Tensor]:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * scale
    quantizer = Quantizer(4, batch_dim=0, **options)
    quantizer.initialize(x)
    return quantizer, x


def after_a_step(quantizer: Quantizer, x: torch.Tensor, scale: float, optimizer: type, lr: float) -> float:
    """The step over its start, when an optimizer has gone one step on a loss of x̂ / scale."""
    descent = optimizer(quantizer.parameters(), lr=lr)
    ((quantizer(x) / scale).abs() ** 3).mean().backward()
    descent.step()
    assert not quantizer.diverged
    return float(quantizer.step / quantizer.initial_step)


@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.SGD, 0.1), (torch.optim.Adam, 1e-3)])
@pytest.mark.parametrize("scale", [1e-9, 1e-5, 0.1])
def test_a_step_below_the_bound_is_learned_alike_at_every_scale(scale, optimizer, lr):
    quantizer, x = started(scale, relative_below=1.0)
    reference, y = started(1e-3, relative_below=1.0)
    found = after_a_step(quantizer, x, scale, optimizer, lr)
    assert found == pytest.approx(after_a_step(reference, y, 1e-3, optimizer, lr), rel=1e-4)
    assert 1e-5 < abs(found - 1) < 0.1


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_papers_steps_are_learned_as_papers_have_them(scale):
    quantizer, x = started(scale)
    assert quantizer.step_unit is None and "step_unit" not in quantizer.state_dict()
    quantizer(x).pow(3).mean().backward()
    s, grid = quantizer.initial_step.double(), quantizer.grid
    v = x.double() / s
    q = v.round().clamp(grid.qn, grid.qp)
    inside = (v > grid.qn) & (v < grid.qp)
    gradient = 3 * (s * q) ** 2 / x.numel()
    expected = (gradient * torch.where(inside, q - v, q)).sum() / (64 * grid.qp) ** 0.5  # LSQ, Eq. 3 and §2.2
    assert float(quantizer.raw_step.grad) == pytest.approx(float(expected), rel=1e-4)


def test_tiny_steps_of_layers_are_relative_too():
    quantizer, x = started(1e-9)  # the input of a layer in a network whose signal has died away
    assert quantizer.initial_step < 1e-8
    quantizer(x).sum().backward()
    torch.optim.SGD(quantizer.parameters(), lr=0.1).step()
    assert not quantizer.diverged
    assert float(quantizer.step) == pytest.approx(float(quantizer.initial_step), rel=0.01)


def test_units_come_with_checkpoints_and_older_ones_have_none():
    quantizer, x = started(1e-3, relative_below=1.0)
    with torch.no_grad():
        quantizer.raw_step.mul_(1.5)
    again, _ = started(1.0, relative_below=1.0)
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again.step, quantizer.step) and torch.equal(again(x), quantizer(x))

    old = quantizer.state_dict()
    old["raw_step"] = old["raw_step"] * old.pop("step_unit")  # as versions without units wrote it
    again.load_state_dict(old)
    assert again.step_unit is None and torch.equal(again(x), quantizer(x))
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again(x), quantizer(x))


@pytest.mark.parametrize("method", ["lsq", "lsq+", "pact"])
@pytest.mark.parametrize("init", ["least-squares", "three-sigma", "lsq"])
@pytest.mark.parametrize("bits", [2, 4, 5, 8])
def test_many_bits_are_learned_at_the_relative_pace_of_lsqs_start(bits, init, method):
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))

    def relative_gradient(rule: str) -> tuple[float, float]:
        quantizer = Quantizer(bits, batch_dim=0, method=METHODS[method].varied(init_activations=rule).for_activations)
        quantizer.initialize(x - 1 if method == "lsq+" else x)
        # dL/ds = 1/s in the middle of the grid of either start, whatever the rounding: the step's own share.
        quantizer.learned_step.log().sum().backward()
        descent = torch.optim.SGD([quantizer.raw_step], lr=1e-4)
        descent.step()
        return float(quantizer.step / quantizer.initial_step - 1), float(quantizer.initial_step)

    (moved, step), (lsq_moved, lsq_step) = relative_gradient(init), relative_gradient("lsq")
    if bits > 4 and method != "pact" and step < lsq_step:
        assert moved == pytest.approx(lsq_moved, rel=1e-2)
    else:
        assert moved == pytest.approx(lsq_moved * (lsq_step / step) ** 2, rel=1e-2)


def test_a_loaded_unit_is_the_same_tensor():
    quantizer, _ = started(1e-3, relative_below=1.0)
    unit = quantizer.step_unit
    quantizer.load_state_dict({name: x * 1 for name, x in quantizer.state_dict().items()})
    assert quantizer.step_unit is unit


def test_only_steps_of_small_channels_have_a_unit_below_one():
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [1e-6], [10.0], [1e-9]])
    quantizer = Quantizer(4, step_shape=(4, 1))
    quantizer.initialize(x)
    assert quantizer.step_unit is not None
    assert (quantizer.step_unit.flatten() == 1).tolist() == [True, False, True, False]
    assert torch.allclose(quantizer.step, quantizer.initial_step)
