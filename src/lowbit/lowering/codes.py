"""Codes of the trained network: of its weights, of its activations, and the grids they lie on."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import TensorType
from lowbit.layers.quantized import QuantizedLayer
from lowbit.quantizer.module import Quantizer, as_quantizer


def weight_codes(layer: QuantizedLayer) -> Tensor:
    """The weight's codes, int8 in its own shape, on the CPU."""
    return as_quantizer(layer.weight_quantizer).codes(layer.quantized_from()).to(torch.int8).cpu()


def activation_codes(quantizer: Quantizer, x: Tensor) -> Tensor:
    """The codes of the tensor x, int32."""
    return quantizer.codes(x)


def type_of(quantizer: Quantizer) -> TensorType:
    """The grid of an activation's quantizer, as the type of a tensor of the integer graph."""
    if quantizer.raw_step.numel() != 1:
        raise LowbitError(f"{quantizer.name} has several steps; activations of an integer network have one")
    grid = quantizer.grid
    assert grid is not None  # `check_quantizers`
    zero_point = float(quantizer.zero_point)
    if quantizer.integer_zero_point:
        zero_point = int(zero_point)
    return TensorType(float(quantizer.step.item()), zero_point, grid.bits, grid.signed, grid.narrow)
