"""The product of quantized input and weight, holding for the backward pass what the float layer would hold.

Autograd keeps the operands of a convolution or matrix product. Here these are x̂ and ŵ, tensors beside x and w, which the
quantizers keep: twice the memory. `product` keeps x and w alone and computes x̂ and ŵ again, as the quantizers would, so
that the gradients are the same bits. Quantizing is a part of it, one node of the graph instead of three, unless others
take x̂ too or look at it. A compiled network gets the same from the compiler (`Quantizer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.quantizer.fake_quantize import Fixed, Parameters, gradients_with, quantize_with
from lowbit.quantizer.module import Quantizer


class Operation(Protocol):
    """A product that is linear in both operands, and its gradients."""

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor: ...

    def backward(
        self, gradient: Tensor, x: Tensor, w: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x, w and bias, None where not wanted."""


class Linear:
    """y = x·wᵀ + b: [..., in] to [..., out]."""

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, w, bias)

    def backward(self, gradient, x, w, wanted):
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            gradient @ w if wanted[0] else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )


class Convolution:
    """A convolution in one to three dimensions, or its transpose, padded with zeros."""

    def __init__(self, layer: nn.Module, output_padding: Sequence[int] | None = None) -> None:
        self.layer, self.output_padding = layer, output_padding

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        of, spatial = self.layer, len(self.layer.kernel_size)
        if self.output_padding is None:
            convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[spatial]
            return convolve(x, w, bias, of.stride, of.padding, of.dilation, of.groups)
        convolve = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[spatial]
        return convolve(x, w, bias, of.stride, of.padding, self.output_padding, of.groups, of.dilation)

    def backward(self, gradient, x, w, wanted):
        of, transposed = self.layer, self.output_padding is not None
        output_padding = self.output_padding if transposed else [0] * len(of.kernel_size)
        how = (of.stride, of.padding, of.dilation, transposed, output_padding, of.groups)
        return torch.ops.aten.convolution_backward(gradient, x, w, [of.out_channels], *how, list(wanted))


def product(operation: Operation, x: Tensor, layer: nn.Module, bias: Tensor | None) -> Tensor:
    """operation(x̂, ŵ, bias) for a prepared layer."""
    input_quantizer, weight_quantizer, w = layer.input_quantizer, layer.weight_quantizer, layer.weight
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return operation.forward(input_quantizer(x), weight_quantizer(w), bias)
    operands, tensors = zip(_operand(input_quantizer, x), _operand(weight_quantizer, w))
    return _Product.apply(operation, operands, bias, *tensors[0], *tensors[1])


# What an operand brings to the autograd function: a tensor, and a quantizer's parameters or something in their place.
_TENSORS = 1 + len(Parameters._fields)


class _Inside:
    """An operand that is quantized by the product itself; its tensors are the quantizer's input and parameters."""

    def __init__(self, fixed: Fixed, shape: torch.Size) -> None:
        self.fixed, self.shape = fixed, shape

    def kept(self, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        return tensors

    def quantized(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        return quantize_with(x, Parameters(*parameters), self.fixed).reshape(self.shape)

    again = quantized

    def bounded(self, x: Tensor, *parameters: Tensor | None) -> Sequence[Tensor | None]:
        return x, *Parameters(*parameters).bounded()

    def gradients(
        self, gradient: Tensor, wanted: Sequence[bool], x: Tensor, *parameters: Tensor | None
    ) -> Sequence[Tensor | None]:
        return gradients_with(x, Parameters(*parameters), self.fixed, gradient.reshape(x.shape), wanted)


class _Outside:
    """An operand that comes quantized; its tensors are x̂, and x and what was learned to compute x̂ again."""

    def __init__(self, quantizer: nn.Module) -> None:
        self.quantizer = quantizer

    def kept(self, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        return None, *tensors[1:]

    def quantized(self, x_hat: Tensor, *_) -> Tensor:
        return x_hat

    def again(self, _, x: Tensor, *learned: Tensor | None) -> Tensor:
        # What was learned is only kept so that a change before the backward pass is noticed, as one of x is.
        return self.quantizer.quantize(x) if isinstance(self.quantizer, Quantizer) else x

    def bounded(self, *tensors: Tensor | None) -> Sequence[Tensor | None]:
        return tensors

    def gradients(self, gradient: Tensor, *_) -> Sequence[Tensor | None]:
        return gradient, *[None] * (_TENSORS - 1)


def _operand(quantizer: nn.Module, x: Tensor) -> tuple[_Inside | _Outside, tuple[Tensor | None, ...]]:
    """How the product gets its operand, and the `_TENSORS` for it."""
    if isinstance(quantizer, Quantizer) and quantizer.alone:
        argument, parameters, fixed = quantizer.arguments(x)
        return _Inside(fixed, x.shape), (argument, *parameters)
    learned = (quantizer.raw_step, quantizer.offset) if isinstance(quantizer, Quantizer) else ()
    tensors = (quantizer(x), x, *learned)
    return _Outside(quantizer), (*tensors, *[None] * (_TENSORS - len(tensors)))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, operation, operands, bias, *tensors):
        ctx.operation, ctx.operands = operation, operands
        parts = tensors[:_TENSORS], tensors[_TENSORS:]
        ctx.save_for_backward(*operands[0].kept(parts[0]), *operands[1].kept(parts[1]))
        x_hat, w_hat = (operand.quantized(*part) for operand, part in zip(operands, parts))
        return operation.forward(x_hat, w_hat, bias)

    @staticmethod
    def backward(ctx, gradient):
        kept, (_, _, wants_bias, *wanted) = ctx.saved_tensors, ctx.needs_input_grad
        parts, wanted = ((each[:_TENSORS], each[_TENSORS:]) for each in (kept, wanted))
        if not torch.is_grad_enabled():  # else the step's gradient has to find its way to the parameter
            parts = tuple(operand.bounded(*part) for operand, part in zip(ctx.operands, parts))
        # Under autocast the product was computed in the gradient's type.
        x_hat, w_hat = (operand.again(*part).to(gradient.dtype) for operand, part in zip(ctx.operands, parts))
        grad_x, grad_w, grad_bias = ctx.operation.backward(
            gradient, x_hat, w_hat, (any(wanted[0]), any(wanted[1]), wants_bias)
        )
        del x_hat, w_hat
        found = [
            operand.gradients(each, want, *part) if any(want) else [None] * _TENSORS
            for operand, each, want, part in zip(ctx.operands, (grad_x, grad_w), wanted, parts)
        ]
        return None, None, grad_bias, *found[0], *found[1]
