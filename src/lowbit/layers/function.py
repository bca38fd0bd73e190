"""Convolutions and linear layers that forward computes as functions, with a weight that is not a layer's own.

Weight standardization, weights shared by hand, nn.MultiheadAttention's projections: the weight is a parameter of the
network or computed of its parameters. What is quantized is the weight that is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.errors import LowbitError
from lowbit.layers.product import product
from lowbit.layers.quantized import new_quantizers
from lowbit.layers.rules import Setting
from lowbit.quantizer.module import Quantizer

_LAYERS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear, "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d,
}  # fmt: skip
FUNCTIONS = {getattr(F, name): name for name in _LAYERS}
"""The functions that have a quantized form, and their names."""


class QuantizedFunction(nn.Module):
    """y = function(x̂, ŵ, b): a convolution or linear layer whose weight forward makes.

    Args:
        function: a name in `FUNCTIONS`.
        shape: of the weight.
        options: stride, padding, dilation and groups of a convolution.
        setting: how it is quantized.
        name: for messages.

    Raises:
        LowbitError: a side that is left in full precision, or a granularity that the weight does not have.
    """

    input_quantizer: Quantizer
    parameter_quantizer: Quantizer
    # In an integer-only network a function of the layer's step and the bias, which gives it on the accumulator's grid.
    bias_rounding: Callable[[Any, Tensor, Tensor], Tensor] | None = None

    def __init__(
        self, function: str, shape: tuple[int, ...], options: Mapping[str, Any], setting: Setting, name: str
    ) -> None:
        super().__init__()
        if setting.accumulator_bits is not None:
            raise LowbitError(
                f"{name!r}: accumulator_bits bounds layers with a weight of their own, not functions: leave it out "
                f"with lowbit.Rule({name!r}, accumulator_bits=None)"
            )
        self.function, self.options, self.shape = function, dict(options), shape
        if setting.skip or setting.weights is None or setting.activations is None:
            raise LowbitError(f"{name!r} must have bits: an integer-only network has no float tensors")
        # pyrefly: ignore[bad-assignment]  # with bits on both sides both are quantizers
        self.parameter_quantizer, self.input_quantizer = new_quantizers(name, self.as_layer(), setting)

    def as_layer(self) -> nn.Module:
        """A plain layer that computes the same with a weight of its own, without data."""
        out, groups = self.shape[0], self.options.get("groups", 1)
        size = (self.shape[1] * groups, out)
        with torch.device("meta"):
            if self.function == "linear":
                return nn.Linear(*size)
            return _LAYERS[self.function](*size, self.shape[2:], **self.options)

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x_hat, w_hat = self.input_quantizer(input), self.parameter_quantizer(weight)
        if bias is not None and self.bias_rounding is not None and getattr(self.input_quantizer, "initialized", False):
            bias = self.bias_rounding(self, weight, bias)
        return product(self._compute, x_hat, w_hat, bias)

    def _compute(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return getattr(F, self.function)(x, w, bias, **self.options)

    def extra_repr(self) -> str:
        return f"{self.function}, weight {self.shape}" + "".join(
            f", {key}={value}" for key, value in self.options.items()
        )
