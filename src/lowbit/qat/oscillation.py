"""Two remedies for weights that oscillate between levels at low bits (Nagel et al., ICML 2022, arXiv 2203.11086)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lowbit._deprecated import renamed_arguments
from lowbit.errors import LowbitError
from lowbit.grid import Grid
from lowbit.layers.libraries import Standardized
from lowbit.layers.quantized import QuantizedLayer
from lowbit.layers.sites import quantized_layers
from lowbit.quantizer.functional import round_to_grid
from lowbit.quantizer.module import Quantizer, as_quantizer


def dampening_loss(model: nn.Module) -> Tensor:
    """Σ over layers of ‖ŵ − clip(w, s·qn, s·qp)‖², a regulariser that pulls weights to their levels (Eq. 5).

    ŵ and s are constants of it, so only weights inside the range get a gradient. Add it to the loss times a factor that
    rises late in training; a large one from the start freezes the codes.
    """
    terms = []
    for layer in learned_layers(model):
        quantizer, grid = _quantizer(layer)
        weight = layer.used_weight()
        step, w = quantizer.step_for(weight), quantizer.transform(weight)
        low, high = step * grid.qn, step * grid.qp
        w_hat = quantizer.codes(weight).reshape(w.shape) * step
        terms.append((w_hat - w.clamp(low, high)).square().sum())
    if not terms:
        raise LowbitError("the model has no quantized weights to dampen")
    return torch.stack(terms).sum()


@renamed_arguments(memory="momentum")
class OscillationFreezer:
    """Iterative weight freezing (§4.3): a weight whose code keeps flipping is held at its average level for good.

    Hangs onto `optimizer`; after each of its steps, an element whose code changed in the direction opposite to its last
    change counts as an oscillation. Where the running average of that frequency passes `threshold`, the element is
    frozen at the running average of its codes, rounded.

    Args:
        model: a prepared and calibrated network.
        optimizer: the optimizer that trains it.
        threshold: frequency (oscillations per step) above which an element freezes; may be lowered during training.
        momentum: m of the running averages, average ← m·average + (1 − m)·value.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, threshold: float = 0.02, momentum: float = 0.99
    ) -> None:
        self.threshold, self.momentum = threshold, momentum
        self._layers = list(learned_layers(model))
        if not self._layers:
            raise LowbitError("the model has no quantized weights to freeze")
        for layer in self._layers:
            if isinstance(layer, Standardized):
                raise LowbitError(
                    f"{_quantizer(layer)[0].name} is standardized, so that none of its elements can be held: use "
                    "dampening_loss"
                )
        self._state = [self._fresh(layer) for layer in self._layers]
        self._hook = optimizer.register_step_post_hook(lambda *_: self.update())

    @property
    def frozen_fraction(self) -> float:
        """The share of weights that are frozen."""
        frozen = sum(int(state["frozen"].sum()) for state in self._state)
        return frozen / sum(state["frozen"].numel() for state in self._state)

    @torch.no_grad()
    def update(self) -> None:
        """Count oscillations and freeze; called after every optimizer step."""
        for layer, state in zip(self._layers, self._state):
            codes = self._codes(layer)
            frozen = state["frozen"]
            codes = torch.where(frozen, state["codes"], codes)
            change = torch.sign(codes - state["codes"])
            flipped = (change != 0) & (change == -state["direction"])
            state["frequency"].lerp_(flipped.float(), 1 - self.momentum)
            state["average"].lerp_(codes, 1 - self.momentum)
            state["direction"] = torch.where(change != 0, change, state["direction"])
            newly = (state["frequency"] > self.threshold) & ~frozen
            state["codes"] = torch.where(newly, self._nearest(layer, state["average"]), codes)
            state["frozen"] = frozen | newly
            # The weight moves with its code when the step is learned on.
            quantizer, _ = _quantizer(layer)
            held = (state["codes"] * quantizer.step_for(layer.weight)).reshape(layer.weight.shape)
            layer.weight.copy_(torch.where(state["frozen"].reshape(layer.weight.shape), held, layer.weight))

    def state_dict(self) -> dict[str, Tensor]:
        """Its running averages, for a checkpoint."""
        return {f"{i}.{key}": value.clone() for i, state in enumerate(self._state) for key, value in state.items()}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned, in place."""
        mine = self.state_dict()
        if saved.keys() != mine.keys() or any(
            saved[key].shape != value.shape or saved[key].dtype != value.dtype for key, value in mine.items()
        ):
            raise LowbitError("the saved state of the oscillation freezer belongs to another network")
        for i, state in enumerate(self._state):
            for key, value in state.items():
                state[key] = saved[f"{i}.{key}"].to(value.device)

    def remove(self) -> None:
        """Stop; frozen weights stay where they are until the next optimizer step."""
        self._hook.remove()

    def _fresh(self, layer: QuantizedLayer) -> dict[str, Tensor]:
        codes = self._codes(layer)
        zeros = torch.zeros_like(codes)
        return {
            "codes": codes,
            "average": codes.clone(),
            "frequency": zeros,
            "direction": zeros.clone(),
            "frozen": torch.zeros_like(codes, dtype=torch.bool),
        }

    @staticmethod
    def _codes(layer: QuantizedLayer) -> Tensor:
        """The weight's codes in the shape in which it is quantized."""
        quantizer, _ = _quantizer(layer)
        codes = quantizer.codes(layer.quantized_from()).float()
        return codes if quantizer.view is None else codes.reshape(quantizer.view)

    @staticmethod
    def _nearest(layer: QuantizedLayer, average: Tensor) -> Tensor:
        _, grid = _quantizer(layer)
        return round_to_grid(average.clamp(grid.qn, grid.qp), grid)


def _quantizer(layer: QuantizedLayer) -> tuple[Quantizer, Grid]:
    """The quantizer of a weight that `learned_layers` gives, and its grid."""
    quantizer = as_quantizer(layer.weight_quantizer)
    assert quantizer.grid is not None
    return quantizer, quantizer.grid


def learned_layers(model: nn.Module) -> Iterator[QuantizedLayer]:
    """The layers whose weights are quantized; refuses those that have no step yet."""
    for name, layer in quantized_layers(model):
        quantizer = layer.weight_quantizer
        if isinstance(quantizer, Quantizer):
            if not quantizer.initialized:
                raise LowbitError(f"the weight of layer {name!r} has no step yet: run lowbit.calibrate first")
            yield layer
