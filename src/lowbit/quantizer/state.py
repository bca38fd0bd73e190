"""What a quantizer remembers: its learned tensors, and what was decided when it was initialized.

All of it is parameters and buffers. Whatever copies those (a checkpoint, data-parallel training, an average of the
weights) therefore copies the quantizer; nothing beside them has to be brought in line. The decisions, such as the grid,
stand in the buffer `configuration`. Python needs them as numbers, and reading a buffer may wait for the device, so they
are read again only where the buffer is another one or its version has changed. Two things change no version:
`DistributedDataParallel` at the beginning of a forward pass, so that all processes have to round zero points, not the
first alone; and `.data`. And a compiled network is compiled again after a change by the methods below or by loading,
but does not notice that somebody else wrote into the buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowbit._deprecated import renamed_method, renamed_property
from lowbit.grid import Grid
from lowbit.quantizer.functional import bounded_step
from lowbit.quantizer.initialization import Initial
from lowbit.quantizer.methods import Method, get_method
from lowbit.quantizer.powers import nearest_power_of_two
from lowbit.quantizer.step import FEW_BITS, Balance, lsq_scale

_NO_OFFSET, _OFFSET, _INTEGER_ZERO_POINT = range(3)

# The names that buffers had in version 0.1.0.
_OLD_NAMES = {
    "layout": "configuration",
    "start_step": "initial_step",
    "slope_value": "surrogate_value",
    "slope_norm": "surrogate_norm",
    "pull_value": "scaling_value",
}


_OLD_ATTRIBUTES = {"started", "has_fraction", "slope_value", "slope_norm", "pull_value"}


class Configuration(NamedTuple):
    """What the buffer `configuration` holds.

    Bits, signed and narrow of the grid, offset, group and power_of_two, in this order.

    Attributes:
        grid: the grid; None until the quantizer is initialized, when the buffer is all zero.
        offset: 0 where there is none, 1 where one is learned, 2 where its zero point is rounded to an integer as well.
        group: the number of the group of layers that share this quantizer, or 0.
        power_of_two: whether it computes with a power of two in place of its step.
    """

    grid: Grid | None = None
    offset: int = _NO_OFFSET
    group: int = 0
    power_of_two: bool = False

    @classmethod
    def read(cls, buffer: Tensor) -> Configuration:
        bits, signed, narrow, offset, group, power_of_two = (round(number) for number in buffer.tolist())
        return cls(Grid(bits, bool(signed), bool(narrow)) if bits else None, offset, group, bool(power_of_two))

    def write(self, buffer: Tensor) -> None:
        grid = (0, 0, 0) if self.grid is None else (self.grid.bits, self.grid.signed, self.grid.narrow)
        buffer.copy_(torch.tensor([*grid, self.offset, self.group, self.power_of_two], dtype=torch.float32))


class QuantizerState(nn.Module):
    """The state of a quantizer, as parameters and buffers. All of them are float32, also in a half-precision model.

    Parameters and buffers:
        raw_step: the learned step, in units of `step_unit`. `step` is what is computed with: `learned_step`, their
            product, kept within a factor 1024 of its initial value, so positive and finite whatever an optimizer does;
            the gradient passes the bound unchanged. Where the method says so, it is the power of two nearest to that.
        step_unit: min(1, initial step / c), or None where that is 1 for every step. c is `relative_below`, or, if that
            is larger, the step that LSQ's rule gives for the data, on a grid of more than 4 bits and with LSQ's g: see
            `_unit`.
        offset: β, a parameter of the same shape, or None.
        initial_step: the step that the quantizer was initialized with.
        configuration: see `Configuration`. It is float32 so that an average of equal values is that value.
        surrogate_value, surrogate_norm: the parameter of the method's surrogate gradient and the factor that goes with
            it, or None.
        scaling_value: the parameter of the method's gradient scaling, or None.
        relative_gradients, balance_ratio: where the method balances its step (see `balance`), the running mean squares
            of the relative gradients of tensor and step, zero until measured, [2, steps] or for one step [2], and the
            ratio to hold; else None.
    """

    raw_step: nn.Parameter
    step_unit: Tensor | None
    offset: nn.Parameter | None
    initial_step: Tensor
    configuration: Tensor
    surrogate_value: Tensor | None
    surrogate_norm: Tensor | None
    scaling_value: Tensor | None
    relative_gradients: Tensor | None
    balance_ratio: Tensor | None

    def __init__(
        self,
        bits: int,
        method: str | Method,
        narrow: bool,
        step_shape: Sequence[int],
        name: str,
        relative_below: float,
    ) -> None:
        super().__init__()
        self.relative_below = relative_below
        self.bits, self.narrow, self.name = bits, narrow, name
        self.method = get_method(method)
        shape, learned = tuple(step_shape), self.method.step_gradient is not None
        self.raw_step = nn.Parameter(torch.ones(shape), requires_grad=learned)
        offset = nn.Parameter(torch.zeros(shape), requires_grad=learned)
        self.register_parameter("offset", None if self.method.offset == "never" else offset)
        self.register_buffer("initial_step", torch.ones(shape))
        self.register_buffer("step_unit", None)
        self.register_buffer("configuration", torch.zeros(6))
        for name, function in (
            ("surrogate_value", self.method.surrogate_gradient),
            ("scaling_value", self.method.gradient_scaling),
        ):
            self.register_buffer(name, None if function is None else torch.tensor(float(function.value)))
        # Kept, because a compiler would put its computation into the loop over elements.
        self.register_buffer("surrogate_norm", self._norm_of(self.surrogate_value))
        balance = self.balance
        # One dimension beside the pair's: `to(memory_format=…)` refuses what has as many as an image and one more.
        measured = None if balance is None else torch.zeros(2, *shape).flatten(min(1, len(shape)))
        self.register_buffer("relative_gradients", measured)
        self.register_buffer("balance_ratio", None if balance is None else torch.tensor(balance.ratio))
        self._configuration = Configuration()
        self._read_from: tuple[Tensor | None, int | None] = (None, None)  # the buffer, and its version at that time

    def _read(self) -> None:
        """Bring `_configuration` in line with the buffer. A compiler runs this once, while it traces."""
        buffer = self.configuration
        version = None if buffer.is_inference() else buffer._version
        if version is not None and self._read_from[0] is buffer and self._read_from[1] == version:
            return
        if type(buffer) is not Tensor or buffer.is_meta:
            return  # a tensor without values, in whose place the module had one with values
        self._read_from = (buffer, version)
        before, self._configuration = self._configuration, Configuration.read(buffer)
        if self.offset is not None and self._configuration != before:
            self.offset.requires_grad_(self._configuration.offset > 0 and self.method.step_gradient is not None)

    # As `torch.compiler.assume_constant_result` does, which imports the compiler: nearly as much as all of torch.
    vars(_read)["_dynamo_marked_constant"] = True

    def _current(self) -> Configuration:
        self._read()
        return self._configuration  # what a compiler guards: it compiles again when this has changed

    @torch.no_grad()
    def _configure(self, configuration: Configuration) -> None:
        configuration.write(self.configuration)
        self._read()

    @property
    def grid(self) -> Grid | None:
        """The grid, or None until the quantizer is initialized."""
        return self._current().grid

    @property
    def initialized(self) -> bool:
        """Whether grid, step and offset hold values from data (or from a checkpoint)."""
        return self.grid is not None

    @property
    def uses_offset(self) -> bool:
        """Whether it quantizes with an offset."""
        return self._current().offset > 0

    @property
    def integer_zero_point(self) -> bool:
        """Whether `zero_point` is an integer: there is no offset, or its zero point is rounded."""
        return self._current().offset != _OFFSET

    @property
    def shared(self) -> int:
        """The number of the group of layers that share this quantizer, or 0."""
        return self._current().group

    @shared.setter
    def shared(self, number: int) -> None:
        self._configure(self._current()._replace(group=number))

    @property
    def step(self) -> Tensor:
        """The step that is computed with: float32, positive, finite; detached."""
        step = self.bounded
        return nearest_power_of_two(step) if self.method.power_of_two else step

    @property
    def bounded(self) -> Tensor:
        """`learned_step` within its bounds, before it is rounded to any power of two; detached."""
        return bounded_step(self.learned_step.detach(), self.initial_step)

    @property
    def learned_step(self) -> Tensor:
        """The step as it was learned, before it is bounded, through which gradients go to `raw_step`."""
        return self.raw_step if self.step_unit is None else self.raw_step * self.step_unit

    @property
    def diverged(self) -> bool:
        """Whether a learned step has left its bounds or is not finite, so that `step` is not what was learned."""
        if not self.initialized or self.method.range is not None:
            return False
        return bool((self.learned_step.detach() != self.bounded).any())

    @property
    def zero_point(self) -> Tensor:
        """−β/s, the code of real zero; an integer where there is no offset or its zero point is rounded."""
        if not self.uses_offset:
            return torch.zeros_like(self.raw_step)
        assert self.offset is not None
        exact = -self.offset.detach() / self.step
        return exact.round() if self.integer_zero_point else exact

    def round_zero_point(self) -> None:
        """Quantize with an integer zero point from now on: with the offset of the rounded one.

        Nothing without offset.
        """
        if self.uses_offset:
            self._configure(self._current()._replace(offset=_INTEGER_ZERO_POINT))

    @torch.no_grad()
    def set_initial(self, initial: Initial) -> None:
        """Set grid, step and offset."""
        unit = self._unit(initial)
        self.step_unit = unit if bool((unit < 1).any()) else None
        self.raw_step.copy_(initial.step if self.step_unit is None else initial.step / unit)
        if self.relative_gradients is not None:
            self.relative_gradients.zero_()
        self.initial_step.copy_(initial.step)
        if self.offset is not None:
            self.offset.copy_(initial.offset)
        offset = _OFFSET if initial.uses_offset else _NO_OFFSET
        self._configure(Configuration(initial.grid, offset, power_of_two=self.method.power_of_two))

    def _unit(self, initial: Initial) -> Tensor:
        """The unit of the learned step: with it a step moves u² times as fast, and in proportion to itself.

        LSQ's g suits a step where LSQ starts it. On a grid of many bits other rules start up to ten times lower, from
        where the same gradient moves the step a hundred times as fast in proportion to itself, and it is a gradient
        that is noise but for the rare value that is cut off. Such steps ran away (decision 0011).
        """
        below = torch.full_like(initial.step, self.relative_below)
        gradient = self.method.step_gradient
        by_lsq = gradient is not None and gradient.scale is lsq_scale
        if by_lsq and initial.grid.bits > FEW_BITS and initial.lsq_step is not None:
            below = torch.maximum(below, initial.lsq_step)
        return (initial.step / below).clamp_max(1)

    def reset(self) -> None:
        """Return to the state before initialization: the quantizer must be initialized again."""
        self._configure(Configuration())

    started = renamed_property("Quantizer", "started", "initialized")
    has_fraction = renamed_property(
        "Quantizer",
        "has_fraction",
        "integer_zero_point (its opposite)",
        lambda quantizer: not quantizer.integer_zero_point,
    )
    slope_value = renamed_property("Quantizer", "slope_value", "surrogate_value")
    slope_norm = renamed_property("Quantizer", "slope_norm", "surrogate_norm")
    pull_value = renamed_property("Quantizer", "pull_value", "scaling_value")
    snap = renamed_method("Quantizer", "snap", "round_zero_point")
    restart = renamed_method("Quantizer", "restart", "reset")

    def __dir__(self) -> list[str]:
        """Without the old names: torch.jit reads every attribute that is listed here, and reading those warns."""
        return [name for name in super().__dir__() if name not in _OLD_ATTRIBUTES]

    @property
    def balance(self) -> Balance | None:
        """How the gradient of the step is held at a pace, or None."""
        return None if self.method.step_gradient is None else self.method.step_gradient.balance

    @torch.no_grad()
    def set_progress(self, fraction: float) -> None:
        """Set what changes over training to its value when `fraction` of it is done, in place."""
        for function, value in (
            (self.method.surrogate_gradient, self.surrogate_value),
            (self.method.gradient_scaling, self.scaling_value),
        ):
            if function is not None and value is not None and function.final is not None:
                value.fill_(function.at(fraction))
        norm = self._norm_of(self.surrogate_value)
        if self.surrogate_norm is not None and norm is not None:
            self.surrogate_norm.copy_(norm)
        if self.balance is not None and self.balance_ratio is not None and self.balance.final is not None:
            self.balance_ratio.fill_(self.balance.at(fraction))

    def _norm_of(self, value: Tensor | None) -> Tensor | None:
        """The norm of the surrogate gradient for a value of its parameter; None is 1."""
        surrogate = self.method.surrogate_gradient
        return None if surrogate is None or value is None else surrogate.norm_of(value)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.shared and not keep_vars:
            # Saved under the name of every layer that shares it, as copies: safetensors refuses tensors that share
            # memory.
            for key in [key for key in destination if key.startswith(prefix)]:
                destination[key] = destination[key].clone()

    def _load_from_state_dict(
        self,
        state_dict: dict,
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list,
        unexpected_keys: list,
        error_msgs: list,
    ) -> None:
        if not any(key.startswith(prefix) for key in state_dict):
            return
        self.upgrade(state_dict, prefix)
        difference = self._difference(state_dict.get(f"{prefix}configuration"))
        if difference is not None:
            error_msgs.append(difference)
            return
        if f"{prefix}raw_step" in state_dict:  # versions before units have steps as they are
            if f"{prefix}step_unit" not in state_dict:
                self.step_unit = None
            elif self.step_unit is None:  # else it stays the same tensor, which a recorded CUDA graph may read
                self.step_unit = torch.ones_like(self.raw_step)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._read()

    def upgrade(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Bring this quantizer's entries of an earlier version's checkpoint in line with this version's, in place."""
        for old, new in _OLD_NAMES.items():
            if f"{prefix}{old}" in state_dict:
                state_dict[f"{prefix}{new}"] = state_dict.pop(f"{prefix}{old}").float()
        saved = state_dict.get(f"{prefix}configuration")
        if saved is not None and saved.shape == (5,):  # of the time when no step was a power of two
            state_dict[f"{prefix}configuration"] = torch.cat([saved, saved.new_zeros(1)])
        value, norm = state_dict.get(f"{prefix}surrogate_value"), f"{prefix}surrogate_norm"
        if self.surrogate_norm is not None and value is not None and norm not in state_dict:
            state_dict[norm] = self._norm_of(value)
        measured, ratio = self.relative_gradients, self.balance_ratio
        if measured is not None and ratio is not None and f"{prefix}raw_step" in state_dict:
            # Of the time when the method balanced nothing, or when they had the step's shape.
            saved = state_dict.get(f"{prefix}relative_gradients", torch.zeros_like(measured))
            if saved.numel() == measured.numel():
                state_dict[f"{prefix}relative_gradients"] = saved.reshape(measured.shape)
            state_dict.setdefault(f"{prefix}balance_ratio", ratio.clone())

    def _difference(self, saved: Tensor | None) -> str | None:
        """In what a saved configuration differs from what this quantizer was made for, in words; None if in nothing."""
        if saved is None or saved.shape != self.configuration.shape:
            return None
        grid, *_, power_of_two = Configuration.read(saved)
        if grid is None:
            return None
        if power_of_two != self.method.power_of_two:
            forms = ("steps of any size", "steps that are powers of two")
            return (
                f"{self.name} has {forms[self.method.power_of_two]} but the checkpoint's has {forms[power_of_two]}: "
                "prepare the network with the `scales` it was saved with"
            )
        if grid.bits != self.bits:
            return (
                f"{self.name} has {self.bits} bits but the checkpoint's has {grid.bits}: prepare the network with "
                "the bit-widths it was saved with"
            )
        if grid.signed and grid.narrow != (self.narrow and self.bits > 1):
            return (
                f"{self.name} has {'a narrow' if self.narrow else 'the whole'} signed grid but the checkpoint's has "
                "not: prepare the network with the `narrow` it was saved with"
            )
        return None

    def _apply(self, fn, recurse=True):
        # Moves between devices but keeps float32: half-precision steps underflow.
        def keep_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_type, recurse)
