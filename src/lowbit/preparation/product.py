"""The product of quantized input and weight, holding for the backward pass what the float layer would hold.

Autograd keeps the operands of a convolution or matrix product. Here these are x̂ and ŵ, tensors beside x and w, which the
quantizers keep: twice the memory. `product` keeps x and w alone and computes x̂ and ŵ again, by the quantizers themselves,
so that the gradients are the same bits. A compiled network gets the same from the compiler (`Quantizer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    x_hat, w_hat = layer.input_quantizer(x), layer.weight_quantizer(layer.weight)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return operation.forward(x_hat, w_hat, bias)
    learned = [
        parameter
        for quantizer in (layer.input_quantizer, layer.weight_quantizer)
        if isinstance(quantizer, Quantizer)
        for parameter in (quantizer.raw_step, quantizer.offset)
    ]
    return _Product.apply(x_hat, w_hat, bias, x, layer.weight, operation, layer, *learned)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_hat, w_hat, bias, x, w, operation, layer, *learned):
        y = operation.forward(x_hat, w_hat, bias)
        # What was learned is only kept so that a change before the backward pass is noticed, as one of x or w is.
        ctx.save_for_backward(x, w, *learned)
        ctx.operation, ctx.layer = operation, layer
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, w, *_ = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        # Under autocast the product was computed in the gradient's type.
        x_hat = _again(ctx.layer.input_quantizer, x).to(gradient.dtype)
        w_hat = _again(ctx.layer.weight_quantizer, w).to(gradient.dtype)
        grad_x, grad_w, grad_bias = ctx.operation.backward(gradient, x_hat, w_hat, wanted)
        return grad_x, grad_w, grad_bias, *[None] * (len(ctx.needs_input_grad) - 3)


def _again(quantizer: nn.Module, x: Tensor) -> Tensor:
    return quantizer.quantize(x) if isinstance(quantizer, Quantizer) else x
