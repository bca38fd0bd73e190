"""The quantizer with learned state."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowbit.errors import LowbitError
from lowbit.grid import Grid, check_bits
from lowbit.quantizer.fake_quantize import Fixed, Parameters, bounded_step, fixed_for, quantize_with, snapped_offset
from lowbit.quantizer.init import Statistics
from lowbit.quantizer.methods import Method, get_method

# What `Quantizer.layout` holds, in order; all zero until the quantizer is started. offset: 0 none, 1 learned, 2 learned and
# snapped to an integer zero point.
_LAYOUT = ("bits", "signed", "narrow", "offset", "shared")


class Quantizer(nn.Module):
    """Fake quantization x ↦ x̂ with a learned step, and a learned offset where the method has one.

    `forward` is `fake_quantize` with this module's state. A quantizer must be started from data once (`start`, or
    `lowbit.calibrate` for a whole network); until then `forward` raises. Loading a state dict of a started quantizer
    starts it.

    Parameters and buffers (all float32, also in a half-precision model):
        raw_step: the learned step, a parameter of `step_shape`. `step` is what is computed with: `raw_step` kept within
            a factor 1024 of where it started, so positive and finite whatever an optimizer does; its gradient goes to
            `raw_step` unchanged.
        offset: β, a parameter of the same shape, or None.
        start_step: where the step started.
        layout: the grid and what else a checkpoint must agree on.

    Args:
        bits: 1 to 8.
        method: a name in `lowbit.METHODS` or a `Method`; used as it is (`Method.activations` is the caller's business).
        signed: the grid; None decides from the data the quantizer is started with.
        narrow: symmetric grid; applies where the grid is signed.
        step_shape: shape of the step, broadcasting against the input (viewed as `view`, where given).
        view: the shape in which the input is quantized; groups are made this way. None: its own.
        batch_dim: the dimension not counted among the elements that share a step; 0 for activations, None for weights.
        name: what messages call this quantizer.

    Raises:
        LowbitError: unknown method or bits out of range.
    """

    def __init__(
        self,
        bits: int,
        *,
        method: str | Method = "lsq",
        signed: bool | None = None,
        narrow: bool = False,
        step_shape: Sequence[int] = (),
        view: Sequence[int] | None = None,
        batch_dim: int | None = None,
        name: str = "quantizer",
    ) -> None:
        super().__init__()
        check_bits(bits)
        self.bits, self.signed, self.narrow = bits, signed, narrow
        self.method = get_method(method)
        self.view = None if view is None else tuple(view)
        self.batch_dim = batch_dim
        self.name = name
        self.grid: Grid | None = None
        self.uses_offset = False
        self.snapped = False
        learned = self.method.step_gradient is not None
        self.raw_step = nn.Parameter(torch.ones(tuple(step_shape)), requires_grad=learned)
        offset = nn.Parameter(torch.zeros(tuple(step_shape)), requires_grad=learned)
        self.register_parameter("offset", None if self.method.offset == "never" else offset)
        self.register_buffer("start_step", torch.ones(tuple(step_shape)))
        self.register_buffer("layout", torch.zeros(len(_LAYOUT), dtype=torch.int32))
        for side in ("slope", "pull"):
            factor = getattr(self.method, side)
            self.register_buffer(f"{side}_value", None if factor is None else torch.tensor(float(factor.value)))
        # Kept, because a compiler would put its computation into the loop over elements.
        norm = None if self.method.slope is None else self.method.slope.norm_of(self.slope_value)
        self.register_buffer("slope_norm", norm, persistent=False)
        self._is_shared = False
        self._last: tuple | None = None

    @property
    def started(self) -> bool:
        """Whether step and offset hold values from data."""
        return self.grid is not None

    @property
    def step(self) -> Tensor:
        """The step that is computed with: float32, positive, finite; detached."""
        return bounded_step(self.raw_step.detach(), self.start_step)

    @property
    def shared(self) -> int:
        """The number of the group of layers that share this quantizer, or 0."""
        return int(self.layout[_LAYOUT.index("shared")])

    @shared.setter
    def shared(self, number: int) -> None:
        self.layout[_LAYOUT.index("shared")] = number
        self._is_shared = number != 0

    @torch.no_grad()
    def set_progress(self, fraction: float) -> None:
        """Set the rounding's parameters to their value when `fraction` of the training is done, in place."""
        for factor, value in ((self.method.slope, self.slope_value), (self.method.pull, self.pull_value)):
            if factor is not None and factor.final is not None:
                value.fill_(factor.at(fraction))
        self._set_norm()

    def _set_norm(self) -> None:
        if self.slope_norm is not None:
            self.slope_norm.copy_(self.method.slope.norm_of(self.slope_value))

    def snap(self) -> None:
        """From now on compute with the offset that the nearest integer zero point stands for; nothing without offset."""
        if self.uses_offset:
            self.layout[_LAYOUT.index("offset")] = 2
            self._read_layout()

    @property
    def zero_point(self) -> Tensor:
        """−β/s, the code of real zero; a whole number where there is no offset or it is snapped."""
        if not self.uses_offset:
            return torch.zeros_like(self.raw_step)
        exact = -self.offset.detach() / self.step
        return exact.round() if self.snapped else exact

    @property
    def has_fraction(self) -> bool:
        """Whether `zero_point` may be no whole number: there is an offset, and it is not snapped."""
        return self.uses_offset and not self.snapped

    def step_for(self, x: Tensor) -> Tensor:
        """The step with which x is quantized: `step`, or the one that the method sets from x at every call."""
        if self.method.range is None:
            return self.step
        return self.method.range(self._prepared(x.detach()), self.grid, tuple(self.raw_step.shape))

    @property
    def alone(self) -> bool:
        """Whether a layer may compute x̂ itself, from `arguments`: started, and nobody else takes x̂ or looks at the call."""
        hooks = (self._forward_hooks, self._forward_pre_hooks, self._backward_hooks, self._backward_pre_hooks)
        return self.started and not self._is_shared and not any(hooks)

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None:
            raise LowbitError(
                f"{self.name} has no step yet: run lowbit.calibrate(model, batches) or load a checkpoint before using "
                "the network"
            )
        # A tensor that feeds two layers with one quantizer is quantized once. The compiler finds that by itself.
        if torch.compiler.is_compiling() or not self._is_shared or x.is_inference():
            return self.quantize(x)
        state = (x, self.raw_step, self.offset, self.slope_value, self.pull_value)
        key = ([t._version for t in state if t is not None], x.requires_grad, torch.is_grad_enabled())
        if self._last is not None and self._last[0]() is x and self._last[2] == key:
            x_hat = self._last[1]()
            if x_hat is not None and x_hat._version == 0:
                return x_hat
        x_hat = self.quantize(x)
        self._last = (weakref.ref(x), weakref.ref(x_hat), key)
        if x_hat.requires_grad:
            x_hat.register_hook(self._forget)  # a graph can be run backward once only
        return x_hat

    def _forget(self, gradient: Tensor) -> None:
        self._last = None

    def _prepared(self, x: Tensor) -> Tensor:
        if self.method.transform is not None:
            x = self.method.transform(x)
        return x if self.view is None else x.reshape(self.view)

    def quantize(self, x: Tensor) -> Tensor:
        """x̂ of a started quantizer, without what a call adds: hooks, and one result for a tensor that two layers take."""
        trained = torch.is_grad_enabled() and not torch.compiler.is_exporting()
        if torch.compiler.is_compiling() and trained and self.batch_dim is not None:
            # Computed again in the backward pass, where the compiler would keep x̂ beside x. Not so weights, which are
            # small beside activations: every such region takes time to compile.
            return checkpoint(self._compute, x, use_reentrant=False, preserve_rng_state=False)
        return self._compute(x)

    def _compute(self, x: Tensor) -> Tensor:
        x_hat = quantize_with(*self.arguments(x))
        return x_hat if self.view is None else x_hat.reshape(x.shape)

    def arguments(self, x: Tensor) -> tuple[Tensor, Parameters, Fixed]:
        """What `quantize_with` takes for a started quantizer; its result has the shape `view`, where there is one."""
        x = self._prepared(x)
        if self.method.range is None:
            step, start = self.raw_step, self.start_step
        else:
            step, start = self.method.range(x, self.grid, tuple(self.raw_step.shape)), None
        offset = self.offset if self.uses_offset else None
        if self.snapped:
            offset = snapped_offset(offset, self.step)
        parameters = Parameters(step, start, offset, self.slope_value, self.slope_norm, self.pull_value)
        return x, parameters, fixed_for(x, parameters, self.grid, self.method, self.batch_dim)

    def start(self, data: Tensor | Statistics) -> None:
        """Set grid, step and offset from data, by the method's starting rule. Does nothing on a started quantizer.

        Raises:
            LowbitError: the data is empty, holds NaN or infinity, or is all zero, so that no step can be found.
        """
        if not self.started:
            self.apply_start(*self.plan_start(data))

    def plan_start(self, data: Tensor | Statistics) -> tuple[Grid, bool, Tensor, Tensor]:
        """(grid, uses offset, step, offset) that `start` would set; changes nothing. Raises as `start` does."""
        if isinstance(data, Tensor):
            if data.numel() == 0:
                raise LowbitError(f"{self.name} is empty: there is nothing to quantize; skip the layer by a rule")
            statistics = Statistics.of(self._prepared(data.detach()), self.raw_step.shape)
        else:
            statistics = data
        if not bool(torch.isfinite(statistics.low).all() and torch.isfinite(statistics.high).all()):
            raise LowbitError(
                f"{self.name} holds NaN or infinity: look for it in the network's weights and in the calibration data"
            )
        if not bool((statistics.max_abs > 0).any()):
            raise LowbitError(
                f"{self.name} is all zero: no step can be found from it; give calibration data that reaches it, start from a "
                "trained network (a batch-norm that starts with γ = 0 makes zeros), or skip the layer by a rule"
            )
        negative = bool((statistics.low < 0).any())
        uses_offset = self.method.offset == "always" or (self.method.offset == "negative" and negative)
        signed = next(s for s in (self.signed, self.method.signed, negative and not uses_offset) if s is not None)
        grid = Grid(self.bits, signed, self.narrow and signed and self.bits > 1)
        if not signed and not uses_offset and not bool((statistics.high > 0).any()):
            raise LowbitError(
                f"{self.name}: an unsigned grid without offset holds none of its data, which is all negative: use a signed grid"
            )
        step, offset = self.method.init(statistics, grid, uses_offset)
        # Beyond these the step's bounds, a factor 1024 away, would leave float32.
        usable = (step > 2.0**-100) & (step < 2.0**100)
        if not bool(usable.any()):
            raise LowbitError(
                f"{self.name}: no positive step for the {grid} grid fits data in [{float(statistics.low.min()):.4g}, "
                f"{float(statistics.high.max()):.4g}]; use a grid with the data's sign, or skip the layer by a rule"
            )
        # A channel that is all zero (pruned) takes any step; the others' mean keeps it alive if it grows back.
        step = torch.where(usable, step, step[usable].mean())
        return grid, uses_offset, step.reshape(self.raw_step.shape), offset.reshape(self.raw_step.shape)

    @torch.no_grad()
    def apply_start(self, grid: Grid, uses_offset: bool, step: Tensor, offset: Tensor) -> None:
        """Set what `plan_start` found."""
        self.raw_step.copy_(step)
        self.start_step.copy_(step)
        if self.offset is not None:
            self.offset.copy_(offset)
        layout = [grid.bits, grid.signed, grid.narrow, uses_offset, 0]
        self.layout.copy_(torch.tensor(layout, dtype=torch.int32))
        self._read_layout()

    def restart(self) -> None:
        """Forget what it was started with: it has to be started again."""
        self.layout.zero_()
        self._read_layout()

    def _read_layout(self) -> None:
        """Bring the Python side in line with the `layout` buffer."""
        bits, signed, narrow, offset, shared = self.layout.tolist()
        self._is_shared = shared != 0
        self.grid = Grid(bits, bool(signed), bool(narrow)) if bits else None
        self.uses_offset, self.snapped = bool(offset), offset == 2
        if self.offset is not None:
            self.offset.requires_grad_(self.uses_offset and self.method.step_gradient is not None)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._is_shared and not keep_vars:
            # Saved under the name of every layer that shares it, as copies: safetensors refuses tensors that share memory.
            for key in [key for key in destination if key.startswith(prefix)]:
                destination[key] = destination[key].clone()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        mine = [key for key in state_dict if key.startswith(prefix)]
        if not mine:
            return
        layout = state_dict.get(f"{prefix}layout")
        if layout is not None and layout.shape == self.layout.shape and int(layout[0]) not in (0, self.bits):
            errors.append(
                f"{self.name} has {self.bits} bits but the checkpoint's has {int(layout[0])}: prepare the network with "
                "the bit-widths it was saved with"
            )
            return
        if layout is not None and layout.shape == self.layout.shape and int(layout[0]) and int(layout[1]):
            if bool(layout[2]) != (self.narrow and self.bits > 1):
                errors.append(
                    f"{self.name} has {'a narrow' if self.narrow else 'the whole'} signed grid but the checkpoint's has not: "
                    "prepare the network with the `narrow` it was saved with"
                )
                return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        self._read_layout()
        self._set_norm()

    def _apply(self, fn, recurse=True):
        # Moves between devices but keeps float32: half-precision steps underflow.
        def keep_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_type, recurse)

    def __getstate__(self):
        return {**self.__dict__, "_last": None}  # weak references can't be pickled

    def extra_repr(self) -> str:
        grid = str(self.grid) if self.started else f"{self.bits}-bit, not started"
        return f"{grid}, method={self.method.name}, step_shape={tuple(self.raw_step.shape)}"
