"""An exported QONNX file in ONNX Runtime, which knows no Quant.

Its nodes are written out as the operator's specification has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from lowbit.formats.onnx.runner import OnnxRunner
from lowbit.formats.qonnx import DOMAIN
from lowbit.integer.graph import Graph, TensorType


class QonnxRunner(OnnxRunner):
    """A QONNX file in ONNX Runtime's floats; arguments and errors as `OnnxRunner`."""

    element_type: ClassVar[int] = onnx.TensorProto.FLOAT

    def __init__(self, path: Path, graph: Graph) -> None:
        super().__init__(path, graph, optimize=False)

    def rewrite(self, model: onnx.ModelProto) -> None:
        write_out_quant(model)

    def codes(self, value: Tensor, kind: TensorType) -> Tensor:
        codes = value + kind.zero_point
        # A fraction taken away and added again is the code but for its last digits.
        return codes if kind.has_integer_zero_point else codes.round()


def write_out_quant(model: onnx.ModelProto) -> None:
    """Replace QONNX's Quant by rint(clip(x / s + z, lowest, highest)), minus z, times s; BipolarQuant by ±s."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        y, (x, scale, *grid) = node.output[0], node.input

        def add(operator: str, inputs: list[str], output: str) -> str:
            nodes.append(helper.make_node(operator, inputs, [output]))
            return output

        if node.op_type == "BipolarQuant":
            zero = numpy_helper.from_array(constants[scale] * 0, f"{y}:none")
            model.graph.initializer.append(zero)
            positive = add("GreaterOrEqual", [x, zero.name], f"{y}:positive")
            add("Where", [positive, scale, add("Neg", [scale], f"{y}:negative")], y)
            continue
        signed, narrow = (helper.get_node_attr_value(node, name) for name in ("signed", "narrow"))
        bits = int(constants[grid[1]])
        low, high = (-(1 << (bits - 1)) + narrow, (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1 - narrow)
        ends = [numpy_helper.from_array(constants[scale] * 0 + end, f"{y}:{end}") for end in (low, high)]
        model.graph.initializer.extend(ends)
        moved = add("Add", [add("Div", [x, scale], f"{y}:steps"), grid[0]], f"{y}:moved")
        codes = add("Round", [add("Clip", [moved, *(end.name for end in ends)], f"{y}:clipped")], f"{y}:codes")
        add("Mul", [add("Sub", [codes, grid[0]], f"{y}:centred"), scale], y)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
