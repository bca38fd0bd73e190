"""Batch-norm and bias on the integer accumulator's grid.

Behind a layer with integer accumulator n, input step s_x and weight step s_w, batch-norm with running statistics and
the layer's bias b amount to gain·(n·s_x·s_w + b) + shift. An integer network computes that as scale·(n + bias) with

    scale = s_x·s_w·gain  per output channel, negative where γ is        bias = rint((gain·b + shift) / scale)

The rounding of the bias is what evaluation must see, or its codes differ from the integer network's: the grid of an
accumulator is coarse where steps are. Training keeps batch statistics and the bias as it is.

Behind a weight whose steps are powers of two the gain is rounded to one as well, in training too (`gain_rounding`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from lowbit.errors import LowbitError
from lowbit.layers.function import QuantizedFunction
from lowbit.layers.quantized import QUANTIZED, QuantizedLayer, float_class
from lowbit.quantizer.functional import is_recorded
from lowbit.quantizer.module import Quantizer, as_quantizer
from lowbit.quantizer.powers import codes_of_bits, nearest_power_of_two, nearest_with_bits
from lowbit.quantizer.variation import rounding_of, weakened


def gain_and_shift(norm: _BatchNorm, rounding: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Batch-norm with running statistics as y = gain·x + shift, float64.

    The gain is rounded where a rounding is given.
    """
    assert norm.running_mean is not None and norm.running_var is not None  # else it is no `kinds.NORM`
    gain = 1 / torch.sqrt(norm.running_var.detach().double() + norm.eps)
    shift = -gain * norm.running_mean.detach().double()
    if norm.affine:
        gain, shift = gain * norm.weight.detach().double(), norm.weight.detach().double() * shift
    if rounding is not None:
        gain = rounding(gain)
        shift = -gain * norm.running_mean.detach().double()
    return gain, shift + norm.bias.detach().double() if norm.affine else shift


def gain_rounding(source: QuantizedLayer | Quantizer) -> Callable[[Tensor], Tensor] | None:
    """How the gain of a batch-norm behind it, a layer or a quantizer, is rounded so that integers are shifted.

    None if it is not.

    Behind a layer with power-of-two steps to a power of two, because the gain becomes a part of the weight's scale.
    Behind a quantizer the gain becomes a weight of its own, whose code has seven bits beside that scale.
    """
    if isinstance(source, QuantizedLayer):
        return nearest_power_of_two if as_quantizer(source.weight_quantizer).method.power_of_two else None
    return _seven_bits if source.method.power_of_two else None


def _seven_bits(gain: Tensor) -> Tensor:
    """The nearest number code·2^e with a code of 64 to 127."""
    return nearest_with_bits(gain, 7)


def outputs_first(layer: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight, or what lies as it does, as (out, in/groups, …).

    A transposed convolution has (in, out/groups, …).
    """
    if not isinstance(layer, _ConvTransposeNd):
        return weight
    grouped = weight.reshape(layer.groups, weight.shape[0] // layer.groups, *weight.shape[1:])
    return grouped.transpose(1, 2).flatten(0, 1)


def channel_steps(layer: QuantizedLayer) -> Tensor:
    """The weight's step per output channel, float32 [out]; of one element where the whole weight has one."""
    return channel_values(layer, as_quantizer(layer.weight_quantizer).step_for(layer.used_weight().detach()))


def channel_values(layer: QuantizedLayer, values: Tensor) -> Tensor:
    """Values that lie as the weight's steps do, per output channel [out]; of one element where there is one.

    Raises:
        LowbitError: they differ within an output channel, which one accumulator can't sum.
    """
    return _per_channel(layer, as_quantizer(layer.weight_quantizer), layer.weight, values)


def _per_channel(layer: nn.Module, quantizer: Quantizer, weight: Tensor, values: Tensor) -> Tensor:
    if values.numel() == 1:
        return values.reshape(1)
    view = weight.shape if quantizer.view is None else quantizer.view
    per_channel = outputs_first(layer, values.expand(view).reshape(weight.shape)).flatten(1)
    # `prepare` has looked, and a compiler can't.
    if not torch.compiler.is_compiling() and not bool((per_channel == per_channel[:, :1]).all()):
        raise LowbitError(
            f"{quantizer.name} has several steps within an output channel, which one integer accumulator can't sum: "
            "use granularity 'tensor', 'channel' or 'channels:N'"
        )
    return per_channel[:, 0]


def fold(input_step: Tensor, layer: QuantizedLayer, norm: _BatchNorm | None) -> tuple[Tensor, Tensor, Tensor]:
    """(gain float64 [out], the weight's scale with the gain in it float32 [out], bias float64 [out], whole numbers).

    A channel that batch-norm switches off (gain 0, also where it was too small to count) keeps the weight's own step;
    its codes are to be 0.
    """
    steps = channel_steps(layer)
    channels = outputs_first(layer, layer.weight).shape[0]  # no len(), which recorders of traces warn of
    gain, shift = torch.ones(channels, dtype=torch.float64, device=steps.device), 0.0
    if norm is not None:
        gain, shift = gain_and_shift(norm, gain_rounding(layer))
    if layer.bias is not None:
        shift = gain * layer.bias.detach().double() + shift
    return _on_grid(input_step, steps, gain, shift + torch.zeros_like(gain), may_vanish=norm is not None)


DEPTHWISE_CODE = 127
"""The weight code of a batch-norm that becomes a depthwise 1×1 convolution.

The largest: the grid of its bias is finest then.
"""


def fold_as_depthwise(
    input_step: Tensor, source: QuantizedLayer | Quantizer, norm: _BatchNorm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fold` for a batch-norm with no layer before it but a quantizer, the source.

    Weight codes int8 [channels], and gain, scale and bias as `fold` has them.
    """
    rounding = gain_rounding(source)
    gain, shift = gain_and_shift(norm, rounding)
    codes = torch.full_like(gain, DEPTHWISE_CODE)
    if rounding is not None:  # the scale is to be a power of two, and then the code is what is left of the gain
        codes = codes_of_bits(gain, 7)
    codes = torch.where(gain == 0, torch.ones_like(codes), codes)
    gain, scale, bias = _on_grid(input_step, 1 / codes, gain, shift, may_vanish=True)
    return torch.where(gain == 0, torch.zeros_like(codes), codes).to(torch.int8), gain, scale, bias


def _on_grid(
    input_step: Tensor, steps: Tensor, gain: Tensor, shift: Tensor, *, may_vanish: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What `fold` returns, of weights with these steps.

    may_vanish: set gains to 0 that weight decay has driven so near to it that the channel is its shift alone: 2^64
    times below 1, or with a shift of 2^30 of the accumulator's steps, beside which sums of products hardly count and
    which 32 bits may not hold. A shift that does not fit with the weight's own step either has nothing to do with γ,
    and stays.
    """

    def scale_and_bias(gain: Tensor) -> tuple[Tensor, Tensor]:
        scale = (steps.double() * torch.where(gain == 0, torch.ones_like(gain), gain)).float()
        # float32 products, as runtimes form the accumulator's grid.
        return scale, torch.round(shift / (input_step.float() * scale).double())

    scale, bias = scale_and_bias(gain)
    if may_vanish:
        off = (gain.abs() < 2.0**-64) | (bias.abs() >= 2.0**30)
        off = off & (scale_and_bias(torch.zeros_like(gain))[1].abs() < 2.0**30)
        gain = torch.where(off, torch.zeros_like(gain), gain)
        scale, bias = scale_and_bias(gain)
    return gain, scale, bias


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """torchvision's and timm's FrozenBatchNorm2d as a batch-norm.

    Always in evaluation, with buffers in place of parameters.
    """

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    # pyrefly: ignore[bad-override]  # the rest is passed on as it is
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # which a batch-norm that was not frozen has
        super()._load_from_state_dict(state_dict, prefix, *others)


def frozen_as_norms(model: nn.Module) -> None:
    """Make every FrozenBatchNorm2d of torchvision or FrozenBatchNormAct2d of timm our `FrozenBatchNorm2d`, in place."""
    for module in model.modules():
        kind = type(module)
        library = kind.__module__.partition(".")[0] in ("torchvision", "timm")
        if library and kind.__name__ in ("FrozenBatchNorm2d", "FrozenBatchNormAct2d"):
            module.__class__ = FrozenBatchNorm2d
            settings = {"momentum": 0.1, "affine": True, "track_running_stats": False, "num_batches_tracked": None}
            vars(module).update(settings, num_features=len(cast("Tensor", module.running_mean)), training=False)


class IntegerNorm(_BatchNorm):
    """Batch-norm that in evaluation computes what its integer form will.

    `folded_into` has, for each place that it stands in, the quantized layer it follows there or the quantizer whose
    codes it takes. A place beyond the first is an argument of the call.
    """

    folded_into: tuple[QuantizedLayer | Quantizer, ...] = ()

    def _in_training(
        self, input: Tensor, rounding: Callable[[Tensor], Tensor] | None, shape: tuple[int, ...]
    ) -> Tensor:
        """Batch-norm with the batch's statistics.

        Where the gain will be rounded, γ is what makes it the rounded one with running statistics: γ·r, for the ratio r
        of rounded and exact gain. γ is learned through it, r being 1 but for the rounding.
        """
        normalized = super().forward(input)
        if rounding is None or not self.affine:
            return normalized
        exact, _ = gain_and_shift(self)
        ratio = torch.where(exact == 0, torch.ones_like(exact), rounding(exact) / exact).to(input.dtype).reshape(shape)
        return normalized * ratio + self.bias.reshape(shape) * (1 - ratio)

    def forward(self, input: Tensor, place: int = 0) -> Tensor:
        source = self.folded_into[place]
        behind_layer = isinstance(source, QuantizedLayer)
        quantizers = (source.input_quantizer, source.weight_quantizer) if behind_layer else (source,)
        if not all(isinstance(q, Quantizer) and q.initialized for q in quantizers):
            return super().forward(input)
        shape = (1, -1) + (1,) * (input.dim() - 2)
        if self.training:
            rounding = rounding_of(as_quantizer(quantizers[0]))
            if behind_layer:
                weight = outputs_first(source, source.used_weight().detach())
                rounding = rounding * weight.flatten(1).square().sum(1).reshape(shape)
            over = tuple(dim for dim in range(input.dim()) if dim != 1)
            return self._in_training(weakened(input, rounding, input.shape, over), gain_rounding(source), shape)
        input_step = as_quantizer(quantizers[0]).step
        gain, scale, bias = (
            fold(input_step, source, self) if behind_layer else (fold_as_depthwise(input_step, source, self)[1:])
        )
        shift = bias * (input_step * scale).double()
        added = source.used_bias() if behind_layer else None
        if added is not None:  # the layer has added it already
            shift = shift - gain * added.detach().double()
        return input * gain.to(input.dtype).reshape(shape) + shift.to(input.dtype).reshape(shape)


class IntegerNorm1d(IntegerNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose evaluation is that of its integer form."""


class IntegerNorm2d(IntegerNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose evaluation is that of its integer form."""


class IntegerNorm3d(IntegerNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d` whose evaluation is that of its integer form."""


class IntegerFrozenNorm(IntegerNorm, FrozenBatchNorm2d):
    """Computes what its integer form will in training too: its bias is not a parameter."""


class IntegerSyncNorm(IntegerNorm, nn.SyncBatchNorm):
    """`nn.SyncBatchNorm` whose evaluation is that of its integer form."""


_INTEGER_NORMS: dict[type[_BatchNorm], type[IntegerNorm]] = {
    FrozenBatchNorm2d: IntegerFrozenNorm,  # first: it is an nn.BatchNorm2d
    nn.BatchNorm1d: IntegerNorm1d,
    nn.BatchNorm2d: IntegerNorm2d,
    nn.BatchNorm3d: IntegerNorm3d,
    nn.SyncBatchNorm: IntegerSyncNorm,
}


def accumulator_bias(layer: QuantizedLayer) -> Tensor:
    """What the layer's accumulator starts with, its bias and batch-norm's: float64 [out], whole numbers, 0 or more.

    Of a layer that is called in several places with different batch-norms behind it, the largest magnitudes.
    """
    step = as_quantizer(layer.input_quantizer).step
    return torch.stack([fold(step, layer, norm)[2].abs() for norm in layer.followed_by or (None,)]).amax(0)


def follow(norm: nn.Module, source: nn.Module) -> int:
    """Make a batch-norm evaluate on the accumulator's grid of `source`, a layer or a quantizer, in place.

    Returns:
        The number of the place, which calls of it there are to give.
    """
    assert isinstance(source, (QuantizedLayer, Quantizer))
    if not isinstance(norm, IntegerNorm):
        norm.__class__ = next(integer for plain, integer in _INTEGER_NORMS.items() if isinstance(norm, plain))
    assert isinstance(norm, IntegerNorm)
    if all(each is not source for each in norm.folded_into):
        # In tuples, so that the source does not become a submodule of its batch-norm, nor the other way round.
        norm.folded_into = (*norm.folded_into, source)
        if isinstance(source, QuantizedLayer):
            source.followed_by = (*source.followed_by, norm)
    return next(place for place, each in enumerate(norm.folded_into) if each is source)


class _RoundBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bias: Tensor, grid: Tensor) -> Tensor:
        return torch.round(bias / grid) * grid

    @staticmethod
    # pyrefly: ignore[bad-override]  # torch declares one that takes any number of gradients
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def bias_on_grid(layer: QuantizedLayer) -> Tensor:
    """The layer's bias rounded to the accumulator's grid; its gradient goes to the bias unchanged."""
    assert layer.bias is not None
    return _rounded(layer, layer.bias, as_quantizer(layer.input_quantizer).step * channel_steps(layer))


def function_bias_on_grid(function: QuantizedFunction, weight: Tensor, bias: Tensor) -> Tensor:
    """`bias_on_grid` of a function, with the weight and bias that it is called with."""
    steps = function.parameter_quantizer.step_for(weight.detach())
    grid = function.input_quantizer.step * _per_channel(function, function.parameter_quantizer, weight, steps)
    return _rounded(function, bias, grid)


def _rounded(module: nn.Module, bias: Tensor, grid: Tensor) -> Tensor:
    return (_RoundBias.forward(None, bias, grid)) if is_recorded(module) else _RoundBias.apply(bias, grid)


def as_layer(function: QuantizedFunction, weight: Tensor, bias: Tensor | None) -> QuantizedLayer:
    """A layer that computes what a function computes with this weight and bias, with the function's quantizers."""
    plain = function.as_layer()
    kind = float_class(plain)
    assert kind is not None
    plain.__class__ = QUANTIZED[kind]
    assert isinstance(plain, QuantizedLayer)
    plain.register_parameter("weight", nn.Parameter(weight))
    plain.register_parameter("bias", None if bias is None else nn.Parameter(bias))
    plain.weight_quantizer, plain.input_quantizer = function.parameter_quantizer, function.input_quantizer
    return plain
