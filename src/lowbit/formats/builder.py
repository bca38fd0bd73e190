"""What every ONNX writer needs: collecting nodes and initializers, and the operators that are the same in each."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

from lowbit.integer.ir import ChannelShuffle, Convolution, Graph

_IR_VERSIONS = {13: 7, 21: 10, 25: 13}
"""The lowest file version an opset may be in: older runtimes refuse newer ones."""


@dataclass
class Builder:
    """Collects ONNX nodes and initializers; `done` makes the checked model.

    packed: store weights of at most 4 bits as INT2 or INT4 tensors.
    """

    graph: Graph
    packed: bool = False
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    dequantized: dict[str, str] = field(default_factory=dict)

    def add(self, operator: str, inputs: list[str], output: str, **attributes) -> str:
        """Append a node and return the name of its output."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}:{operator}", **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        """An initializer, stored once by name."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def packed_constant(self, name: str, codes: np.ndarray, bits: int) -> str:
        """An INT2 or INT4 initializer: the first code in the lowest bits of each byte, as ONNX orders them."""
        kind, per_byte = (TensorProto.INT2, 4) if bits == 2 else (TensorProto.INT4, 2)
        flat = codes.flatten().astype(np.uint8) & np.uint8((1 << bits) - 1)
        places = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
        raw = (places << (np.arange(per_byte, dtype=np.uint8) * np.uint8(bits))).sum(1, dtype=np.uint8)
        self.initializers[name] = helper.make_tensor(name, kind, codes.shape, raw.tobytes(), raw=True)
        return name

    def done(self, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto], domains: dict[str, int]) -> ModelProto:
        """The model, after onnx's full checker."""
        graph = helper.make_graph(self.nodes, "lowbit", inputs, outputs, list(self.initializers.values()))
        model = helper.make_model(
            graph,
            producer_name="lowbit",
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in domains.items()],
        )
        model.ir_version = _IR_VERSIONS[domains[""]]
        checker.check_model(model, full_check=True)
        return model


def pads(padding: tuple[tuple[int, int], ...]) -> list[int]:
    """Padding in ONNX's order: all befores, all afters."""
    return [before for before, _ in padding] + [after for _, after in padding]


def conv_attributes(node: Convolution) -> dict:
    """Attributes of a Conv or ConvInteger."""
    return {
        "kernel_shape": list(node.weight.codes.shape[2:]),
        "strides": list(node.stride),
        "pads": pads(node.padding),
        "dilations": list(node.dilation),
        "group": node.groups,
    }


def integers(builder: Builder, name: str, values: list[int]) -> str:
    """An INT64 initializer."""
    return builder.constant(name, np.array(values, np.int64))


def write_shuffle(builder: Builder, node: ChannelShuffle, shape: tuple[int, ...]) -> None:
    """Reshape, Transpose, Reshape."""
    channels, *space = shape
    split = integers(builder, f"{node.name}:groups", [-1, node.groups, channels // node.groups, *space])
    whole = integers(builder, f"{node.name}:shape", [-1, channels, *space])
    grouped = builder.add("Reshape", [node.inputs[0], split], f"{node.name}:grouped")
    order = [0, 2, 1, *range(3, 3 + len(space))]
    shuffled = builder.add("Transpose", [grouped], f"{node.name}:shuffled", perm=order)
    builder.add("Reshape", [shuffled, whole], node.name)
