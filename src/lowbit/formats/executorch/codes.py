"""What the operations' ExecuTorch forms share: codes as signed bytes, and the way between them and floats."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.formats.registry import Lowerings
from lowbit.formats.xnnpack import zero_byte
from lowbit.integer.graph import TensorType

LOWERINGS = Lowerings("ExecuTorch")
"""Functions of a node and its inputs' types that return the `Step` of the node."""

decomposed = torch.ops.quantized_decomposed  # a namespace, filled when executorch is imported


class Step(nn.Module):
    """One node: a function of its input tensors and its constants."""

    def __init__(self, function: Callable[..., Tensor], **constants: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in constants.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, **dict(self.named_buffers()))


def steps_of(carrier: Tensor, kind: TensorType) -> Tensor:
    """code − zero_point as float32."""
    return decomposed.dequantize_per_tensor(carrier, 1.0, zero_byte(kind), -128, 127, torch.int8)


def bytes_of(steps: Tensor, y: TensorType) -> Tensor:
    """The signed byte of clip(rint(steps) + z_y)."""
    if (y.qn, y.qp) != (-y.carrier_offset, 255 - y.carrier_offset):
        steps = F.hardtanh(steps, float(y.qn - y.zero_point), float(y.qp - y.zero_point))
    return decomposed.quantize_per_tensor(steps, 1.0, zero_byte(y), -128, 127, torch.int8)
