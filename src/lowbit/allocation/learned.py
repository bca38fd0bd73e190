"""Bits that are learned together with weights and steps, under a budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.allocation.program import Cost, Program
from lowbit.allocation.sensitivity import (
    NOTHING,
    Loss,
    Losses,
    Measured,
    Member,
    OnStep,
    Side,
    measuring,
    of_each_choice,
    untold,
)
from lowbit.errors import LowbitError
from lowbit.layers.sites import replaced
from lowbit.qat.batchnorm import by_batches, tracking
from lowbit.quantizer.module import Quantizer

LR, LR_BITS = 1e-4, 2e-2
"""Of Adam, for weights and steps and for bits, falling to zero along a cosine."""
STIFFNESS, PATIENCE = 10.0, 10.0
"""Of the budget. Exceeding it by a share h costs stiffness/2 · h² losses of the first step, and moves the multiplier by
stiffness/patience · h at each step."""


def by_learning(
    model: nn.Module,
    sides: Sequence[Side],
    batches: Sequence[Any],
    loss: Loss | None,
    program: Program,
    limits: Mapping[str, float],
    steps: int,
    seed: int,
    on_step: OnStep = untold,
) -> Losses:
    """What each choice loses in a network that has learned its bits.

    Every side's number of bits b is a parameter (BitPruning: Nikolić et al., arXiv 2002.03090): its tensors are
    quantized with the two choices that b lies between, and the two are mixed in proportion. All sides begin with one b,
    such that the budget is just met; then bits, weights and steps are learned together, by the loss and by what is
    beyond the budget (an augmented Lagrangian, a multiplier for each limit). Afterwards what a choice loses is measured
    (`Measured`), one side at a time, with all others at the bits that they have learned.

    Args:
        model: prepared; its weights are learned.
        sides, batches: as for `by_gradients`.
        loss: None is the divergence from what the network in full precision predicts.
        program: that has the costs, and is solvable within the limits.
        limits: the budget.
        steps: how many batches are learned from; they are drawn again and again.
        seed: of their order.
        on_step: is called with (done, all) after each step and each measurement.
    """
    if all(len(side.choices) == 1 for side in sides):
        return {side.name: dict.fromkeys(side.choices, 0.0) for side in sides}
    learned = {side.name: _Learned(side) for side in sides}
    free = [side for side in sides if len(side.choices) > 1]
    everything = steps + sum(len(side.choices) for side in free)
    mixed = {m.quantizer: each for side in sides for m, each in zip(side.members, learned[side.name].members)}
    with measuring(model, batches, loss) as measured:
        _begin(learned, program, limits)
        with by_batches(tracking(model.modules()) if measured.shifts else ()):
            costs = [(program.costs[name], limit) for name, limit in limits.items()]
            _learn(mixed, learned, measured, costs, steps, seed, lambda done: on_step(done, everything))

        def at(side: Side, bits: int) -> float:
            each = learned[side.name]
            with torch.no_grad():
                before = each.bits.clone()
                each.bits.fill_(bits)
                found = measured(mixed)
                each.bits.copy_(before)
            return found

        found = {side.name: dict.fromkeys(side.choices, 0.0) for side in sides}
        found |= of_each_choice(free, at, lambda done: on_step(steps + done, everything))
    # Nothing is nearer to full precision than the most bits are, but for noise.
    return {name: {b: max(0.0, x - by[max(by)]) for b, x in by.items()} for name, by in found.items()}


class _Learned:
    """A side's bits, and its quantizers at each choice."""

    def __init__(self, side: Side) -> None:
        self.name, self.choices = side.name, side.choices
        self.members = [_Mixed(member, self) for member in side.members]
        device = side.members[0].quantizer.raw_step.device
        self.bits = nn.Parameter(torch.full((), float(max(side.choices)), device=device))

    def between(self) -> tuple[int, Tensor]:
        """The choice below the bits, by its number, and how far they are on the way to the next one: 0 to 1."""
        if len(self.choices) == 1:
            return 0, self.bits.new_zeros(())
        now = float(self.bits.detach())
        below = max((n for n in range(len(self.choices) - 1) if self.choices[n] <= now), default=0)
        low, high = self.choices[below], self.choices[below + 1]
        return below, (self.bits - low) / (high - low)

    def mean(self, amounts: Mapping[int, float]) -> Tensor:
        """Between the amounts of the two choices."""
        below, share = self.between()
        low = amounts[self.choices[below]]
        return low + share * (amounts[self.choices[min(below + 1, len(self.choices) - 1)]] - low)


class _Mixed(nn.Module):
    """A tensor quantized with the two choices next to its bits, mixed."""

    def __init__(self, member: Member, of: _Learned) -> None:
        super().__init__()
        self.choices = nn.ModuleList([member.of(bits).requires_grad_() for bits in of.choices])
        self._of = (of,)  # its bits belong to all members

    def forward(self, x: Tensor) -> Tensor:
        below, share = self._of[0].between()
        if len(self.choices) == 1 or (not torch.is_grad_enabled() and float(share) == 0):
            return self.choices[below](x)
        if not torch.is_grad_enabled() and float(share) == 1:
            return self.choices[below + 1](x)
        return torch.lerp(self.choices[below](x), self.choices[below + 1](x), share)


def _relaxed(cost: Cost, learned: Mapping[str, _Learned]) -> Tensor:
    """A cost of bits that lie between choices."""
    sums = []
    for each in cost.sums:
        parts = [learned[side].mean(amounts) for side, amounts in each.single.items()]
        parts += [factor * learned[a].bits * learned[b].bits for (a, b), factor in each.products.items()]
        sums.append(sum(parts, next(iter(learned.values())).bits.new_tensor(each.constant)))
    return torch.stack(sums).amax()


def _begin(learned: Mapping[str, _Learned], program: Program, limits: Mapping[str, float]) -> None:
    """One number of bits for all, or the nearest that a side can have, the largest within the limits."""
    low, high = float(min(program.widths)), float(max(program.widths))

    @torch.no_grad()
    def put(bits: float) -> None:
        for each in learned.values():
            each.bits.fill_(min(max(bits, each.choices[0]), each.choices[-1]))

    for _ in range(30):
        middle = (low + high) / 2
        put(middle)
        within = all(float(_relaxed(program.costs[name], learned)) <= limit for name, limit in limits.items())
        low, high = (middle, high) if within else (low, middle)
    put(low)


def _learn(
    mixed: Mapping[Quantizer, _Mixed],
    learned: Mapping[str, _Learned],
    measured: Measured,
    limits: Sequence[tuple[Cost, float]],
    steps: int,
    seed: int,
    on_step: Callable[[int], None],
) -> None:
    model, free = measured.model, [each for each in learned.values() if len(each.choices) > 1]
    others = {id(p) for quantizer in mixed for p in quantizer.parameters()}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in others]
    weights += [p for each in mixed.values() for p in each.parameters()]
    bits = [each.bits for each in free]
    optimizer = torch.optim.Adam([{"params": weights, "lr": LR}, {"params": bits, "lr": LR_BITS}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    generator, multipliers, stiffness = torch.Generator().manual_seed(seed), 0.0, 0.0
    for done, number in enumerate(itertools.islice(_drawn(len(measured.batches), generator), steps), 1):
        with torch.enable_grad(), replaced(model, lambda q: mixed.get(q, NOTHING)):
            total, size = measured.of(number)
            lost = total / size
            # In losses of the first step, whatever unit the loss has.
            stiffness = stiffness or STIFFNESS * max(abs(float(lost.detach())), 1e-6)
            beyond = torch.stack([_relaxed(cost, learned) / limit - 1 for cost, limit in limits])
            penalty = (multipliers + stiffness * beyond).clamp(min=0).square().sum() / (2 * stiffness)
            optimizer.zero_grad(set_to_none=True)
            (lost + penalty).backward()
        if not bool(torch.isfinite(lost.detach())):
            raise LowbitError("the loss became infinite or NaN while bits were learned: are inputs as in training?")
        optimizer.step()
        schedule.step()
        multipliers = (multipliers + stiffness * beyond.detach() / PATIENCE).clamp(min=0)
        with torch.no_grad():
            for each in free:
                each.bits.clamp_(each.choices[0], each.choices[-1])
        on_step(done)


def _drawn(count: int, generator: torch.Generator) -> Iterator[int]:
    """All numbers in some order, again and again."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
