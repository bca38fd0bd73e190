"""LiteRT: where the windows of convolutions lie, and in which order their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Operator
from ai_edge_litert.schema_py_generated import Padding

from lowbit.formats.litert.builder import Builder, plane
from lowbit.formats.xnnpack import FoldedLayer
from lowbit.integer.graph import Node


def is_depthwise(layer: FoldedLayer) -> bool:
    """Whether each group of channels has one input."""
    return layer.groups > 1 and layer.codes.shape[1] == 1


def weight_codes(layer: FoldedLayer) -> np.ndarray:
    """In the order of axes of the layer's operator: (out, in), (out, H, W, in), or depthwise (1, H, W, out)."""
    codes = layer.codes.numpy()
    if codes.ndim == 2:
        return codes
    codes = codes.reshape(*codes.shape[:2], *plane(codes.shape[2:], 1))
    return codes.transpose(1, 2, 3, 0) if is_depthwise(layer) else codes.transpose(0, 2, 3, 1)


def window(builder: Builder, node: Node, layer: FoldedLayer, x: int) -> tuple[int, int, int, object]:
    """(operator, padded input, the weight's axis of output channels, options) of a layer of x."""
    if layer.codes.ndim == 2:
        return Operator.FULLY_CONNECTED, x, 0, schema.FullyConnectedOptionsT()
    kernel, pads = plane(layer.codes.shape[2:], 1), plane(layer.padding, (0, 0))
    stride, dilation, padding = plane(layer.stride, 1), plane(layer.dilation, 1), Padding.VALID
    if any(map(any, pads)):
        if pads == _same(builder.shape(x)[:2], kernel, stride, dilation):
            padding = Padding.SAME
        else:
            x = builder.padded(node, x, tuple(pads))
    # The schema's fields put width before height.
    how = {"padding": padding, "strideW": stride[1], "strideH": stride[0]}
    how |= {"dilationWFactor": dilation[1], "dilationHFactor": dilation[0]}
    if is_depthwise(layer):
        options = schema.DepthwiseConv2DOptionsT(depthMultiplier=len(layer.codes) // layer.groups, **how)
        return Operator.DEPTHWISE_CONV_2D, x, 3, options
    return Operator.CONV_2D, x, 0, schema.Conv2DOptionsT(**how)


def _same(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list:
    """(before, after) per dimension of what LiteRT calls SAME."""
    pads = []
    for n, k, s, d in zip(size, kernel, stride, dilation):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        pads.append((total // 2, total - total // 2))
    return pads
