"""What each choice of bits is expected to lose: by one pass with gradients, or measured one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.errors import LowbitError
from lowbit.layers.modes import evaluation
from lowbit.layers.sites import replaced
from lowbit.qat.batchnorm import kept_statistics, reestimate_batchnorm
from lowbit.quantizer.initialization import Statistics
from lowbit.quantizer.methods import get_method
from lowbit.quantizer.module import Quantizer

Loss = Callable[[Any, Any], Tensor]
"""A scalar, the mean over samples, from the network's outputs and what comes beside the inputs in a batch."""
Losses = dict[str, dict[int, float]]
"""Of each side, by bits."""
NOTHING = nn.Identity()
"""In place of a quantizer: its tensor in full precision."""


OnStep = Callable[[int, int], None]
"""Is called with (done, all) while bits are chosen: after each measurement and each step of learning."""


def untold(done: int, everything: int) -> None:
    """Where nobody asks how far it is."""


@dataclass(frozen=True, eq=False)
class Member:
    """A quantizer of the prepared network, which stands for its setting, and what it quantizes.

    A weight, or statistics of an input.
    """

    quantizer: Quantizer
    data: Tensor | Statistics

    def of(self, bits: int) -> Quantizer:
        """Its like with so many bits and the step of least squares."""
        mine = self.quantizer
        method = get_method("lsq").varied(init_weights="least-squares", init_activations="least-squares")
        new = Quantizer(
            bits,
            method=method.for_activations if isinstance(self.data, Statistics) else method,
            signed=mine.signed,
            narrow=mine.narrow,
            step_shape=tuple(mine.raw_step.shape),
            view=mine.view,
            batch_dim=mine.batch_dim,
            name=mine.name,
        ).to(mine.raw_step.device)
        new.initialize(self.data)
        return new.requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Side:
    """Tensors that have one number of bits: a weight, or the inputs of layers that take one tensor.

    Attributes:
        name: "weight of LAYER" or "input of LAYER", of the first layer.
        layers: that it belongs to.
        members: its quantizers.
        choices: of bits; one, where it is not free.
    """

    name: str
    layers: tuple[str, ...]
    members: tuple[Member, ...]
    choices: tuple[int, ...]


def by_gradients(
    model: nn.Module, sides: Sequence[Side], batches: Sequence[Any], loss: Loss | None, seed: int
) -> Losses:
    """½ Σ E[(∂ℓ/∂x)²]·(x̂ − x)².

    The second-order term of a quantization error x̂ − x, with the Fisher information as the curvature.

    With ℓ the log-likelihood of labels that are drawn from what the network itself predicts, the mean of the squared
    gradients is the diagonal of the Fisher information, and the sum is what the divergence from the network's own
    predictions grows by, in nats per sample. Outputs that are no scores of classes are taken as means of a normal
    distribution (variance 1). With a `loss` of one's own its gradients on the labels given are taken instead.

    Args:
        model: prepared; nothing of it is quantized here.
        sides: of its quantizers.
        batches: as for `lowbit.calibrate`.
        loss: see above.
        seed: of the draws.
    """
    members = {member.quantizer: (member, side) for side in sides for member in side.members}
    made = {q: {bits: member.of(bits) for bits in side.choices} for q, (member, side) in members.items()}
    found: dict[Quantizer, dict[int, Any]] = {q: dict.fromkeys(by_bits, 0.0) for q, by_bits in made.items()}
    weights = {q: member.data for q, (member, _) in members.items() if isinstance(member.data, Tensor)}
    leaves: list[Tensor] = []
    probes = {q: _Probe(made[q], found[q], leaves) for q in members if q not in weights}
    squares = {q: torch.zeros_like(weight) for q, weight in weights.items()}
    generator, count = torch.Generator().manual_seed(seed), 0
    with evaluation(model), _trainable(model), torch.enable_grad(), replaced(model, lambda q: probes.get(q, NOTHING)):
        for batch in batches:
            output, beside, size = run(model, batch)
            total = _likelihood(output, generator) if loss is None else _own(loss, output, beside) * size
            # The network's inputs too: else nobody would ask for gradients there.
            gradients = torch.autograd.grad(total, [*weights.values(), *leaves], allow_unused=True)
            leaves.clear()
            for quantizer, gradient in zip(weights, gradients):
                if gradient is not None:
                    squares[quantizer] += gradient.square()
            count += size
    with torch.no_grad():
        for quantizer, weight in weights.items():
            for bits, each in made[quantizer].items():
                found[quantizer][bits] = (squares[quantizer] * (each(weight) - weight).square()).sum() / 2
    return {
        side.name: {bits: sum(float(found[m.quantizer][bits]) for m in side.members) / count for bits in side.choices}
        for side in sides
    }


def by_measurement(
    model: nn.Module,
    sides: Sequence[Side],
    batches: Sequence[Any],
    loss: Loss | None,
    on_step: OnStep = untold,
) -> Losses:
    """What the loss grows by where one tensor alone is quantized.

    Without a `loss`: the divergence from what the network in full precision predicts, for scores of classes, else half
    the squared difference of outputs. A growth below zero, which is noise, counts as none. Batch-norm's running
    statistics are taken again each time, from the batches: what a shift of means and variances loses comes back for
    nothing, by `lowbit.reestimate_batchnorm` or in training. Batches of one sample have none to take.

    Args:
        model: prepared; nothing of it is quantized but the one tensor.
        sides, batches: as for `by_gradients`.
        loss: its value in full precision is subtracted.
        on_step: is called with (done, all) after each measurement.
    """
    everything = sum(len(side.choices) for side in sides)
    with measuring(model, batches, loss) as measured:
        least = 0.0 if loss is None and not measured.shifts else measured({})

        def at(side: Side, bits: int) -> float:
            return max(0.0, measured({member.quantizer: member.of(bits) for member in side.members}) - least)

        return of_each_choice(sides, at, lambda done: on_step(done, everything))


def of_each_choice(sides: Sequence[Side], at: Callable[[Side, int], float], on_choice: Callable[[int], None]) -> Losses:
    """What `at` gives for each side and number of bits; `on_choice` is called with how many are done."""
    found: Losses = {}
    done = 0
    for side in sides:
        found[side.name] = {}
        for bits in side.choices:
            found[side.name][bits] = at(side, bits)
            done += 1
            on_choice(done)
    return found


@dataclass(frozen=True, eq=False)
class Measured:
    """What a prepared network loses on batches, with something else in place of its quantizers.

    Attributes:
        model, batches: of a batch of which `of` gives the loss.
        loss: None: the divergence from `exact`.
        exact: what the network in full precision gives for each batch.
        shifts: whether batch-norm's running statistics are taken again before the loss.
    """

    model: nn.Module
    batches: Sequence[Any]
    loss: Loss | None
    exact: Sequence[Any]
    shifts: bool

    def of(self, number: int) -> tuple[Tensor, int]:
        """The sum over a batch's samples, and how many these are."""
        output, beside, size = run(self.model, self.batches[number])
        if self.loss is None:
            return _divergence(output, self.exact[number]), size
        return _own(self.loss, output, beside) * size, size

    @torch.no_grad()
    def __call__(self, by: Mapping[Quantizer, nn.Module]) -> float:
        """The mean over all samples; a quantizer that nothing is given for passes its tensor on."""
        with replaced(self.model, lambda q: by.get(q, NOTHING)):
            if self.shifts:
                reestimate_batchnorm(self.model, self.batches)
            parts = [self.of(number) for number in range(len(self.batches))]
        return sum(float(total) for total, _ in parts) / sum(count for _, count in parts)


@contextmanager
def measuring(model: nn.Module, batches: Sequence[Any], loss: Loss | None) -> Iterator[Measured]:
    """Within: the model in evaluation mode, to be measured; at the end it has its running statistics again."""
    with evaluation(model), kept_statistics(model) as shifts:
        with torch.no_grad(), replaced(model, lambda _: NOTHING):
            exact, _, sizes = zip(*[run(model, batch) for batch in batches])
        yield Measured(model, batches, loss, exact, shifts and min(sizes) > 1)


def run(model: nn.Module, batch: Any) -> tuple[Any, Any, int]:
    """The model's output for a batch, what comes beside the inputs in it, and how many samples there are."""
    device = next(model.parameters()).device

    def moved(x: Any) -> Any:
        return x.to(device) if isinstance(x, Tensor) else x

    if isinstance(batch, Mapping):
        inputs = {key: moved(value) for key, value in batch.items()}
        return model(**inputs), None, len(next(iter(inputs.values())))
    pair = isinstance(batch, (tuple, list))
    x = moved(batch[0] if pair else batch)
    if not isinstance(x, Tensor) or not len(x):
        raise LowbitError(
            f"a batch must be a tensor of samples, an (input, label) pair or a dictionary, got {type(batch).__name__}"
        )
    return model(x), moved(batch[1]) if pair and len(batch) > 1 else None, len(x)


class _Probe(nn.Module):
    """Passes an activation on, and adds up what its quantization errors are expected to lose."""

    def __init__(self, quantizers: Mapping[int, Quantizer], found: dict[int, Any], leaves: list[Tensor]) -> None:
        super().__init__()
        self._of = (quantizers, found, leaves)  # no submodules

    def forward(self, x: Tensor) -> Tensor:
        quantizers, found, leaves = self._of
        if not x.requires_grad:
            x = x.detach().requires_grad_()
            leaves.append(x)

        def add(gradient: Tensor) -> None:
            with torch.no_grad():
                squares = gradient.square()
                for bits, quantizer in quantizers.items():
                    found[bits] = found[bits] + (squares * (quantizer(x.detach()) - x.detach()).square()).sum() / 2

        x.register_hook(add)
        return x


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Within: every floating-point parameter takes gradients."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _outputs(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in _outputs(part)]


def _are_scores(output: Any) -> bool:
    return isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] > 1


def _likelihood(output: Any, generator: torch.Generator) -> Tensor:
    """Σ over samples of −log p of a draw from what the network predicts."""
    if _are_scores(output):
        probabilities = output.detach().softmax(1).cpu()
        labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(output.device)
        return F.cross_entropy(output, labels, reduction="sum")
    return torch.stack(
        [(y * torch.randn(y.shape, generator=generator).to(y)).sum() for y in _outputs(output) if y.is_floating_point()]
    ).sum()


def _divergence(output: Any, exact: Any) -> Tensor:
    """Σ over samples of how far the outputs are from those in full precision."""
    if _are_scores(output):
        return F.kl_div(output.log_softmax(1), exact.log_softmax(1), reduction="sum", log_target=True)
    pairs = zip(_outputs(output), _outputs(exact))
    return torch.stack([(a - b).square().sum() / 2 for a, b in pairs if a.is_floating_point()]).sum()


def _own(loss: Loss, output: Any, beside: Any) -> Tensor:
    if beside is None:
        raise LowbitError("a loss of your own takes labels: give (input, label) pairs as batches, or leave loss out")
    return loss(output, beside)
