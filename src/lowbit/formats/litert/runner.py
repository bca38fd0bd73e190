"""An exported LiteRT file in LiteRT's interpreter, with every tensor of codes readable by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import flatbuffers
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.schema_py_generated import TensorType as Type
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.formats.litert.builder import input_name, layout
from lowbit.formats.registry import not_this_network
from lowbit.formats.xnnpack import carrier
from lowbit.integer.graph import FloatType, Graph, Node, TensorType
from lowbit.integer.network import dequantize
from lowbit.integer.ops import Quantize
from lowbit.integer.outputs import with_output_grids
from lowbit.integer.result import Result
from lowbit.integer.roundings import ROUNDINGS
from lowbit.integer.run import executed


class File:
    """What a .tflite file says of itself.

    Args:
        path: the file.

    Attributes:
        model, part: the file as objects, and its subgraph.
        places: of the tensors, by name.

    Raises:
        LowbitError: the file can't be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
            (self.part,) = list(self.model.subgraphs or ())
            self.places = {tensor.name.decode(): place for place, tensor in enumerate(self.part.tensors)}
            self.takes_codes = all(self.part.tensors[place].type == Type.INT8 for place in self.part.inputs)
            self.ends = set(self.part.inputs), list(self.part.outputs)
        except Exception as error:  # the generated reader raises whatever it stumbles over
            raise LowbitError(f"{path}: cannot be read as LiteRT: {error!s:.200}") from error

    def showing(self, names: list[str]) -> bytes:
        """The file's content with these tensors as outputs behind its own."""
        self.part.outputs = [*self.ends[1], *(self.places[name] for name in names)]
        builder = flatbuffers.Builder()
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def grid(self, name: str) -> TensorType:
        """The grid of 8 signed bits that a tensor's bytes are on."""
        codes = self.part.tensors[self.places[name]].quantization
        return TensorType(float(codes.scale[0]), int(codes.zeroPoint[0]), 8, True)


class LitertRunner:
    """A LiteRT file of floats in LiteRT's interpreter with the XNNPACK delegate, which it applies by default.

    Args:
        path: the file.
        graph: the network that it was written from.
        file: what the file says of itself, where it is known.

    Raises:
        LowbitError: the file can't be read, or is not one of this network.
    """

    kernels = OpResolverType.AUTO

    def __init__(self, path: Path, graph: Graph, file: File | None = None) -> None:
        self.path, file = path, file or File(path)
        self.names = [node.name for node in graph.nodes if isinstance(node.type, TensorType)]
        missing = [name for name in self.names if name not in file.places]
        if missing:
            raise not_this_network(path, f"it has no tensor {missing[0]!r}")
        inputs, outputs = file.ends
        names = self.input_names(graph)
        if inputs != {file.places.get(name) for name in names} or len(outputs) != len(graph.outputs):
            one = len(graph.inputs) == len(graph.outputs) == 1
            what = "it has not one input and one output" if one else "its inputs or outputs differ"
            raise not_this_network(path, what)
        self.graph = self.graph_of(graph, file)
        self.names = [node.name for node in self.graph.nodes if isinstance(node.type, TensorType)]
        try:
            content = file.showing(self.names)
            self.interpreter = Interpreter(model_content=content, experimental_op_resolver_type=self.kernels)
        except Exception as error:
            raise LowbitError(f"{path}: LiteRT cannot load it: {error!s:.300}") from error
        self.places = [file.places[name] for name in names]

    def input_names(self, graph: Graph) -> list[str]:
        """The tensors that are the file's inputs."""
        return [input_name(name) for name in graph.inputs]

    def graph_of(self, graph: Graph, file: File) -> Graph:
        """What the file computes."""
        return graph

    def given(self, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        """The file's inputs, in the order of `input_names`."""
        return [inputs[name].numpy() for name in self.graph.inputs]

    def outputs(self, values: list[np.ndarray], codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's outputs, from the file's and from all codes."""
        return dict(zip(self.graph.outputs, map(torch.from_numpy, values)))

    def __call__(self, inputs: Mapping[str, Tensor]) -> Result:
        """Every tensor of codes (int16), and the float32 outputs. Raises LowbitError where LiteRT can't run it."""
        given = self.given(inputs)
        try:
            for place, x in zip(self.places, given):
                self.interpreter.resize_tensor_input(place, list(x.shape))
            self.interpreter.allocate_tensors()
            for place, x in zip(self.places, given):
                self.interpreter.set_tensor(place, x)
            self.interpreter.invoke()
            values = [self.interpreter.get_tensor(each["index"]) for each in self.interpreter.get_output_details()]
        except Exception as error:
            raise LowbitError(f"{self.path}: LiteRT cannot run it: {error!s:.300}") from error
        own, count = len(self.graph.outputs), len(given[0])
        codes = {name: self._codes(name, value, count) for name, value in zip(self.names, values[own:])}
        return Result(codes, self.outputs(values[:own], codes))

    def _codes(self, name: str, value: np.ndarray, count: int) -> Tensor:
        node = self.graph.by_name[name]
        kind, shape = node.codes_of(), node.shape_of()
        channels, *space = shape
        samples = count if node.inputs else 1
        if value.size != samples * math.prod(shape):
            raise not_this_network(self.path, f"its tensor {name!r} has shape {value.shape[1:]}, not {shape}")
        carried = torch.from_numpy(value).reshape(samples, *space, channels).movedim(-1, 1)  # channels come last there
        return (carried.to(torch.int16) - carrier(kind)).expand(count, *shape)


class CodesRunner(LitertRunner):
    """A LiteRT file of codes in LiteRT's interpreter with its reference kernels.

    They compute as TensorFlow Lite Micro does.

    Its graph has the grids that the file says for outputs that are floats in the network. Arguments and errors as
    `LitertRunner`.
    """

    rounding = "double-rounding"
    kernels = OpResolverType.BUILTIN_REF

    def input_names(self, graph: Graph) -> list[str]:
        return [node.name for node in _entries(graph)]

    def graph_of(self, graph: Graph, file: File) -> Graph:
        floats = [name for name in graph.outputs if isinstance(graph.by_name[name].type, FloatType)]
        missing = [name for name in floats if name not in file.places]
        if missing:
            raise not_this_network(self.path, f"it has no tensor {missing[0]!r}")
        return with_output_grids(graph, {name: file.grid(name) for name in floats})

    def given(self, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        return [code_input(node, inputs[node.inputs[0]]) for node in _entries(self.graph)]

    def outputs(self, values: list[np.ndarray], codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: dequantize(codes[name], self.graph.by_name[name].type) for name in self.graph.outputs}


def _entries(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if isinstance(node, Quantize)]


def code_input(node: Node, x: Tensor) -> np.ndarray:
    """What a file of codes takes for the floats x of a Quantize node: signed bytes, channels last."""
    codes = executed(node, [x], [], ROUNDINGS["float"]).to(torch.int16) + carrier(node.codes_of())
    return codes.to(torch.int8).movedim(1, -1).reshape(len(x), *layout(node.shape_of())).contiguous().numpy()


def open_runner(path: Path, graph: Graph) -> LitertRunner:
    """The runner for a file, of floats or of codes. Raises as `LitertRunner`."""
    file = File(path)
    return (CodesRunner if file.takes_codes else LitertRunner)(path, graph, file)
