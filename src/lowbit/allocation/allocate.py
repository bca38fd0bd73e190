"""Bits for each layer, within a budget."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

from lowbit.allocation import costs
from lowbit.allocation.budget import Budget, with_unit
from lowbit.allocation.learned import by_learning
from lowbit.allocation.program import Bits, Program, uniform
from lowbit.allocation.sensitivity import Loss, Member, Side, by_gradients, by_measurement, untold
from lowbit.batches import parts_of, required_inputs
from lowbit.errors import LowbitError
from lowbit.files import atomic_write
from lowbit.grid import check_bits
from lowbit.layers.attention import quantized_attentions
from lowbit.layers.rules import Rule
from lowbit.layers.sites import input_sites, quantized_layers
from lowbit.qat.calibrate import observed, run_batch, same_inputs
from lowbit.qat.prepare import prepare
from lowbit.quantizer.module import Quantizer
from lowbit.report.plots import plot_frontier
from lowbit.report.table import render

SENSITIVITIES = ("gradients", "measured", "learned")
NEARLY = 1.1
"""Uniform bits are said to do as well where they are expected to lose at most this many times as much."""


@dataclass(frozen=True)
class Point:
    """A choice of bits on the frontier.

    Attributes:
        cost: of the limit that the frontier is over.
        loss: that is expected.
        bits: of each tensor.
        uniform: the width, where all free tensors have the same.
    """

    cost: float
    loss: float
    bits: Bits
    uniform: int | None = None


@dataclass(frozen=True, eq=False)
class Allocation(Sequence[Rule]):
    """Bits for each layer: rules for `lowbit.prepare` and for a recipe's config.

    Attributes:
        rules: a rule for each layer, behind those that were given.
        bits: of weight and input, by layer; None is full precision.
        loss: what the choice is expected to lose against full precision, per sample: nats of divergence where the
            outputs are scores of classes.
        costs: weights (bytes), average_bits, and what else the budget limits.
        budget: that it is within.
        uniform: the same for the most bits within the budget that all layers can have alike; None if there are none.
    """

    rules: tuple[Rule, ...]
    bits: Mapping[str, tuple[int | None, int | None]]
    loss: float
    costs: Mapping[str, float]
    budget: Budget
    uniform: Point | None
    sides: tuple[Side, ...]
    program: Program

    @overload
    def __getitem__(self, index: int) -> Rule: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Rule]: ...
    def __getitem__(self, index: int | slice) -> Rule | Sequence[Rule]:
        return self.rules[index]

    def __len__(self) -> int:
        return len(self.rules)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def table(self) -> str:
        """A line per layer: its bits, and what its weight's and its input's are expected to lose."""
        rows = []
        weights, inputs = self._by_layer("weight"), self._by_layer("input")
        for layer, (w, x) in self.bits.items():
            lost = [
                self.program.losses[sides[layer].name][bits] if layer in sides and bits is not None else None
                for sides, bits in ((weights, w), (inputs, x))
            ]
            rows.append(
                {
                    "layer": layer,
                    "weight": str(w or "float"),
                    "input": str(x or "float"),
                    "loss of the weight": "-" if lost[0] is None else f"{lost[0]:.2g}",
                    "loss of the input": "-" if lost[1] is None else f"{lost[1]:.2g}",
                }
            )
        return render(rows)

    def frontier(self, over: str | None = None, points: int = 12) -> list[Point]:
        """The choices of least loss for budgets between the least and the most of a cost, and the uniform ones.

        Args:
            over: the cost; by default the first that the budget limits.
            points: how many budgets, evenly apart.

        Raises:
            LowbitError: a cost that was not computed.
        """
        over = over or next(iter(self.budget.limits))
        if over not in self.program.costs:
            raise LowbitError(f"no cost {over!r} was computed: it is {', '.join(self.program.costs)} here")
        cost = self.program.costs[over]
        low, high = (cost.of(self.program.nearest(self.program.widths[end])) for end in (0, -1))
        found = {}
        for number in range(points):
            bits = self.program.solve({over: low + (high - low) * number / max(points - 1, 1)})
            point = Point(cost.of(bits), self.program.loss(bits), bits)
            found[point.cost, point.loss] = point
        same = [(width, self.program.nearest(width)) for width in self.program.widths]
        out = [*found.values(), *(Point(cost.of(b), self.program.loss(b), b, w) for w, b in same)]
        return sorted(out, key=lambda point: (point.cost, point.uniform or 0))

    def plot(self, path: str | os.PathLike, over: str | None = None, points: int = 24) -> None:
        """Draw the frontier, in a file of the type that its name says: frontier.png or frontier.svg, say.

        Args:
            path: of the file.
            over, points: as for `frontier`.

        Raises:
            LowbitError: a cost that was not computed, a type of file that cannot be written, or no matplotlib.
        """
        over = over or next(iter(self.budget.limits))
        found = [(point.cost, point.loss, point.uniform) for point in self.frontier(over, points)]
        try:
            plot_frontier(found, with_unit(over), path)
        except ImportError as error:
            raise LowbitError("drawing the frontier needs matplotlib: pip install 'lowbit[train]'") from error
        except ValueError as error:  # of matplotlib, which has the types that it can write
            raise LowbitError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike) -> None:
        """Write the rules as JSON, as a config's `quantization.rules` has them."""
        rows = [
            {"pattern": rule.pattern, "weights": rule.weights, "activations": rule.activations} for rule in self.rules
        ]
        with atomic_write(path) as temporary:
            Path(temporary).write_text(json.dumps(rows, indent=1) + "\n")

    def _by_layer(self, kind: str) -> dict[str, Side]:
        return {layer: side for side in self.sides if side.name.startswith(kind) for layer in side.layers}


def allocate(
    model: nn.Module,
    batches: Iterable[Any],
    budget: Budget | str | Mapping[str, float],
    choices: Sequence[int] = (2, 3, 4, 8),
    *,
    activation_choices: Sequence[int] | None = None,
    sensitivity: str = "gradients",
    steps: int = 500,
    loss: Loss | None = None,
    first_last: int | None = 8,
    rules: Sequence[Rule] = (),
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> Allocation:
    """The bits of each layer's weight and input that are expected to lose least within a budget.

    What a choice loses is taken for the sum of what it loses tensor by tensor, each with the step of least squares;
    which choice is best is then solved exactly. Layers that take one tensor have the same bits for it.

    Args:
        model: the trained network in full precision; not changed.
        batches: inputs, (input, label) pairs or dictionaries, as for `lowbit.calibrate`; a few dozen samples serve.
        budget: limits that hold together: a `Budget`, or as `Budget.of` takes them, such as "weights=64kB".
        choices: numbers of bits for weights.
        activation_choices: for inputs; None: those for weights, (): inputs stay in full precision.
        sensitivity: "gradients": from one pass with gradients (`by_gradients`); "measured": by running the network once
            for each tensor and choice (`by_measurement`); "learned": in a copy that has learned bits, weights and steps
            together within the budget (`by_learning`).
        steps: of learning, a batch each; for "learned" alone.
        loss: of outputs and labels; None takes no labels.
        first_last: as for `lowbit.prepare`; what is decided by it, or by rules, is not chosen.
        rules: as for `lowbit.prepare`; they stay, in front of the new ones.
        seed: of what is drawn.
        on_step: is called with (done, all) after each measurement and each step of learning.

    Warns:
        UserWarning: one width for all layers is within the budget and expected to do as well.

    Raises:
        LowbitError: nothing that is quantized, no batches, choices out of range, an unknown sensitivity, no steps, a
            budget in wrong units or one that no choice is within (the message has the least), a loss without labels or
            one that becomes infinite while bits are learned, or an integer form that "file" or "activations" needs and
            the network does not have.
    """
    limits, on_step = Budget.of(budget).limits, on_step or untold
    weights = _choices(choices, "choices")
    inputs = weights if activation_choices is None else ()
    if activation_choices:
        inputs = _choices(activation_choices, "activation_choices")
    if sensitivity not in SENSITIVITIES:
        raise LowbitError(f"unknown sensitivity {sensitivity!r}: one of {', '.join(map(repr, SENSITIVITIES))}")
    if steps < 1:
        raise LowbitError(f"steps must be at least 1, got {steps}")
    batches = list(batches) if not isinstance(batches, Tensor) else [batches]
    if not batches:
        raise LowbitError("no batches to allocate bits with: pass at least one batch of the network's inputs")
    first, _ = parts_of(batches[0], required_inputs(model))

    def prepared(w: int, x: int | None, **options: Any) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that something stays in full precision is said when the rules are used
            return prepare(model, weights=w, activations=x, first_last=first_last, rules=rules, **options).eval()

    most = prepared(max(weights), max(inputs) if inputs else None)
    other = prepared(1, 1 if inputs else None)
    sides = _sides(most, other, weights, inputs, batches)
    if not sides:
        raise LowbitError(
            f"nothing of this network is quantized, by first_last={first_last} and {len(rules)} rules: there are no "
            "bits to choose"
        )
    found = costs.of_weights(sides)
    if "bit_operations" in limits:
        found["bit_operations"] = costs.of_operations(most, sides, first)
    if "file" in limits or "activations" in limits:
        if not inputs:
            raise LowbitError("a budget of file or activations is of an integer network, whose inputs have bits too")
        whole = prepared(max(weights), max(inputs), integer_only=True, example_input=first)
        network = costs.integer_network(whole, batches[:1], first)
        found["file"] = costs.of_file(network, found["weights"], {side.name: max(side.choices) for side in sides})
        found["activations"] = costs.of_activations(whole, network, sides)
    program = Program({side.name: dict.fromkeys(side.choices, 0.0) for side in sides}, found)
    program.solve(limits)  # before what takes time: is anything within them?
    if sensitivity == "gradients":
        losses = by_gradients(most, sides, batches, loss, seed)
    elif sensitivity == "measured":
        losses = by_measurement(most, sides, batches, loss, on_step)
    else:
        losses = by_learning(most, sides, batches, loss, program, limits, steps, seed, on_step)
    program = Program(losses, found)
    bits = program.solve(limits)
    same = uniform(program, limits)
    point = None
    if same is not None:
        free = {same[side.name] for side in sides if len(side.choices) > 1}
        cost = program.costs[next(iter(limits))].of(same)
        point = Point(cost, program.loss(same), same, next(iter(free)) if len(free) == 1 else None)
        if point.loss <= NEARLY * program.loss(bits):
            warnings.warn(
                f"{point.uniform or 'the same number of'} bits for all layers are within the budget and expected to "
                f"do as well (a loss of {point.loss:.3g} against {program.loss(bits):.3g})",
                stacklevel=2,
            )
    by_layer = _by_layer(sides, bits)
    new = [Rule(re.escape(layer), weights=w, activations=x) for layer, (w, x) in by_layer.items()]
    return Allocation(
        (*rules, *new),
        by_layer,
        program.loss(bits),
        {name: cost.of(bits) for name, cost in found.items()},
        Budget.of(budget),
        point,
        tuple(sides),
        program,
    )


def _choices(given: Sequence[int], name: str) -> tuple[int, ...]:
    for bits in given:
        check_bits(bits)
    if not given:
        raise LowbitError(f"{name}: give at least one number of bits")
    return tuple(sorted(set(given)))


def _sides(
    model: nn.Module, other: nn.Module, weights: Sequence[int], inputs: Sequence[int], batches: Sequence[Any]
) -> list[Side]:
    """What bits are chosen for, and what has bits already.

    That has the same in two models prepared with different ones.
    """
    elsewhere = dict(other.named_modules())
    names = {module: name for name, module in model.named_modules()}

    def free(quantizer: Quantizer, choices: Sequence[int]) -> tuple[int, ...]:
        unlike = elsewhere[names[quantizer]]
        assert isinstance(unlike, Quantizer)
        return tuple(choices) if unlike.bits != quantizer.bits else (quantizer.bits,)

    sides: dict[Any, Side] = {}
    for name, layer in quantized_layers(model):
        if isinstance(layer.weight_quantizer, Quantizer):
            member = Member(
                layer.weight_quantizer,
                layer.used_weight().detach() if layer.used_weight() is not layer.weight else layer.weight,
            )
            choices = free(layer.weight_quantizer, weights)
            known = sides.get(id(layer.weight))
            sides[id(layer.weight)] = (
                Side(f"weight of {name}", (name,), (member,), choices)
                if known is None
                else Side(
                    known.name,
                    (*known.layers, name),
                    (*known.members, member),
                    tuple(b for b in known.choices if b in choices) or known.choices,
                )
            )
    sites = [site for site in input_sites(model) if not site.quantizer.initialized]
    device = next(model.parameters()).device
    with observed(model, sites) as observers:
        for batch in batches:
            run_batch(model, batch, device)
    groups = [[site.quantizer for site in group] for group in same_inputs(sites, observers)]
    of_attention = {
        child: name
        for name, each in quantized_attentions(model)
        for child in each.children()
        if isinstance(child, Quantizer)
    }
    tied: dict[Quantizer, Any] = {q: ("group", number) for number, group in enumerate(groups) for q in group}
    tied |= {q: ("attention", name) for q, name in of_attention.items()}
    for quantizer, observer in observers.items():
        if not observer.statistics.count:
            raise LowbitError(
                f"no batch reaches {quantizer.name}: give batches that do, or leave the layer out by a rule"
            )
        layer = names[quantizer].rpartition(".")[0]
        key, member = tied.get(quantizer, quantizer), Member(quantizer, observer.statistics)
        known, choices = sides.get(key), free(quantizer, inputs)
        if known is None:
            sides[key] = Side(f"input of {layer}", (layer,), (member,), choices)
        else:  # of two layers, one of which has its bits by a rule, both have these
            both = min(known.choices, choices, key=len)
            layers = tuple(dict.fromkeys([*known.layers, layer]))
            sides[key] = Side(known.name, layers, (*known.members, member), both)
    return list(sides.values())


def _by_layer(sides: Sequence[Side], bits: Bits) -> dict[str, tuple[int | None, int | None]]:
    found: dict[str, dict[str, int]] = {}
    for side in sides:
        for layer in side.layers:
            found.setdefault(layer, {})[side.name.partition(" ")[0]] = bits[side.name]
    return {layer: (each.get("weight"), each.get("input")) for layer, each in found.items()}
