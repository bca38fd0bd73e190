"""What a training loop gets from lowbit: parameter groups, annealing, remedies, batch-norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowbit
from lowbit import LowbitError, Method
from lowbit.quantizer.rounding import asr, mde


def network(method="lsq", bits=2) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    prepared = lowbit.prepare(model, weights=bits, activations=bits, method=method)
    return lowbit.calibrate(prepared, [torch.randn(32, 8)])


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(32, 8)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("method", ["lsq", "lsq+"])
def test_where_steps_start_is_chosen_apart_from_the_method(method):
    """Weights and activations apart; a layer whose rule names a method keeps what that method has."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(256, 8)
    options = dict(weights=3, activations=3, method=method, rules=(lowbit.Rule("4", method="lsq"),))
    chosen = lowbit.prepare(model, init_weights="max", init_activations="three-sigma", **options)
    plain = lowbit.prepare(model, **options)
    for each in (chosen, plain):
        lowbit.calibrate(each, x.split(64))
    hidden = model[:2](x).detach()
    activations, weights = chosen[2].input_quantizer, chosen[2].weight_quantizer
    reach = float(hidden.mean() + 3 * hidden.std(correction=0)) / 7
    assert float(activations.step) == pytest.approx(reach, rel=1e-5) and not activations.grid.signed
    w = model[2].weight
    assert float(weights.step) == pytest.approx(max(float(w.max()) / 3, -float(w.min()) / 4), rel=1e-6)
    for side in ("weight_quantizer", "input_quantizer"):
        assert torch.equal(getattr(chosen[4], side).step, getattr(plain[4], side).step)
        assert not torch.equal(getattr(chosen[2], side).step, getattr(plain[2], side).step)
    assert activations.method.offset == plain[2].input_quantizer.method.offset  # the rest is the method's
    with pytest.raises(LowbitError, match="unknown rule of initialization 'lqs'"):
        lowbit.prepare(model, init_weights="lqs")


def test_every_parameter_is_in_one_group_and_steps_are_not_decayed():
    model = network("lsq+")
    weights, steps = lowbit.parameter_groups(model, weight_decay=0.1, step_lr=1e-3)
    learned = {id(p) for name, p in model.named_parameters() if "quantizer" in name and p.requires_grad}
    assert {id(p) for p in steps["params"]} == learned and len(steps["params"]) == len(learned)
    assert steps["weight_decay"] == 0 and steps["lr"] == 1e-3 and weights["weight_decay"] == 0.1
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in weights["params"]} == wanted - learned


def test_pacts_clip_is_decayed_as_in_its_paper():
    model = network("pact")
    (group,) = lowbit.parameter_groups(model, weight_decay=0.1)
    assert any(p is model[2].input_quantizer.raw_step for p in group["params"])


def test_pact_moves_its_clip_as_descent_on_the_clip_itself_would():
    model, lr = network("pact"), 0.01
    quantizer = model[2].input_quantizer
    alpha = float(quantizer.step) * quantizer.grid.qp
    x, gradient = torch.rand(8, 16) * 2 * alpha, torch.randn(8, 16)
    optimizer = torch.optim.SGD([quantizer.raw_step], lr=lr)
    quantizer(x).backward(gradient)
    optimizer.step()
    expected = alpha - lr * float(gradient[x >= alpha].sum())
    assert float(quantizer.step) * quantizer.grid.qp == pytest.approx(expected, rel=1e-5)


def test_progress_anneals_parameters_in_place():
    model = network(Method("annealed", surrogate_gradient=asr(2.0, final=10.0), gradient_scaling=mde(0.0, final=0.4)))
    quantizer = model[2].weight_quantizer
    surrogate, scaling = quantizer.surrogate_value, quantizer.scaling_value
    for fraction, k, delta in ((0.0, 2.0, 0.0), (0.5, 6.0, 0.2), (1.0, 10.0, 0.4), (7.0, 10.0, 0.4)):
        lowbit.set_progress(model, fraction)
        assert quantizer.surrogate_value is surrogate and quantizer.scaling_value is scaling
        assert float(surrogate) == pytest.approx(k) and float(scaling) == pytest.approx(delta)


def test_dampening_is_the_distance_to_the_levels_and_pulls_only_inside():
    model = network()
    layer = model[2]
    step = float(layer.weight_quantizer.step)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, :4] = torch.tensor([0.3, -1.2, 5.0, -9.0]) * step  # the last two are clipped
        for other in (model[0], model[4]):
            other.weight.copy_(other.weight_quantizer(other.weight))  # on their levels
    loss = lowbit.dampening_loss(model)
    assert float(loss) == pytest.approx((0.3**2 + 0.2**2) * step**2, rel=1e-4)
    loss.backward()
    expected = torch.tensor([2 * 0.3, -2 * 0.2, 0.0, 0.0]) * step
    torch.testing.assert_close(layer.weight.grad[0, :4], expected, rtol=1e-4, atol=1e-7)
    assert layer.weight_quantizer.raw_step.grad is None


def test_an_oscillating_weight_is_frozen_and_the_others_are_not():
    model = network()
    layer = model[2]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    freezer = lowbit.OscillationFreezer(model, optimizer, threshold=0.05, momentum=0.9)
    step = float(layer.weight_quantizer.step)
    for number in range(30):
        with torch.no_grad():
            layer.weight[0, 0] = (0.4 if number % 2 else 0.6) * step
            layer.weight[1, 1] = (0.1 + 0.01 * number) * step
        one_step(model, optimizer)
    assert 0 < freezer.frozen_fraction < 0.01
    code = float(layer.weight[0, 0]) / step
    assert code == pytest.approx(round(code), abs=1e-5)  # held on a level, whatever it is set to
    assert float(layer.weight[1, 1]) == pytest.approx(0.39 * step, rel=1e-4)
    restored = lowbit.OscillationFreezer(model, optimizer)
    restored.load_state_dict(freezer.state_dict())
    assert restored.frozen_fraction == freezer.frozen_fraction
    with pytest.raises(LowbitError, match="another network"):
        restored.load_state_dict({})


def test_remedies_need_quantized_weights():
    model = nn.Sequential(nn.Linear(4, 4))
    for call in (lowbit.dampening_loss, lambda m: lowbit.OscillationFreezer(m, torch.optim.SGD(m.parameters(), lr=1))):
        with pytest.raises(LowbitError, match="no quantized weights"):
            call(model)


def test_batch_norm_is_re_estimated_to_the_plain_average():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    batches = [torch.randn(8, 3, 4, 4) + i for i in range(3)]
    lowbit.reestimate_batchnorm(model, batches)
    with torch.no_grad():
        means = torch.stack([model[0](x).mean((0, 2, 3)) for x in batches])
        variances = torch.stack([model[0](x).var((0, 2, 3)) for x in batches])
    torch.testing.assert_close(model[1].running_mean, means.mean(0))
    torch.testing.assert_close(model[1].running_var, variances.mean(0))
    assert model[1].momentum == 0.1 and all(m.training for m in model.modules())


@pytest.mark.parametrize("batches", [[], [torch.randn(8, 3, 4, 4), torch.randn(8, 5, 4, 4)]])
def test_a_failed_re_estimation_changes_nothing(batches):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[1].running_mean.fill_(3.0)
    with pytest.raises((LowbitError, RuntimeError)):
        lowbit.reestimate_batchnorm(model, batches)
    assert (model[1].running_mean == 3).all() and int(model[1].num_batches_tracked) == 0


@pytest.mark.parametrize("method", sorted(lowbit.METHODS))
def test_training_improves_with_every_method(method):
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x[:, :4] * x[:, 4:]).sum(1).gt(0).long()
    model = network(method, bits=4)
    optimizer = torch.optim.Adam(lowbit.parameter_groups(model, weight_decay=0.0), lr=3e-3)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y)

    before = float(loss().detach())
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert float(loss().detach()) < 0.8 * before
