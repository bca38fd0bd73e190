"""timm's convolutions with a forward of their own: padding as TensorFlow's "SAME" has it, and standardized weights.

A layer whose weight is a function of its parameters quantizes the weight that it computes with. What the functions are:

    StdConv2d           (w − μ) / sqrt(σ² + ε)                        μ, σ² of each output channel's weights
    ScaledStdConv2d     gain · γ / sqrt(inputs) · (w − μ) / sqrt(σ² + ε)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SamePadding:
    """Zeros around the input, so that there are ⌈size / stride⌉ results along each dimension.

    The odd one comes last.
    """

    if TYPE_CHECKING:
        kernel_size: tuple[int, ...]
        stride: tuple[int, ...]
        dilation: tuple[int, ...]
        padding: tuple[int, ...] | str

    def pads(self, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """(before, after) per spatial dimension, for an input of these sizes."""
        if not getattr(self, "same_pad", True):  # a layer whose padding does not depend on the input
            assert not isinstance(self.padding, str)
            return tuple((p, p) for p in self.padding)
        found = []
        for size, kernel, stride, dilation in zip(sizes, self.kernel_size, self.stride, self.dilation):
            total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
            found.append((total // 2, total - total // 2))
        return tuple(found)

    def compute(self, x: Tensor, w: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        if getattr(self, "same_pad", True):
            x = F.pad(x, [size for pair in reversed(self.pads(x.shape[2:])) for size in pair])
        return super().compute(x, w, bias, *options)  # pyrefly: ignore[missing-attribute]  # mixed into a quantized layer


class Standardized:
    """A weight that is standardized, and scaled by a gain where the layer has one."""

    if TYPE_CHECKING:
        weight: Tensor
        eps: float

    def used_weight(self) -> Tensor:
        """The weight that the layer computes with, and that is quantized."""
        axes = tuple(range(1, self.weight.dim()))
        variance, mean = torch.var_mean(self.weight, axes, correction=0, keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance + self.eps)
        gain = getattr(self, "gain", None)
        return weight if gain is None else weight * (gain * self.scale)  # pyrefly: ignore[missing-attribute]  # with a gain


FORMS: dict[str, tuple[type, ...]] = {
    "timm.layers.conv2d_same.Conv2dSame": (SamePadding,),
    "timm.layers.std_conv.StdConv2d": (Standardized,),
    "timm.layers.std_conv.StdConv2dSame": (SamePadding, Standardized),
    "timm.layers.std_conv.ScaledStdConv2d": (Standardized,),
    "timm.layers.std_conv.ScaledStdConv2dSame": (SamePadding, Standardized),
}
"""By class: what its prepared form has beside the quantized layer's own."""


def forms_of(cls: type[nn.Module]) -> tuple[type, ...]:
    """What the prepared form of a class has beside; nothing for any other class."""
    return FORMS.get(f"{cls.__module__}.{cls.__name__}", ())
