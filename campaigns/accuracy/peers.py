"""ResNet-8 with the quantizers of others, from the weights in full precision that our own rows start from.

A network is a function of this module named LIBRARY_BITS, such as `torch_2`. As in our rows, weights and inputs of convolutions and of
the linear layer are quantized, one step a tensor, the first and the last layer at 8 bits; only the first one's input is signed.

brevitas    Brevitas' Int8WeightPerTensorFloatMSE and Uint8ActPerTensorFloatMSE, the scales of both learned, from the least squared error,
            that of activations over the first 20 batches. From its other quantizers' maximum and percentile, training at two bits
            stays near chance. Its grid for weights has as many levels below zero as above: three at two bits.
torch       The operator of `torch.ao.quantization._learnable_fake_quantize`, symmetric for weights, gradients scaled as there
            (`use_grad_scaling`). Scales start by LSQ's rule, 2·mean|x|/√Qp, at the first batch of training: the operator is about how
            they learn. From the minimum and maximum, as its module's observer has it, training at two bits starts at chance.
lsq-net     The formulas of github.com/zhutmost/lsq-net: LSQ's step gradient with 1/√(N·Qp), N of an activation all of its batch's
            numbers; its step begins at 1, that of a weight by LSQ's rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from campaigns.accuracy import results
from lowbit import models
from lowbit.grid import Grid

START = "fp/resnet8-fp-30ep-s0"
_FIRST, _LAST = "stem.0", "linear"


class _Torch(nn.Module):
    """A tensor of one scale, by torch's learnable operator."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.scale = nn.Parameter(torch.full((1,), torch.nan))  # until the first batch
        self.zero_point = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:  # before training, in evaluation mode, a run tries an image of zeros
            with torch.no_grad():
                first = 2 * x.abs().mean() / math.sqrt(self.high)
                begun = torch.where(self.scale.isnan(), first, self.scale)
                self.scale.copy_(begun.clamp(min=torch.finfo(torch.float32).eps))
        factor = 1 / math.sqrt(x.numel() * self.high)
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, self.scale, self.zero_point, self.low, self.high, factor
        )


class _LsqNet(nn.Module):
    """A tensor of one step, by lsq-net's formulas."""

    def __init__(self, low: int, high: int, weight: Tensor | None = None) -> None:
        super().__init__()
        self.low, self.high = low, high
        start = torch.ones(1) if weight is None else weight.detach().abs().mean().reshape(1) * 2 / math.sqrt(high)
        self.s = nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        factor = 1 / math.sqrt(x.numel() * self.high)
        s = (self.s - self.s * factor).detach() + self.s * factor
        x = (x / s).clamp(self.low, self.high)
        return ((x.round() - x).detach() + x) * s


class _Quantized(nn.Module):
    """A layer whose input and weight are quantized."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, of_input: nn.Module, of_weight: nn.Module) -> None:
        super().__init__()
        self.layer, self.of_input, self.of_weight = layer, of_input, of_weight

    def forward(self, x: Tensor) -> Tensor:
        x, w, layer = self.of_input(x), self.of_weight(self.layer.weight), self.layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, w, layer.bias)
        return F.conv2d(x, w, layer.bias, layer.stride, layer.padding)


def _bounds(bits: int, signed: bool) -> tuple[int, int]:
    grid = Grid(bits, signed=signed)
    return grid.qn, grid.qp


def _torch(layer: Any, bits: int, signed: bool) -> nn.Module:
    return _Quantized(layer, _Torch(*_bounds(bits, signed)), _Torch(*_bounds(bits, True)))


def _lsq_net(layer: Any, bits: int, signed: bool) -> nn.Module:
    return _Quantized(layer, _LsqNet(*_bounds(bits, signed)), _LsqNet(*_bounds(bits, True), layer.weight))


def _brevitas(layer: Any, bits: int, signed: bool) -> nn.Module:
    from brevitas import nn as qnn
    from brevitas.quant import Int8ActPerTensorFloatMSE, Int8WeightPerTensorFloatMSE, Uint8ActPerTensorFloatMSE

    options = dict(
        bias=layer.bias is not None,
        weight_quant=Int8WeightPerTensorFloatMSE,
        weight_bit_width=bits,
        weight_scaling_impl_type="parameter_from_stats",
        input_quant=Int8ActPerTensorFloatMSE if signed else Uint8ActPerTensorFloatMSE,
        input_bit_width=bits,
        input_collect_stats_steps=20,
    )
    if isinstance(layer, nn.Linear):
        made = qnn.QuantLinear(layer.in_features, layer.out_features, **options)
    else:
        made = qnn.QuantConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size[0],
            stride=layer.stride,
            padding=layer.padding,
            **options,
        )
    with torch.no_grad():
        made.weight.copy_(layer.weight)
        if layer.bias is not None:
            made.bias.copy_(layer.bias)
    return made


LIBRARIES = {"brevitas": _brevitas, "torch": _torch, "lsq-net": _lsq_net}
"""What makes a layer of bits out of one in full precision, by library."""


def _network(make: Callable[[Any, int, bool], nn.Module], bits: int, num_classes: int = 10) -> nn.Module:
    model = models.create("resnet8", num_classes=num_classes)
    models.load_weights(model, results.weights_file(results.FOLDER, START))
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for name, layer in layers:
        parent, _, child = name.rpartition(".")
        signed = name == _FIRST
        made = make(layer, 8 if name in (_FIRST, _LAST) else bits, signed)
        setattr(model.get_submodule(parent), child, made)
    # Brevitas decides in Python, step by step, what to do with its statistics, and leaves scales out of a state until they have begun.
    model.replayable = make is not _brevitas
    model.register_state_dict_post_hook(_with_all_parameters)
    return model


def _with_all_parameters(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name, parameter in model.named_parameters():
        state.setdefault(prefix + name, parameter.detach())


def name_of(library: str, bits: int) -> str:
    """The network, as a config names it."""
    return f"{__name__}:{library.replace('-', '_')}_{bits}"


def __getattr__(name: str) -> Callable[..., nn.Module]:
    library, _, bits = name.rpartition("_")
    make = LIBRARIES.get(library.replace("_", "-"))
    if make is None:
        raise AttributeError(name)
    return partial(_network, make, int(bits))
