"""An exported ONNX file in ONNX Runtime on the CPU, with every tensor of codes readable by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import onnx
import onnxruntime as runtime
import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.formats.registry import not_this_network
from lowbit.integer.graph import Graph, TensorType
from lowbit.integer.result import Result


class OnnxRunner:
    """An ONNX or packed ONNX file in ONNX Runtime.

    Args:
        path: the file.
        graph: the network that it was written from.
        optimize: ONNX Runtime's graph optimizations; without them it computes in floats.

    Raises:
        LowbitError: the file can't be read, or is not one of this network.
    """

    element_type: ClassVar[int] = onnx.TensorProto.UINT8
    """Of the tensors that hold codes."""
    wide_type: ClassVar[int] = onnx.TensorProto.UINT16
    """Of those that hold codes of more than 8 bits."""

    def __init__(self, path: Path, graph: Graph, *, optimize: bool = True) -> None:
        self.graph, self.path = graph, path
        try:
            model = onnx.load(path)
        except Exception as error:  # protobuf and onnx raise many types for a file that is none of theirs
            raise LowbitError(f"{path}: cannot be read as ONNX: {error!s:.200}") from error
        made = {name for node in model.graph.node for name in node.output}
        self.names = [node.name for node in graph.nodes if isinstance(node.type, TensorType)]
        missing = [name for name in self.names if name not in made]
        if missing:
            raise not_this_network(path, f"it has no tensor {missing[0]!r}")
        self.results = [f"{name}:real" if name in self.names else name for name in graph.outputs]
        inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
        if inputs != list(graph.inputs) or outputs != self.results:
            raise not_this_network(path, f"it has the inputs {inputs} and the outputs {outputs}")
        self.rewrite(model)
        for name in self.names:
            if name not in self.results:
                kind = self.element_type if graph.by_name[name].codes_of().bits <= 8 else self.wide_type
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if not optimize:
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exception types have no common base of their own
            raise LowbitError(f"{path}: ONNX Runtime cannot load it: {error!s:.300}") from error

    def rewrite(self, model: onnx.ModelProto) -> None:
        """Change what ONNX Runtime does not know, in place: here nothing."""

    def codes(self, value: Tensor, kind: TensorType) -> Tensor:
        """The codes that a tensor of the file stands for."""
        return value.to(torch.int16 if kind.bits <= 8 else torch.int32).sub_(kind.carrier_offset)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Result:
        """Every tensor of codes (int16, wider ones int32), and the float32 outputs.

        Raises LowbitError where ONNX Runtime can't run it.
        """
        wanted = [*self.results, *self.names]
        try:
            values = self.session.run(wanted, {name: x.numpy() for name, x in inputs.items()})
        except Exception as error:
            raise LowbitError(f"{self.path}: ONNX Runtime cannot run it: {error!s:.300}") from error
        found = dict(zip(wanted, map(torch.from_numpy, values)))
        codes = {name: self.codes(found[name], self.graph.by_name[name].codes_of()) for name in self.names}
        return Result(codes, {output: found[name] for output, name in zip(self.graph.outputs, self.results)})
