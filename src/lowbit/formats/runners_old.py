"""Exported files in their own runtimes, with every tensor of codes that they show readable by name."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.file import load
from lowbit.integer.ir import Graph, TensorType
from lowbit.integer.network import dequantize
from lowbit.integer.run import run

_QONNX = "qonnx.custom_op.general"

Runner = Callable[[Tensor], dict[str, Tensor]]
"""From a float32 input to the codes by name, as int16 on the graph's grids, and under "" the float32 output."""


def open_file(path: str | os.PathLike, graph: Graph, *, optimize: bool = True) -> Runner:
    """The file in the runtime it was written for, told by its first bytes: LiteRT, ExecuTorch, lowbit's own, else ONNX Runtime.

    Raises LowbitError where the runtime is not installed or the file is not one of this network.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise LowbitError(f"{path}: cannot be read: {error.strerror}") from error
    if start[4:8] == b"TFL3":
        return LitertRunner(path, graph)
    if start[4:6] == b"ET":
        return ExecutorchRunner(path, graph)
    if start[8:] == b"{":
        return OwnRunner(path, graph)
    return OnnxRunner(path, graph, optimize=optimize)


def _missing(error: ImportError, extra: str) -> LowbitError:
    return LowbitError(
        f"an exported file is checked in its own runtime, and {error.name} is not installed: "
        f"pip install 'lowbit[{extra}]'"
    )


def _not_this_network(path: Path, what: str) -> LowbitError:
    return LowbitError(f"{path}: was not exported from this network: {what}; export it again")


class OnnxRunner:
    """An exported ONNX, packed ONNX or QONNX file in ONNX Runtime on the CPU.

    ONNX Runtime knows no Quant: a QONNX file's are written out as float operators, as the operator's specification has them.

    path: the file. graph: the network it was written from. optimize: ONNX Runtime's graph optimizations; without them it
    computes in floats.

    Raises LowbitError where onnx or onnxruntime is not installed, or the file is not one of this network.
    """

    def __init__(self, path: str | os.PathLike, graph: Graph, *, optimize: bool = True) -> None:
        try:
            import onnx
            import onnxruntime as runtime
        except ImportError as error:
            raise _missing(error, "export") from error
        self.graph, self.path = graph, Path(path)
        try:
            model = onnx.load(self.path)
        except Exception as error:  # protobuf and onnx raise many types for a file that is none of theirs
            raise LowbitError(f"{path}: cannot be read as ONNX: {error!s:.200}") from error
        made = {name for node in model.graph.node for name in node.output}
        self.names = [node.name for node in graph.nodes if isinstance(node.type, TensorType)]
        missing = [name for name in self.names if name not in made]
        if missing or len(model.graph.input) != 1 or len(model.graph.output) != 1:
            what = f"it has no tensor {missing[0]!r}" if missing else "it has not one input and one output"
            raise _not_this_network(self.path, what)
        self.result = model.graph.output[0].name
        self.input = model.graph.input[0].name
        self.real = any(node.domain == _QONNX for node in model.graph.node)
        if self.real:
            _write_out_quant(model)
        kind = onnx.TensorProto.FLOAT if self.real else onnx.TensorProto.UINT8
        for name in self.names:
            if name != self.result:
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if self.real or not optimize:
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exception types have no common base of their own
            raise LowbitError(f"{path}: ONNX Runtime cannot load it: {error!s:.300}") from error

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Every code tensor as codes of the graph's grids (int16, or what stands in their place in a QONNX file, float32), and
        under "" the float32 result.
        """
        try:
            values = self.session.run([self.result, *self.names], {self.input: x.numpy()})
        except Exception as error:
            raise LowbitError(f"{self.path}: ONNX Runtime cannot run it: {error!s:.300}") from error
        found = {"": torch.from_numpy(values[0])}
        for name, value in zip(self.names, values[1:]):
            kind = self.graph.by_name[name].type
            if self.real:
                codes = torch.from_numpy(value) + kind.zero_point
                # A fraction taken away and added again is the code but for its last digits.
                found[name] = codes if kind.is_whole else codes.round()
            else:
                found[name] = torch.from_numpy(value).to(torch.int16) - kind.carrier_offset
        return found


def _write_out_quant(model: Any) -> None:
    """Replace QONNX's Quant by rint(clip(x / s + z, lowest, highest)), minus z, times s; BipolarQuant by ±s."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.domain != _QONNX:
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


class OwnRunner:
    """A file of `integer.file`, in the integer reference.

    Raises LowbitError where it can't be read or is not of this network.
    """

    def __init__(self, path: str | os.PathLike, graph: Graph) -> None:
        self.graph = load(path)
        shapes = {node.name: node.type.shape for node in self.graph.nodes}
        for node in graph.nodes:
            if shapes.get(node.name) != node.type.shape:
                raise _not_this_network(Path(path), f"it has no tensor {node.name!r} of shape {node.type.shape}")
        if (self.graph.output, self.graph.input_shape) != (graph.output, graph.input_shape):
            raise _not_this_network(Path(path), "its input or output is another")

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Every code tensor, and under "" the float32 result."""
        found = dict(run(self.graph, x))
        output = self.graph.output
        return found | {"": dequantize(found[output], self.graph.by_name[output].type)}


class LitertRunner:
    """An exported LiteRT file in LiteRT's interpreter with the XNNPACK delegate, which it applies by default.

    Raises LowbitError where ai-edge-litert is not installed, or the file is not one of this network.
    """

    def __init__(self, path: str | os.PathLike, graph: Graph) -> None:
        try:
            import flatbuffers
            from ai_edge_litert import schema_py_generated as schema
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise _missing(error, "litert") from error
        self.graph, self.path = graph, Path(path)
        self.names = [node.name for node in graph.nodes if isinstance(node.type, TensorType)]
        try:
            model = schema.ModelT.InitFromPackedBuf(self.path.read_bytes())
            (part,) = model.subgraphs
            places = {tensor.name.decode(): place for place, tensor in enumerate(part.tensors)}
            counts = len(part.inputs), len(part.outputs)
        except Exception as error:  # the generated reader raises whatever it stumbles over
            raise LowbitError(f"{path}: cannot be read as LiteRT: {error!s:.200}") from error
        missing = [name for name in self.names if name not in places]
        if missing or counts != (1, 1):
            what = f"it has no tensor {missing[0]!r}" if missing else "it has not one input and one output"
            raise _not_this_network(self.path, what)
        part.outputs = [*part.outputs, *(places[name] for name in self.names)]
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), b"TFL3")
        try:
            self.interpreter = Interpreter(model_content=bytes(builder.Output()))
        except Exception as error:
            raise LowbitError(f"{path}: LiteRT cannot load it: {error!s:.300}") from error

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Every code tensor as int16 codes of the graph's grids, and under "" the float32 result."""
        try:
            place = self.interpreter.get_input_details()[0]["index"]
            self.interpreter.resize_tensor_input(place, list(x.shape))
            self.interpreter.allocate_tensors()
            self.interpreter.set_tensor(place, x.numpy())
            self.interpreter.invoke()
            values = [self.interpreter.get_tensor(each["index"]) for each in self.interpreter.get_output_details()]
        except Exception as error:
            raise LowbitError(f"{self.path}: LiteRT cannot run it: {error!s:.300}") from error
        found = {"": torch.from_numpy(values[0])}
        for name, value in zip(self.names, values[1:]):
            kind = self.graph.by_name[name].type
            channels, *space = kind.shape
            if value.size != len(x) * math.prod(kind.shape):
                raise _not_this_network(self.path, f"its tensor {name!r} has shape {value.shape[1:]}, not {kind.shape}")
            codes = torch.from_numpy(value).reshape(len(x), *space, channels).movedim(-1, 1)  # channels come last there
            found[name] = codes.to(torch.int16) + (128 - kind.carrier_offset)
        return found


class ExecutorchRunner:
    """An exported ExecuTorch file in ExecuTorch's runtime, one sample at a time; it shows its output alone.

    Raises LowbitError where executorch is not installed, or the file is none.
    """

    def __init__(self, path: str | os.PathLike, graph: Graph) -> None:
        try:
            from executorch.runtime import Runtime
        except ImportError as error:
            raise _missing(error, "executorch") from error
        self.path, self.shape = Path(path), graph.by_name[graph.output].type.shape
        # The runtime reads from these as long as the method runs, but does not keep them alive.
        self._content = self.path.read_bytes()
        try:
            self._program = Runtime.get().load_program(self._content)
            self._method = self._program.load_method("forward")
        except Exception as error:
            raise LowbitError(f"{path}: ExecuTorch cannot load it: {error!s:.300}") from error

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """The float32 result, under ""."""
        try:
            # It takes a tensor's elements as they lie: those of channels-last images lie in another order.
            outputs = [self._method.execute([sample.contiguous()])[0].clone() for sample in x.split(1)]
        except Exception as error:
            raise LowbitError(f"{self.path}: ExecuTorch cannot run it: {error!s:.300}") from error
        if tuple(outputs[0].shape[1:]) != self.shape:
            raise _not_this_network(self.path, f"its output has shape {tuple(outputs[0].shape[1:])}, not {self.shape}")
        return {"": torch.cat(outputs)}
