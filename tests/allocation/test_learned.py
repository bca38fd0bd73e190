"""Bits that are learned under a budget."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError
from lowbit.allocation import learned
from lowbit.allocation.learned import by_learning
from lowbit.allocation.program import Cost, Program, Sum
from lowbit.allocation.sensitivity import Member, Side
from lowbit.quantizer.initialization import Statistics

CHOICES = (2, 3, 4, 6, 8)


class Branches(nn.Module):
    """Two layers of one size and with outputs of one size, of which the first loses nothing at two bits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.coarse, self.fine = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(32, 8)  # this and the stem keep 8 bits: 512 bytes
        with torch.no_grad():
            self.coarse.weight.copy_(torch.randint(-2, 2, (16, 16)) / 4)
            self.fine.weight.normal_(std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([self.coarse(x), self.fine(x)], 1).relu())


@pytest.fixture
def branches() -> Branches:
    torch.manual_seed(0)
    return Branches().eval()


def batches() -> list[Tensor]:
    return list(torch.randn(128, 16, generator=torch.Generator().manual_seed(1)).split(32))


def sides(model: nn.Module) -> list[Side]:
    return [
        Side(f"weight of {name}", (name,), (Member(layer.weight_quantizer, layer.weight),), CHOICES)
        for name, layer in (("coarse", model.coarse), ("fine", model.fine))
    ]


def test_bits_go_to_the_layer_that_needs_them(branches: Branches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing of the weights is learned, and the budget is five bits for either."""
    monkeypatch.setattr(learned, "LR", 0.0)
    seen: dict[str, float] = {}
    learn = learned._learn

    def looked_at(mixed, by_name, *rest) -> None:
        begun = {name: float(each.bits) for name, each in by_name.items()}
        assert begun["weight of coarse"] == begun["weight of fine"] == pytest.approx(5)
        learn(mixed, by_name, *rest)
        seen.update({name: float(each.bits) for name, each in by_name.items()})

    monkeypatch.setattr(learned, "_learn", looked_at)
    options = dict(activation_choices=(), sensitivity="learned", steps=300)
    found = lowbit.allocate(branches, batches(), "weights=832B", CHOICES, **options)
    assert (found.bits["coarse"], found.bits["fine"]) == ((2, None), (8, None))
    assert seen["weight of coarse"] < 4.5 and seen["weight of fine"] > 5.5
    assert seen["weight of coarse"] + seen["weight of fine"] == pytest.approx(
        10, abs=0.6
    )  # the budget holds while bits are learned


def test_weights_and_steps_are_learned_with_the_bits(branches: Branches) -> None:
    """What is measured at the end loses less than the same bits with the weights of the beginning."""
    x, noise = torch.cat(batches()), torch.randn(128, 8, generator=torch.Generator().manual_seed(2))
    labelled = [(each, y) for each, y in zip(x.split(32), (branches(x).detach() + 0.1 * noise).split(32))]
    losses = {}
    for steps in (1, 400):
        model = lowbit.calibrate(lowbit.prepare(branches, weights=8, activations=None), batches())
        cost = Cost("average_bits", (Sum(0.0, {s.name: {b: b / 2 for b in CHOICES} for s in sides(model)}, {}),))
        program = Program({s.name: dict.fromkeys(CHOICES, 0.0) for s in sides(model)}, {"average_bits": cost})
        before = [parameter.clone() for parameter in model.parameters()]
        found = by_learning(model, sides(model), labelled, F.mse_loss, program, {"average_bits": 2}, steps, 0)
        losses[steps] = max(by_bits[2] for by_bits in found.values())
        assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), before))
    assert losses[400] < 0.8 * losses[1]


def test_learning_is_repeatable(branches: Branches) -> None:
    options = dict(sensitivity="learned", steps=9, seed=3)
    one, other = (lowbit.allocate(branches, batches(), "weights=800B", CHOICES, **options) for _ in range(2))
    assert one.program.losses == other.program.losses and one.bits == other.bits


@pytest.mark.parametrize(("sensitivity", "steps"), [("learned", 9), ("measured", 0)])
def test_how_far_it_is(branches: Branches, sensitivity: str, steps: int) -> None:
    """Told after each step, and after each measurement of a side at a choice."""
    told: list[tuple[int, int]] = []
    options = dict(sensitivity=sensitivity, steps=9, on_step=lambda *how_far: told.append(how_far))
    found = lowbit.allocate(branches, batches(), "weights=800B", CHOICES, **options)
    free = [side for side in found.sides if sensitivity == "measured" or len(side.choices) > 1]
    everything = steps + sum(len(side.choices) for side in free)
    assert told == [(done, everything) for done in range(1, everything + 1)]


def test_costs_between_choices_are_costs_at_choices() -> None:
    """Linear between neighbours, exact at both; a product of two sides is one of their bits."""
    member = Member(lowbit.Quantizer(4), torch.randn(9))
    two = {name: learned._Learned(Side(name, (name,), (member,), CHOICES)) for name in "ab"}
    singles = {"a": {2: 7.0, 3: 9.0, 4: 10.0, 6: 20.0, 8: 31.0}}
    cost = Cost("any", (Sum(3.0, singles, {("a", "b"): 0.5}), Sum(40.0, {}, {})))
    for a in CHOICES:
        for b in CHOICES:
            for name, bits in zip("ab", (a, b)):
                two[name].bits.data.fill_(bits)
            assert float(learned._relaxed(cost, two)) == pytest.approx(cost.of({"a": a, "b": b}))
    two["a"].bits.data.fill_(7)
    assert float(two["a"].mean(singles["a"])) == pytest.approx(25.5)
    (slope,) = torch.autograd.grad(two["a"].mean(singles["a"]), two["a"].bits)
    assert float(slope) == pytest.approx(5.5)


def test_a_tensor_between_two_choices_is_mixed() -> None:
    statistics = Statistics(())
    statistics.update(torch.randn(256))
    member = Member(lowbit.Quantizer(4, batch_dim=0), statistics)
    one = learned._Learned(Side("input of a", ("a",), (member,), (2, 4)))
    x = torch.randn(4, 64)
    low, high = member.of(2)(x), member.of(4)(x)
    for bits, wanted in ((2, low), (2.5, 0.75 * low + 0.25 * high), (4, high)):
        one.bits.data.fill_(bits)
        for context in (torch.no_grad(), torch.enable_grad()):
            with context:
                assert torch.allclose(one.members[0](x), wanted, atol=1e-6)
    one.bits.data.fill_(3)
    (slope,) = torch.autograd.grad(one.members[0](x).square().sum(), one.bits)
    assert float(slope) == pytest.approx(float(((low + high) * (high - low) / 2).sum()), rel=1e-4)


def test_inputs_that_no_loss_comes_from(branches: Branches) -> None:
    with pytest.raises(LowbitError, match="infinite or NaN while bits were learned"):
        lowbit.allocate(
            branches,
            [(x, torch.tensor(torch.inf)) for x in batches()],
            "weights=800B",
            sensitivity="learned",
            loss=lambda output, label: output.sum() * label,
        )
