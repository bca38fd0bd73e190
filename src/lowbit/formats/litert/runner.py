"""An exported LiteRT file in LiteRT's interpreter, with every tensor of codes readable by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import flatbuffers
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.formats.litert.builder import input_name
from lowbit.formats.registry import not_this_network
from lowbit.integer.graph import Graph, TensorType
from lowbit.integer.result import Result


class LitertRunner:
    """A LiteRT file in LiteRT's interpreter with the XNNPACK delegate, which it applies by default.

    Args:
        path: the file.
        graph: the network that it was written from.

    Raises:
        LowbitError: the file can't be read, or is not one of this network.
    """

    def __init__(self, path: Path, graph: Graph) -> None:
        self.graph, self.path = graph, path
        self.names = [node.name for node in graph.nodes if isinstance(node.type, TensorType)]
        try:
            model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
            (part,) = list(model.subgraphs or ())
            places = {tensor.name.decode(): place for place, tensor in enumerate(part.tensors)}
            inputs, outputs = set(part.inputs), len(part.outputs)
        except Exception as error:  # the generated reader raises whatever it stumbles over
            raise LowbitError(f"{path}: cannot be read as LiteRT: {error!s:.200}") from error
        missing = [name for name in self.names if name not in places]
        if missing:
            raise not_this_network(path, f"it has no tensor {missing[0]!r}")
        if inputs != {places.get(input_name(name)) for name in graph.inputs} or outputs != len(graph.outputs):
            one = len(graph.inputs) == len(graph.outputs) == 1
            what = "it has not one input and one output" if one else "its inputs or outputs differ"
            raise not_this_network(path, what)
        part.outputs = [*part.outputs, *(places[name] for name in self.names)]
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), b"TFL3")
        try:
            self.interpreter = Interpreter(model_content=bytes(builder.Output()))
        except Exception as error:
            raise LowbitError(f"{path}: LiteRT cannot load it: {error!s:.300}") from error
        self.places = {name: places[input_name(name)] for name in graph.inputs}

    def __call__(self, inputs: Mapping[str, Tensor]) -> Result:
        """Every tensor of codes (int16), and the float32 outputs. Raises LowbitError where LiteRT can't run it."""
        try:
            for name, x in inputs.items():
                self.interpreter.resize_tensor_input(self.places[name], list(x.shape))
            self.interpreter.allocate_tensors()
            for name, x in inputs.items():
                self.interpreter.set_tensor(self.places[name], x.numpy())
            self.interpreter.invoke()
            values = [self.interpreter.get_tensor(each["index"]) for each in self.interpreter.get_output_details()]
        except Exception as error:
            raise LowbitError(f"{self.path}: LiteRT cannot run it: {error!s:.300}") from error
        outputs = dict(zip(self.graph.outputs, map(torch.from_numpy, values)))
        codes = {}
        for name, value in zip(self.names, values[len(outputs) :]):
            node = self.graph.by_name[name]
            kind, shape = node.codes_of(), node.shape_of()
            count, (channels, *space) = len(next(iter(inputs.values()))), shape
            samples = count if node.inputs else 1
            if value.size != samples * math.prod(shape):
                raise not_this_network(self.path, f"its tensor {name!r} has shape {value.shape[1:]}, not {shape}")
            carried = (
                torch.from_numpy(value).reshape(samples, *space, channels).movedim(-1, 1)
            )  # channels come last there
            codes[name] = (carried.to(torch.int16) + (128 - kind.carrier_offset)).expand(count, *shape)
        return Result(codes, outputs)
