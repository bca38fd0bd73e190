"""SSG's magnitude: the step's gradient against what the definition says, from gradients of plain LSQ."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lowbit
from lowbit import METHODS, LowbitError, Quantizer
from lowbit.quantizer.methods import lg_lsq
from lowbit.quantizer.step import Balance, StepGradient


def balanced(**arguments) -> lowbit.Method:
    return METHODS["lsq"].varied(balance=Balance(**arguments))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Oracle:
    """The definition in plain arithmetic on gradients of LSQ, one number for each group of elements that share a step."""

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self.means: dict[str, Tensor] = {}

    def mean(self, name: str, relative: Tensor) -> Tensor:
        square = relative.double() ** 2
        before = self.means.get(name)
        self.means[name] = square if before is None else self.memory * before + (1 - self.memory) * square
        return self.means[name]


CASES = {
    # (shape of x, shape in which it is quantized, shape of the step, batch dimension, dimensions that share a step)
    "tensor": ((6, 4, 3, 3), None, (), None, (0, 1, 2, 3)),
    "channel": ((6, 4, 3, 3), None, (6, 1, 1, 1), None, (1, 2, 3)),
    "group": ((6, 8), (6, 2, 4), (6, 2, 1), None, (2,)),
    "activation": ((5, 4, 3, 3), None, (), 0, (0, 1, 2, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_a_step_keeps_the_pace_of_its_tensor(case: str) -> None:
    shape, view, step_shape, batch_dim, shared = CASES[case]
    made = dict(step_shape=step_shape, view=view, batch_dim=batch_dim, signed=True)
    quantizer = Quantizer(3, method=balanced(ratio=0.5, momentum=0.8), **made)
    plain = Quantizer(3, method="lsq", **made)
    x = torch.randn(shape, generator=generator())
    oracle = Oracle(0.8)
    for number in range(4):
        x = (x + 0.1 * torch.randn(shape, generator=generator(number + 9))).detach().requires_grad_()
        gradient = torch.randn(shape, generator=generator(number + 20))
        quantizer.initialize(x)
        plain.initialize(x)
        quantizer.zero_grad()
        plain.zero_grad()
        (of_x,) = torch.autograd.grad(plain(x), x, gradient, retain_graph=True)
        plain(x).backward(gradient)
        x.grad = None
        quantizer(x).backward(gradient)
        assert torch.equal(x.grad, of_x)  # the tensor's own gradient stays LSQ's
        of_step = plain.raw_step.grad
        seen = shape if view is None else view
        lengths = [(t.reshape(seen) ** 2).sum(shared, keepdim=True).sqrt() for t in (of_x, x.detach())]
        pace = lengths[0] / lengths[1]
        if batch_dim is not None:
            pace = pace * shape[batch_dim] ** 0.5
        m_w = oracle.mean("x", pace).reshape(step_shape)
        m_s = oracle.mean("s", of_step.abs() / plain.step)
        torch.testing.assert_close(
            quantizer.raw_step.grad.double(), of_step.double() * 0.5 * (m_w / m_s).sqrt(), rtol=1e-4, atol=0.0
        )
        measured = quantizer.relative_gradients.double().reshape(2, *step_shape)
        torch.testing.assert_close(measured, torch.stack([m_w, m_s]), rtol=1e-4, atol=0.0)
        with torch.no_grad():  # the step moves, and with it what its gradient is relative to
            for each in (quantizer, plain):
                each.raw_step.mul_(1.2)


def network(method, **options) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    prepared = lowbit.prepare(model, weights=3, activations=3, method=method, **options)
    return lowbit.calibrate(prepared, [torch.randn(16, 3, 6, 6, generator=generator())])


def batch(number: int) -> Tensor:
    return torch.randn(16, 3, 6, 6, generator=generator(100 + number))


def backward(model: nn.Module, number: int) -> None:
    model.zero_grad()
    model(batch(number)).square().mean().backward()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_an_activations_step_keeps_the_pace_of_its_layers_weight(granularity: str) -> None:
    model, plain = (network(method, granularity=granularity, first_last=3) for method in (balanced(), "lsq"))
    m_s = Oracle(0.9)
    for number in range(3):
        backward(model, number)
        backward(plain, number)
        for index in (0, 2, 5):
            layer, as_lsq = model[index], plain[index].input_quantizer
            m_w = layer.weight_quantizer.relative_gradients[0].double().mean()
            relative = m_s.mean(str(index), as_lsq.raw_step.grad.abs() / as_lsq.step)
            expected = as_lsq.raw_step.grad.double() * (m_w / relative).sqrt()
            torch.testing.assert_close(layer.input_quantizer.raw_step.grad.double(), expected, rtol=1e-3, atol=0.0)


def test_without_a_weight_beside_it_an_activation_keeps_its_own_pace() -> None:
    model, plain = network(balanced(against="own"), first_last=3), network("lsq", first_last=3)
    backward(model, 0)
    backward(plain, 0)
    for method in (replace(balanced(), name="mixed", step_gradient=StepGradient(), activations=balanced()),):
        mixed = network(method, first_last=3)  # the weights are LSQ's, so nothing is measured at them
        backward(mixed, 0)
        for index in (0, 2, 5):
            own = model[index].input_quantizer.raw_step.grad
            assert not torch.equal(own, plain[index].input_quantizer.raw_step.grad)
            assert torch.equal(mixed[index].input_quantizer.raw_step.grad, own)
            assert torch.equal(mixed[index].weight_quantizer.raw_step.grad, plain[index].weight_quantizer.raw_step.grad)


def test_with_more_than_four_bits_a_step_has_lsqs_gradient() -> None:
    """And an activation of few bits keeps the pace of such a weight all the same."""
    rules = (lowbit.Rule("2", weights=8, activations=4), lowbit.Rule("5", weights=4, activations=5))
    model, plain = (network(method, rules=rules) for method in (balanced(), "lsq"))
    for each in (model, plain):
        backward(each, 0)
    for index, side, same in ((0, "weight", True), (0, "input", True), (2, "weight", True), (2, "input", False),
                              (5, "weight", False), (5, "input", True)):  # fmt: skip
        mine, lsqs = (getattr(each[index], f"{side}_quantizer") for each in (model, plain))
        assert torch.equal(mine.raw_step.grad, lsqs.raw_step.grad) == same, (index, side)
    of_step, pace = plain[2].input_quantizer, model[2].weight_quantizer.relative_gradients[0]
    expected = of_step.raw_step.grad.sign() * pace.sqrt() * of_step.step
    torch.testing.assert_close(model[2].input_quantizer.raw_step.grad, expected, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_in_a_loop_of_ones_own_relative_gradients_come_to_the_ratio(make) -> None:
    model = network(lg_lsq(balance=Balance(ratio=2.0)), granularity="channel")
    optimizer = make(lowbit.parameter_groups(model, weight_decay=0.0), lr=1e-3)
    seen = []
    for number in range(40):
        backward(model, number)
        layer = model[2]
        step, weight = layer.weight_quantizer.raw_step, layer.weight
        of_step = step.grad.abs() / step.detach()
        of_weight = weight.grad.flatten(1).norm(dim=1) / weight.detach().flatten(1).norm(dim=1)
        seen.append(torch.stack([of_step.flatten(), of_weight]).square())
        optimizer.step()
    of_step, of_weight = torch.stack(seen[10:]).mean(0).mean(1)
    assert float((of_step / of_weight).sqrt()) == pytest.approx(2.0, rel=0.2)


def test_compiled_it_is_the_same() -> None:
    torch._dynamo.reset()
    own = (lowbit.Rule("2", method=balanced(against="own")),)
    plain, compiled = (network(balanced(), rules=own, first_last=3) for _ in range(2))
    step = torch.compile(compiled[2:], backend="aot_eager", fullgraph=True)
    for number in range(3):
        x = torch.randn(16, 8, 4, 4, generator=generator(number)).relu()
        for run in (plain[2:], step):
            run(x).square().mean().backward()
    for (name, parameter), other in zip(plain[2:].named_parameters(), compiled[2:].parameters()):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-4, atol=1e-7, msg=name)
    for (name, buffer), other in zip(plain[2:].named_buffers(), compiled[2:].buffers()):
        torch.testing.assert_close(other, buffer, rtol=1e-4, atol=0.0, msg=name)
        assert "relative" not in name or bool((buffer > 0).all())


def test_training_goes_on_from_a_checkpoint_bit_for_bit() -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> nn.Module:
        for number in numbers:
            backward(model, number)
            optimizer.step()
        return model

    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1e-2)

    whole = network(balanced())
    steps(whole, sgd(whole), range(6))
    first = network(balanced())
    steps(first, sgd(first), range(3))
    second = network(balanced())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(second, sgd(second), range(3, 6))
    for (name, value), other in zip(whole.state_dict().items(), second.state_dict().values()):
        assert torch.equal(value, other), name


def test_a_copied_network_measures_for_itself() -> None:
    model = network(balanced())
    other = copy.deepcopy(model)
    backward(other, 0)
    for layer, mine in ((other[2], model[2]), (other[5], model[5])):
        assert layer.input_quantizer.beside[0] is layer.weight_quantizer
        assert bool((layer.weight_quantizer.relative_gradients > 0).all())
        assert not bool(mine.weight_quantizer.relative_gradients.any())


def test_used_twice_before_a_backward_pass_and_computed_again() -> None:
    model, again = network(balanced()), network(balanced())
    for each in (model, again):
        for number in range(2):
            each.zero_grad()
            outputs = [
                each(x) if each is model else checkpoint(each, x, use_reentrant=False)
                for x in (batch(number), batch(number + 5))
            ]
            torch.cat(outputs).square().mean().backward()
    for (name, parameter), other in zip(model.named_parameters(), again.named_parameters()):
        torch.testing.assert_close(other[1].grad, parameter.grad, msg=name)
    assert torch.isfinite(model[2].input_quantizer.raw_step.grad)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0])
def test_a_pass_without_usable_gradients_is_not_counted(value: float) -> None:
    quantizer = Quantizer(3, method=balanced(), signed=True)
    x = torch.randn(64, generator=generator(), requires_grad=True)
    quantizer.initialize(x)
    quantizer(x).backward(torch.full_like(x, value))
    assert not bool(quantizer.relative_gradients.any())
    quantizer(x).backward(torch.randn(64, generator=generator(1)))
    before = quantizer.relative_gradients.clone()
    quantizer(x).backward(torch.full_like(x, value))
    assert torch.equal(quantizer.relative_gradients, before) and bool((before > 0).all())


def test_a_step_driven_to_nothing_comes_back_at_the_pace_of_an_eighth_of_its_start() -> None:
    quantizer = Quantizer(3, method=balanced(momentum=0.0), signed=True)
    x = torch.randn(64, generator=generator(), requires_grad=True)
    quantizer.initialize(x)
    start = float(quantizer.step)
    for step in (start / 2, start / 16):
        with torch.no_grad():
            quantizer.raw_step.fill_(step)
        quantizer.raw_step.grad = x.grad = None
        quantizer(x).backward(torch.randn(64, generator=generator(1)))
        pace = float(x.grad.norm() / x.detach().norm())
        expected = pace * max(step, start / 8)
        assert abs(float(quantizer.raw_step.grad)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("layer", "granularity", "memory_format"),
    [
        (nn.Conv2d(8, 8, 3), "channel", torch.channels_last),
        (nn.Conv3d(8, 8, 3), "group:4", torch.channels_last_3d),
    ],
)
def test_a_network_can_be_moved_to_another_order_in_memory(layer, granularity: str, memory_format) -> None:
    x = torch.randn(2, 8, *[5] * len(layer.kernel_size), generator=generator())
    model = lowbit.prepare(nn.Sequential(layer), weights=4, activations=4, granularity=granularity, balance=Balance())
    model = lowbit.calibrate(model, [x]).to(memory_format=memory_format)
    model(x).square().mean().backward()
    assert bool(model[0].weight_quantizer.relative_gradients.any())


@pytest.mark.parametrize("step_shape", [(), (6, 1, 1, 1)])
def test_checkpoints_of_earlier_versions_are_read(step_shape: tuple[int, ...]) -> None:
    """Those in which the method balanced nothing, and those in which what it had measured had the step's shape."""
    x = torch.randn(6, 4, 3, 3, generator=generator())
    saved, loaded = (Quantizer(3, method="lg-lsq", step_shape=step_shape, signed=True) for _ in range(2))
    saved.initialize(x)
    saved(x.requires_grad_()).square().sum().backward()
    state = saved.state_dict()
    shaped = state["relative_gradients"].reshape(2, *step_shape)
    loaded.load_state_dict(state | {"relative_gradients": shaped})
    assert torch.equal(loaded.relative_gradients, saved.relative_gradients)
    older = {key: value for key, value in state.items() if key not in ("relative_gradients", "balance_ratio")}
    loaded.load_state_dict(older)
    assert not bool(loaded.relative_gradients.any()) and float(loaded.balance_ratio) == 1.0
    assert torch.equal(loaded(x), saved(x))


def test_nothing_is_measured_where_the_step_is_not_learned() -> None:
    quantizer = Quantizer(3, method=balanced(), signed=True)
    x = torch.randn(64, generator=generator(), requires_grad=True)
    quantizer.initialize(x)
    quantizer.raw_step.requires_grad_(False)
    quantizer(x).sum().backward()
    with torch.no_grad():
        quantizer(x)
    assert not bool(quantizer.relative_gradients.any())
    quantizer.raw_step.requires_grad_(True)
    quantizer(x).backward(torch.randn(64, generator=generator(1)))
    assert bool(quantizer.relative_gradients.all())
    quantizer.reset()
    quantizer.initialize(x)
    assert not bool(quantizer.relative_gradients.any())  # a new start


def test_the_ratio_is_annealed_in_place() -> None:
    model = network(balanced(ratio=2.0, final=0.5))
    ratio = model[2].weight_quantizer.balance_ratio
    for fraction, expected in ((0.0, 2.0), (0.5, 1.25), (1.0, 0.5), (3.0, 0.5)):
        lowbit.set_progress(model, fraction)
        assert model[2].weight_quantizer.balance_ratio is ratio and float(ratio) == pytest.approx(expected)


def test_lsq_has_nothing_of_it() -> None:
    quantizer = Quantizer(3, method="lsq")
    assert quantizer.relative_gradients is None and "relative_gradients" not in quantizer.state_dict()


@pytest.mark.parametrize("wrong", [dict(ratio=0.0), dict(final=-1.0), dict(momentum=1.0), dict(against="both")])
def test_what_makes_no_sense_is_refused(wrong: dict) -> None:
    with pytest.raises(LowbitError, match="balance"):
        Balance(**wrong)


def test_a_method_without_learned_steps_cannot_be_balanced() -> None:
    with pytest.raises(LowbitError, match="'minmax' learns no steps"):
        METHODS["minmax"].varied(balance=Balance())
    pact = METHODS["pact"].varied(balance=Balance())  # activations alone
    assert pact.step_gradient is None and pact.activations.step_gradient.balance == Balance()
