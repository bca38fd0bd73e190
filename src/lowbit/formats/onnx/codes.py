"""What the operations' ONNX forms share: codes as unsigned bytes, and the way between them and floats."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.formats.onnx.builder import Builder, operands
from lowbit.formats.registry import Lowerings
from lowbit.integer.graph import Node, TensorType

LOWERINGS = Lowerings("ONNX")


def carrier(kind: TensorType) -> type[np.uint8] | type[np.uint16]:
    """What holds codes: bytes, or for 16 bits words.

    Raises LowbitError for what is between, which no operator clips to.
    """
    if 8 < kind.bits < 16:
        raise LowbitError(f"ONNX holds codes of up to 8 bits, and of 16, not of {kind.bits}")
    return np.uint8 if kind.bits <= 8 else np.uint16


def zero_byte(kind: TensorType) -> np.uint8 | np.uint16:
    """The byte of the real 0, or the word."""
    return carrier(kind)(int(kind.zero_point) + kind.carrier_offset)


def grid(builder: Builder, name: str, kind: TensorType) -> list[str]:
    """Names of scale and zero point of a tensor of codes."""
    scale = builder.constant(f"{name}:scale", np.float32(kind.scale))
    return [scale, builder.constant(f"{name}:zero_point", zero_byte(kind))]


def dequantize(builder: Builder, name: str, tensor: str | None = None) -> str:
    """The float tensor of a node's codes, or of a tensor that holds them in another shape."""
    tensor = name if tensor is None else tensor
    if tensor not in builder.dequantized:
        inputs = [tensor, *grid(builder, name, builder.graph.by_name[name].codes_of())]
        builder.dequantized[tensor] = builder.add("DequantizeLinear", inputs, f"{tensor}:real")
    return builder.dequantized[tensor]


def reals(builder: Builder, node: Node) -> list[str]:
    """The float tensors of a node's inputs, with equal numbers of dimensions."""
    return [dequantize(builder, *pair) for pair in zip(node.inputs, operands(builder, node))]


def steps(builder: Builder, name: str, tensor: str | None = None, scale: float = 1.0) -> str:
    """As `dequantize`, but the float tensor of f(scale · (q − z)): whole numbers, for a scale of 1."""
    tensor, suffix = name if tensor is None else tensor, "steps" if scale == 1 else f"steps{scale:g}"
    key = f"{tensor}:{suffix}"
    if key not in builder.dequantized:
        factor = builder.constant(":one" if scale == 1 else f":factor{scale:g}", np.float32(scale))
        zero = builder.constant(f"{name}:zero_point", zero_byte(builder.graph.by_name[name].codes_of()))
        builder.dequantized[key] = builder.add("DequantizeLinear", [tensor, factor, zero], key)
    return key


def quantize(builder: Builder, real: str, node: Node) -> None:
    """The node's codes from a float tensor of real values: QuantizeLinear, and `clip`."""
    _quantize(builder, real, node, grid(builder, node.name, node.codes_of())[0])


def quantize_steps(builder: Builder, steps: str, node: Node) -> None:
    """The node's codes clip(rint(steps) + z) from a float tensor."""
    _quantize(builder, steps, node, builder.constant(":one", np.float32(1)))


def _quantize(builder: Builder, real: str, node: Node, scale: str) -> None:
    zero = builder.constant(f"{node.name}:zero_point", zero_byte(node.codes_of()))
    clip(builder, node, "QuantizeLinear", [real, scale, zero])


def clip(builder: Builder, node: Node, operator: str, inputs: list[str]) -> None:
    """An operator that makes the node's bytes, and Clip where the codes use only a part of the byte."""
    y = node.codes_of()
    low, high = y.qn + y.carrier_offset, y.qp + y.carrier_offset
    if (low, high) == (0, np.iinfo(carrier(y)).max):
        builder.add(operator, inputs, node.name)
        return
    if y.bits > 8:
        raise LowbitError(f"node {node.name!r}: ONNX holds narrow codes of up to 8 bits, not of {y.bits}")
    byte = builder.add(operator, inputs, f"{node.name}:byte")
    ends = [builder.constant(f":{end}", np.uint8(end)) for end in (low, high)]
    builder.add("Clip", [byte, *ends], node.name)


def accumulated(builder: Builder, steps: str, multiplier: Tensor, node: Node) -> None:
    """The node's codes from a float tensor of its accumulator.

    Its factor is no scalar, which ONNX Runtime would move into a MatMul that makes the accumulator.
    """
    factor = builder.factor(f"{node.name}:multiplier", multiplier.numpy(), len(node.shape_of()) + 1)
    quantize_steps(builder, builder.add("Mul", [steps, factor], f"{node.name}:scaled"), node)
