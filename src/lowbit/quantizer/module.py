"""The quantizer as a module."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowbit._deprecated import renamed_method
from lowbit.errors import LowbitError
from lowbit.grid import TRAINED_BITS_MAX, check_bits
from lowbit.quantizer import functional
from lowbit.quantizer.balance import balanced
from lowbit.quantizer.functional import FakeQuantize, Parameters, Settings
from lowbit.quantizer.initialization import Statistics, find_initial
from lowbit.quantizer.methods import Method
from lowbit.quantizer.powers import power_of_two_step
from lowbit.quantizer.state import QuantizerState
from lowbit.quantizer.step import FEW_BITS


class Quantizer(QuantizerState):
    """Fake quantization x ↦ x̂ with a learned step, and a learned offset where the method has one.

    `forward` is `fake_quantize` with this module's state (see `QuantizerState`), and every quantized tensor of a
    network goes through it. A quantizer must be initialized from data once (`initialize`, or `lowbit.calibrate` for a
    whole network); until then `forward` raises. Loading the state dict of an initialized quantizer initializes it.

    Args:
        bits: 1 to 8.
        method: a name in `lowbit.METHODS` or a `Method`; used as it is (`Method.activations` is the caller's business).
        signed: the grid; None decides from the data the quantizer is initialized with.
        narrow: symmetric grid; applies where the grid is signed.
        step_shape: shape of the step, broadcasting against the input (viewed as `view`, where given).
        view: the shape in which the input is quantized; groups are made this way. None: its own.
        batch_dim: the dimension not counted among the elements that share a step; 0 for activations, None for weights.
        name: what messages call this quantizer.
        relative_below: steps that are smaller than this at the beginning are learned at a pace in proportion to
            themselves: see `QuantizerState`. The default leaves the papers' rule to all that papers quantize.
        bits_max: how many bits there may be; 16 where the state of a recurrent layer is carried on.

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
        relative_below: float = 2.0**-10,
        bits_max: int = TRAINED_BITS_MAX,
    ) -> None:
        check_bits(bits, bits_max)
        super().__init__(bits, method, narrow, step_shape, name, relative_below)
        self.signed = signed
        self.view = None if view is None else tuple(view)
        self.batch_dim = batch_dim
        # Of the weight whose pace the step is to keep. In a tuple, so that it does not become a submodule here too.
        self.beside: tuple[Quantizer, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """x̂."""
        functional.check_supported(x)
        x, parameters, settings = self._arguments(x)
        if functional.is_recorded(self):
            return self._recorded(x, parameters, settings)
        # Not `is_exporting()`, which is true in whatever torch 2.11 compiles.
        trained = torch.is_grad_enabled() and not torch.compiler._is_exporting_flag
        # torch.jit records a graph with gradients, and checks it by another that it records without.
        learned = (parameters.step.requires_grad and trained) or torch.jit.is_tracing()
        # No other step keeps the pace of an activation, so that beyond a few bits there is nothing to measure.
        paced = self.batch_dim is None or settings.grid.bits <= FEW_BITS
        if learned and paced and self.balance is not None:
            x, step = self._balanced(x, parameters.step, settings)
            parameters = parameters._replace(step=step)
        if torch.compiler.is_compiling() and trained and self.batch_dim is not None:
            # Computed again in the backward pass, where the compiler would keep x̂ beside x. Not so weights, which are
            # small beside activations: every such region takes time to compile.
            region = lambda x: FakeQuantize.apply(x, *parameters, settings)  # noqa: E731
            return checkpoint(region, x, use_reentrant=False, preserve_rng_state=False)
        return FakeQuantize.apply(x, *parameters, settings)

    def _recorded(self, x: Tensor, parameters: Parameters, settings: Settings) -> Tensor:
        """x̂ by operations that torch.jit can save: not by an autograd function."""
        if torch.is_grad_enabled() and not torch.onnx.is_in_onnx_export():
            warnings.warn(
                "a network that is recorded in evaluation computes what lowbit's does, but not its gradients: record "
                "it within torch.no_grad(), or in training mode",
                torch.jit.TracerWarning,
                stacklevel=2,
            )
        return functional.quantized(x, parameters, settings)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """q = clip(round((x − β)/s)) on the grid, with x transformed as the method does: int32, of x's shape.

        `forward` gives x̂ = s·q + β. With the zero point z = −β/s that is x̂ = s·(q − z), so q is also the code that an
        integer network stores, with an offset or without: there is nothing to add to it.
        """
        x, parameters, settings = self._arguments(x)
        step, _, offset, *_ = parameters.bounded()
        q = functional.codes(settings.viewed(x), step, offset, settings.grid)
        return q.to(torch.int32).reshape(x.shape)

    def _arguments(self, x: Tensor) -> tuple[Tensor, Parameters, Settings]:
        """What `FakeQuantize` takes."""
        grid, method = self.grid, self.method
        if grid is None:
            raise LowbitError(
                f"{self.name} has no step yet: run lowbit.calibrate(model, batches) or load a checkpoint before using "
                "the network"
            )
        step, initial_step = self.learned_step, self.initial_step
        if method.transform is not None:
            x = method.transform(x)
        if method.range is not None:
            viewed = x if self.view is None else x.reshape(self.view)
            step, initial_step = method.range(viewed, grid, tuple(self.raw_step.shape)), None
        if method.power_of_two:
            trained = not functional.is_recorded(self)
            step, initial_step = power_of_two_step(step, initial_step, trained=trained), None
        offset = self.offset if self.uses_offset else None
        if offset is not None and self.integer_zero_point:
            trained = not functional.is_recorded(self)
            offset = functional.with_integer_zero_point(offset, self.step, trained=trained)
        parameters = Parameters(
            step, initial_step, offset, self.surrogate_value, self.surrogate_norm, self.scaling_value
        )
        settings = Settings.of(x.shape, parameters, grid, method, batch_dim=self.batch_dim, view=self.view)
        return x, parameters, settings

    def _balanced(self, x: Tensor, step: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
        """x and step, of which the latter's gradient is balanced."""
        balance, measured, ratio = self.balance, self.relative_gradients, self.balance_ratio
        assert balance is not None and measured is not None and ratio is not None
        paired = self.beside if balance.against == "weight" else ()
        beside = next((weight.relative_gradients for weight in paired), None)
        samples = 1 if self.batch_dim is None else x.shape[self.batch_dim]
        return balanced(
            x, step, self.initial_step, measured, ratio, beside, settings, samples=samples, momentum=balance.momentum
        )

    def transform(self, x: Tensor) -> Tensor:
        """What is quantized of x: the method's transform of it, in the shape against which steps broadcast."""
        if self.method.transform is not None:
            x = self.method.transform(x)
        return x if self.view is None else x.reshape(self.view)

    def step_for(self, x: Tensor) -> Tensor:
        """The step with which x is quantized: `step`, or the one that the method sets from x at every call."""
        if self.method.range is None:
            return self.step
        grid = self.grid
        assert grid is not None  # a quantizer with steps
        step = self.method.range(self.transform(x.detach()), grid, tuple(self.raw_step.shape))
        return power_of_two_step(step, None, trained=False) if self.method.power_of_two else step

    def initialize(self, data: Tensor | Statistics) -> None:
        """Initialize grid, step and offset from data, by the method's rule. An initialized quantizer stays as it is.

        Raises:
            LowbitError: the data is empty, holds NaN or infinity, or is all zero, so that no step can be found.
        """
        if not self.initialized:
            self.set_initial(find_initial(self, data))

    start = renamed_method("Quantizer", "start", "initialize")

    def extra_repr(self) -> str:
        grid = f"{self.bits}-bit, not initialized" if self.grid is None else str(self.grid)
        powers = ", steps are powers of two" if self.method.power_of_two else ""
        return f"{grid}, method={self.method.name}{powers}, step_shape={tuple(self.raw_step.shape)}"


def as_quantizer(module: nn.Module) -> Quantizer:
    """The module, where it has to be a quantizer: of a side of a layer that is not in full precision, say."""
    assert isinstance(module, Quantizer)
    return module
