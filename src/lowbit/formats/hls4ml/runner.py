"""A .fml file in hls4ml's C simulation: the C++ that it would synthesize, compiled by g++."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.formats.hls4ml.layers import channels_last, layer_name
from lowbit.formats.registry import not_this_network
from lowbit.integer.graph import FloatType, Graph, Node, known_shape
from lowbit.integer.ops import Reshape
from lowbit.integer.result import Result


class Hls4mlRunner:
    """hls4ml's C simulation of a file. It shows every layer's codes but the input's and those of flattened tensors.

    Args:
        path: what `write` wrote.
        graph: what it was written from.

    Raises:
        LowbitError: no g++, a damaged file, one of another network, or one whose C++ does not compile.
    """

    rounding = "shift"

    def __init__(self, path: Path, graph: Graph) -> None:
        from hls4ml.utils.serialization import deserialize_model

        self.path, self.graph = path, graph
        if shutil.which("g++") is None:
            raise LowbitError(
                "an hls4ml file is proved in hls4ml's C simulation, which g++ compiles, and there is none: "
                "apt install g++"
            )
        _check_archive(path)
        self.folder = Path(tempfile.mkdtemp(prefix="lowbit-hls4ml-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self.model = deserialize_model(path, self.folder)
        except Exception as error:
            raise LowbitError(f"{path}: hls4ml can't read it ({error}): export it again") from error
        self._check_layers()
        config = self.model.config
        config.config["OutputDir"], config.trace_output = str(self.folder / "project"), True
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                self.model.compile()
        except Exception as error:
            raise LowbitError(
                f"{path}: g++ does not compile what hls4ml makes of it ({error})\n{said.getvalue()}"
            ) from error
        self.model.compile = lambda: None  # which `trace` would call at every batch

    def _check_layers(self) -> None:
        names = {layer.name for layer in self.model.get_layers()}
        missing = [node.name for node in self.graph.nodes if layer_name(node.name) not in names]
        if missing:
            raise not_this_network(self.path, f"it has no layer {missing[0]!r}")
        shape = list(self.model.get_input_variables()[0].shape)
        ((_, wanted),) = self.graph.inputs.items()
        if shape != channels_last(tuple(wanted)):
            raise not_this_network(self.path, f"its input has the shape {tuple(shape)}, channels last")

    def __call__(self, inputs: Mapping[str, Tensor]) -> Result:
        """Codes (int16) and the output as float32, a sample at a time."""
        (x,) = inputs.values()
        values = np.ascontiguousarray(x.movedim(1, -1).numpy())
        with contextlib.redirect_stdout(io.StringIO()):
            output, trace = self.model.trace(values)
        codes = {}
        for node in self.graph.nodes:
            found = trace.get(layer_name(node.name))
            if found is not None and not isinstance(node.type, FloatType) and not isinstance(node, Reshape):
                codes[node.name] = (_channels_first(found, len(x), node) / node.codes_of().scale).to(torch.int16)
        (name,) = self.graph.outputs
        return Result(codes, {name: _channels_first(np.asarray(output), len(x), self.graph.by_name[name])})


def _channels_first(values: np.ndarray, samples: int, node: Node) -> Tensor:
    assert node.type is not None
    return (
        torch.from_numpy(values.astype(np.float32))
        .reshape(samples, *channels_last(known_shape(node.type)))
        .movedim(-1, 1)
    )


def _check_archive(path: Path) -> None:
    """Refuse an archive that would be unpacked elsewhere than where it is told."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if not member.isreg() and not member.isdir():
                    raise LowbitError(f"{path}: {member.name!r} in it is no file: it is not hls4ml's")
                if member.name.startswith(("/", "\\")) or ".." in Path(member.name).parts:
                    raise LowbitError(f"{path}: {member.name!r} in it lies elsewhere: it is not hls4ml's")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise LowbitError(f"{path}: is damaged ({error}): export it again") from error
