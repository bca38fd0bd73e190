"""Layers with quantizers: what a convolution or linear layer becomes.

A prepared layer is the user's own module with its class changed to a subclass of what it was. Parameters, buffers,
hooks and attributes stay where they are, so checkpoints load and `isinstance` checks hold; the two quantizers are
ordinary submodules, `weight_quantizer` and `input_quantizer` (an `nn.Identity` where a side is in full precision).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lowbit.errors import LowbitError
from lowbit.layers.accumulators import check_accumulators, within_accumulator
from lowbit.layers.computed import check_not_computed
from lowbit.layers.libraries import forms_of
from lowbit.layers.product import product
from lowbit.layers.rules import Setting
from lowbit.quantizer.module import Quantizer

Call = tuple[str, tuple, dict[str, Any]]
"""A call of one of torch.nn.functional's functions: its name, and what it is given behind input and weight."""


class QuantizedLayer(nn.Module):
    """y = layer(x̂, ŵ): the layer's own computation on the quantized input and weight.

    An owner that reads the weight computes something with it: then y is that `call` (see `layers.reading`).
    """

    weight: Tensor
    bias: Tensor | None
    weight_quantizer: nn.Module
    input_quantizer: nn.Module
    # In an integer-only network a function of the layer, which gives its bias on the accumulator's grid.
    bias_rounding: Callable[[Any], Tensor] | None = None
    # The width that the sums of products are to fit; None where they are free.
    accumulator_bits: int | None = None
    # In an integer-only network a function of the layer, which gives the bias of its accumulator, with batch-norm's;
    # per output.
    accumulator_bias: Callable[[Any], Tensor] | None = None
    # The batch-norm that is folded into it, for each place that it is called in; None where there is none.
    followed_by: tuple[Any, ...] = ()

    def forward(self, input: Tensor, *options: Any, call: Call | None = None) -> Tensor:
        # One sample without a batch dimension gets one, which the quantizer expects.
        batched = input.dim() >= self.weight.dim()
        x_hat = self.input_quantizer(input if batched else input[None])
        w_hat = self.weight_quantizer(self.quantized_from())
        if w_hat is self.weight:  # an alias, which `layers.reading` does not take for the weight that an owner reads
            w_hat = w_hat.view_as(w_hat)
        if call is None:
            y = product(self.compute, x_hat, w_hat, self.used_bias(), *options)
        else:
            name, others, named = call
            y = product(partial(getattr(F, name), **named), x_hat, w_hat, *others)
        return y if batched else y[0]

    # `**_` says to type checkers that layers take options of their own.
    def compute(self, x: Tensor, w: Tensor, bias: Tensor | None, *options: Any, **_: Any) -> Tensor:
        """The float layer's computation with x and w in place of its input and weight."""
        raise NotImplementedError

    def used_weight(self) -> Tensor:
        """The weight that the layer computes with, before it is quantized.

        The parameter, or a function of parameters.
        """
        return self.weight

    def quantized_from(self) -> Tensor:
        """What the weight's codes are made from: `used_weight`, moved where its sums must fit an accumulator."""
        weight = self.used_weight()
        return weight if self.accumulator_bits is None else within_accumulator(self, weight)

    def used_bias(self) -> Tensor | None:
        """The bias that the layer computes with."""
        if self.bias is None or self.bias_rounding is None or not getattr(self.input_quantizer, "initialized", False):
            return self.bias
        return self.bias_rounding(self)


class _Convolution(QuantizedLayer, _ConvNd):
    def compute(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, w, bias)


class _TransposedConvolution(QuantizedLayer, _ConvTransposeNd):
    # pyrefly: ignore[bad-override]  # the one option of this layer, which can be given by name too
    def forward(self, input: Tensor, output_size: list[int] | None = None, call: Call | None = None) -> Tensor:
        if call is not None:
            return super().forward(input, call=call)
        sizes: Any = (self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation)
        return super().forward(input, self._output_padding(input, output_size, *sizes))

    def compute(self, x: Tensor, w: Tensor, bias: Tensor | None, output_padding: list[int]) -> Tensor:
        convolve = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[len(self.kernel_size)]
        assert not isinstance(self.padding, str)  # which transposed convolutions don't have
        return convolve(x, w, bias, self.stride, self.padding, output_padding, self.groups, self.dilation)


# pyrefly: ignore[inconsistent-inheritance]  # torch does not declare that a linear layer's bias may be None
class QuantizedLinear(QuantizedLayer, nn.Linear):
    """`nn.Linear` with quantizers at its weight and input."""

    def compute(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, w, bias)


class QuantizedConv1d(_Convolution, nn.Conv1d):
    """`nn.Conv1d` with quantizers at its weight and input."""


class QuantizedConv2d(_Convolution, nn.Conv2d):
    """`nn.Conv2d` with quantizers at its weight and input."""


class QuantizedConv3d(_Convolution, nn.Conv3d):
    """`nn.Conv3d` with quantizers at its weight and input."""


class QuantizedConvTranspose1d(_TransposedConvolution, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` with quantizers at its weight and input."""


class QuantizedConvTranspose2d(_TransposedConvolution, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with quantizers at its weight and input."""


class QuantizedConvTranspose3d(_TransposedConvolution, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` with quantizers at its weight and input."""


QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
    nn.ConvTranspose1d: QuantizedConvTranspose1d,
    nn.ConvTranspose2d: QuantizedConvTranspose2d,
    nn.ConvTranspose3d: QuantizedConvTranspose3d,
}


# What of a class decides what a layer computes: a subclass that has all of these from torch computes what torch's does.
_DECIDING = ("forward", "_conv_forward", "_output_padding", "__call__", "_call_impl", "__getattr__", "__getattribute__")

# Subclasses with a forward of their own that computes the same.
_SAME_COMPUTATION = ("timm.layers.linear.Linear",)


def float_class(layer: nn.Module) -> type[nn.Module] | None:
    """The class in `QUANTIZED` that the layer is or derives from; None for any other module."""
    return next((kind for kind in QUANTIZED if isinstance(layer, kind)), None)


def check_layer(name: str, layer: nn.Module) -> None:
    """Refuse a layer whose computation the prepared form would not reproduce.

    Raises:
        LowbitError: a forward of its own, parameters that are not there yet or that are computed before each call.
    """
    kind = float_class(layer)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in layer.parameters(recurse=False)):
        raise LowbitError(f"layer {name!r} is lazy and has no weights yet: run the network once before preparing it")
    assert kind is not None
    check_not_computed(name, layer)
    leave = f"or leave it in full precision with lowbit.Rule({name!r}, skip=True)"
    spelled = f"{type(layer).__module__}.{type(layer).__name__}"
    for parameter in ("weight", "bias"):
        if parameter not in layer._parameters:
            raise LowbitError(
                f"layer {name!r} ({spelled}): its {parameter} is not a parameter of its own, so that something "
                f"computes it: make it an nn.Parameter, {leave}"
            )
    own = [
        each
        for each in _DECIDING
        if each in vars(layer) or getattr(type(layer), each, None) is not getattr(kind, each, None)
    ]
    known = spelled in _SAME_COMPUTATION or forms_of(type(layer))
    if own and (not known or own != ["forward"]):
        raise LowbitError(
            f"layer {name!r} is a {spelled} with a {own[0]} of its own, which may compute its output in another way: "
            f"replace it by a plain nn.{kind.__name__}, {leave}"
        )


def add_quantizers(name: str, layer: nn.Module, setting: Setting) -> None:
    """Turn a float layer into its prepared form, in place."""
    kind = float_class(layer)
    assert kind is not None
    check_accumulators(name, layer, setting)
    weight_quantizer, input_quantizer = new_quantizers(name, layer, setting)
    layer.__class__ = _quantized_class(type(layer), kind)
    assert isinstance(layer, QuantizedLayer)
    device = layer.weight.device
    layer.weight_quantizer = weight_quantizer.to(device)
    layer.input_quantizer = input_quantizer.to(device)
    layer.accumulator_bits = setting.accumulator_bits


def new_quantizers(name: str, layer: nn.Module, setting: Setting) -> tuple[nn.Module, nn.Module]:
    """The quantizers of a layer's weight and input; an identity for a side in full precision."""
    weight_quantizer: nn.Module = nn.Identity()
    input_quantizer: nn.Module = nn.Identity()
    if setting.weights is not None:
        view, step_shape = _weight_step(name, layer, setting.granularity)
        weight_quantizer = Quantizer(
            setting.weights,
            method=setting.method,
            signed=True,
            narrow=setting.narrow,
            step_shape=step_shape,
            view=view,
            name=f"the weight of layer {name!r}",
        )
    if setting.activations is not None:
        input_quantizer = Quantizer(
            setting.activations,
            method=setting.method.for_activations,
            narrow=setting.narrow,
            batch_dim=0,
            name=f"the input of layer {name!r}",
        )
        if isinstance(weight_quantizer, Quantizer):
            input_quantizer.beside = (weight_quantizer,)
    return weight_quantizer, input_quantizer


@cache
def _quantized_class(cls: type[nn.Module], kind: type[nn.Module]) -> type[QuantizedLayer]:
    """The prepared form of a class: one of `QUANTIZED`, or a subclass that has the attributes of a subclass as well."""
    if cls is kind:
        return QUANTIZED[kind]
    members = {"__module__": __name__, "__reduce__": _reduce, "_made_of": (cls, kind)}
    return type(f"Quantized{cls.__name__}", (*forms_of(cls), QUANTIZED[kind], cls), members)


def _reduce(layer: Any) -> tuple:
    # The class is made when needed, so that pickle finds it under no name.
    return _empty, layer._made_of, layer.__dict__


def _empty(cls: type[nn.Module], kind: type[nn.Module]) -> QuantizedLayer:
    made = _quantized_class(cls, kind)
    return made.__new__(made)


def _weight_step(name: str, layer: nn.Module, granularity: str) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """(the shape in which the weight is quantized or None for its own, the step's shape) for a granularity."""
    assert isinstance(layer, (nn.Linear, _ConvNd))
    shape = tuple(layer.weight.shape)
    if granularity == "tensor":
        return None, ()
    if granularity == "channel":
        if not isinstance(layer, _ConvTransposeNd):
            return None, (shape[0],) + (1,) * (len(shape) - 1)
        # [in, out/groups, …]: an output channel is a group of the first dimension and an index of the second.
        groups = layer.groups
        return (groups, shape[0] // groups, *shape[1:]), (groups, 1, shape[1]) + (1,) * (len(shape) - 2)
    kind, _, number = granularity.partition(":")
    if kind in ("group", "channels") and number.isdigit() and int(number) > 0:
        size = int(number)
        if isinstance(layer, _ConvTransposeNd):
            raise LowbitError(f"layer {name!r} is transposed: use granularity 'tensor' or 'channel' for it, by a rule")
        divided, what = (math.prod(shape[1:]), "inputs") if kind == "group" else (shape[0], "output channels")
        if divided % size:
            raise LowbitError(
                f"layer {name!r} has {divided} {what}, not a multiple of {size}: choose a size that divides it, by a "
                "rule"
            )
        if kind == "group":
            return (shape[0], divided // size, size), (shape[0], divided // size, 1)
        return (shape[0] // size, size, *shape[1:]), (shape[0] // size,) + (1,) * len(shape)
    raise LowbitError(
        f"layer {name!r}: unknown granularity {granularity!r}; known are 'tensor', 'channel', 'group:N', 'channels:N'"
    )
