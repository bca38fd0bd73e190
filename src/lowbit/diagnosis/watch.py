"""What training does to steps and codes, looked at now and then: cheap enough to be on always.

A look lasts `WINDOW` steps of the optimizer in a row, because a weight that oscillates is seen only where it comes
back. Between two looks nothing is done but counting.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.layers.quantized import QuantizedLayer
from lowbit.layers.sites import quantized_layers, quantizers
from lowbit.quantizer.functional import codes
from lowbit.quantizer.module import Quantizer

WINDOW = 4
"""Steps of one look."""
LOOKS = 100
"""About so many looks there are in a whole training."""
APART = 50
"""Steps from one look to the next, at the least."""
SAMPLE = 1 << 14
"""Weights of a layer that a look goes over; of larger layers a random part, the same one always."""


class Watch:
    """Hangs onto an optimizer and looks at a prepared network's quantizers; changes nothing.

    Args:
        model: prepared and calibrated.
        optimizer: that trains it.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._quantizers = {name: each for name, each in quantizers(model) if each.initialized}
        self._weights = {
            f"{name}.weight_quantizer": _Weight(layer, layer.weight_quantizer)
            for name, layer in quantized_layers(model)
            if isinstance(layer.weight_quantizer, Quantizer)
        }
        self._hooks = (
            optimizer.register_step_pre_hook(lambda *_: self._before()),
            optimizer.register_step_post_hook(lambda *_: self._after()),
        )
        self._done, self._epoch, self._every = 0, 0, APART
        self._next = 0
        self._open: _Look | None = None
        self.looks: list[dict[str, Any]] = []

    def begin(self, epoch: int, steps: int, epochs: int, done: int = 0) -> None:
        """An epoch begins, of so many steps of the optimizer, of which some are done already.

        Looks depend on these numbers alone, also where a run goes on.
        """
        self._epoch, self._done, self._open = epoch, epoch * steps + done, None
        self._every = max(APART, -(-steps * epochs // LOOKS))
        self._next = -(-self._done // self._every) * self._every

    def take(self) -> list[dict[str, Any]]:
        """The looks since this was last called: see `docs/diagnosis.md` for what is in each."""
        taken, self.looks = self.looks, []
        return taken

    def remove(self) -> None:
        """Look no more."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _before(self) -> None:
        if self._done >= self._next and self._open is None:
            self._open = _Look(self._quantizers, self._weights)

    @torch.no_grad()
    def _after(self) -> None:
        self._done += 1
        if self._open is not None and self._open.count():
            self.looks.append({"epoch": self._epoch, "step": self._done, "quantizers": self._open.numbers()})
            self._open, self._next = None, self._next + self._every


class _Weight:
    """The weights of a layer, or a part of them, with their codes."""

    def __init__(self, layer: QuantizedLayer, quantizer: Quantizer) -> None:
        self.layer, self.quantizer = layer, quantizer
        method = quantizer.method
        # What a method computes of all weights is not to be had of a part.
        partly = layer.weight.numel() > SAMPLE and method.range is None and method.transform is None
        self.part = _places(layer.weight.numel()).to(layer.weight.device) if partly else None

    def values(self) -> tuple[Tensor, Tensor, Tensor]:
        """(what is quantized, its steps, its codes)."""
        quantizer, weight = self.quantizer, self.layer.used_weight()
        if self.part is None:
            x = quantizer.transform(weight).float()
            return x, quantizer.step_for(weight), quantizer.codes(weight).reshape(x.shape)
        grid = quantizer.grid
        assert grid is not None and not quantizer.uses_offset  # of weights
        shape = weight.shape if quantizer.view is None else quantizer.view
        x, step = weight.reshape(-1)[self.part].float(), quantizer.step
        if step.numel() > 1:
            where = torch.arange(step.numel(), device=step.device).reshape(step.shape).expand(shape)
            step = step.reshape(-1)[where[torch.unravel_index(self.part, shape)]]
        return x, step, codes(x, step, None, grid)

    def codes(self) -> Tensor:
        """The codes alone, as bytes."""
        return self.values()[2].to(torch.int8)


@lru_cache(maxsize=64)
def _places(count: int) -> Tensor:
    """Some of `count` weights; no random state is touched."""
    return torch.randint(count, (SAMPLE,), generator=torch.Generator().manual_seed(0))


class _Look:
    """One look: gradients as they are before its first step, codes before it and after each."""

    def __init__(self, all_quantizers: dict[str, Quantizer], weights: dict[str, _Weight]) -> None:
        self.weights, self.steps = weights, 0
        self.scalars = {name: _of_step(quantizer) for name, quantizer in all_quantizers.items()}
        for name, each in weights.items():
            numbers, weight = self.scalars[name], each.layer.weight
            if weight.grad is not None and "gradient" in numbers:
                relative = weight.grad.float().norm() / weight.float().norm().clamp_min(1e-30)
                numbers["pace"] = numbers["gradient"] / relative.clamp_min(1e-30)
        self.codes = {name: each.codes() for name, each in weights.items()}
        self.directions = {name: torch.zeros_like(each) for name, each in self.codes.items()}
        self.flipped = {name: torch.zeros_like(each, dtype=torch.bool) for name, each in self.codes.items()}
        self.changed = {name: torch.zeros((), device=each.device) for name, each in self.codes.items()}

    def count(self) -> bool:
        """Look at the codes after a step; whether the look has come to its end."""
        self.steps += 1
        for name, each in self.weights.items():
            now = each.codes()
            change = (now - self.codes[name]).sign_()
            self.flipped[name] |= (change != 0) & (change == -self.directions[name])
            self.directions[name] = torch.where(change != 0, change, self.directions[name])
            self.changed[name] += change.count_nonzero()
            self.codes[name] = now
        return self.steps == WINDOW

    def numbers(self) -> dict[str, dict[str, float]]:
        """What was seen, by quantizer; one transfer from the device."""
        for name, each in self.weights.items():
            x, step, q = each.values()
            self.scalars[name] |= {
                "changed": self.changed[name] / (q.numel() * self.steps),
                "oscillating": self.flipped[name].count_nonzero().float() / q.numel(),
                "error": (q * step - x).norm() / x.norm().clamp_min(1e-30),
            }
        flat = [(name, key, value) for name, each in self.scalars.items() for key, value in each.items()]
        values = torch.stack([value.float().reshape(()) for _, _, value in flat]).tolist() if flat else []
        found: dict[str, dict[str, float]] = {}
        for (name, key, _), value in zip(flat, values):
            found.setdefault(name, {})[key] = float(f"{value:.4g}")
        return found


def _of_step(quantizer: Quantizer) -> dict[str, Tensor]:
    """Mean step, that over its initial value (of the one that moved most), and the relative size of its gradient."""
    if quantizer.method.range is not None or quantizer.method.step_gradient is None:
        return {}
    moved = (quantizer.step / quantizer.initial_step).flatten()
    numbers = {"step": quantizer.step.mean(), "moved": moved[moved.log().abs().argmax()]}
    if quantizer.raw_step.grad is not None:
        # In units of the parameter, which may not be the step's: the pace at which SGD moves it.
        numbers["gradient"] = quantizer.raw_step.grad.norm() / quantizer.raw_step.norm().clamp_min(1e-30)
    return numbers
