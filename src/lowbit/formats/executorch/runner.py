"""An exported ExecuTorch file in ExecuTorch's runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from executorch.runtime import Runtime  # pyrefly: ignore[missing-import]  # may not be installed
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.formats.registry import not_this_network
from lowbit.integer.graph import Graph
from lowbit.integer.result import Result


class ExecutorchRunner:
    """An ExecuTorch file in ExecuTorch's runtime, one sample at a time; it shows its outputs alone.

    Args:
        path: the file.
        graph: the network that it was written from.

    Raises:
        LowbitError: the file can't be loaded.
    """

    def __init__(self, path: Path, graph: Graph) -> None:
        self.path, self.graph = path, graph
        # The runtime reads from these as long as the method runs, but does not keep them alive.
        self._content = path.read_bytes()
        try:
            self._program = Runtime.get().load_program(self._content)
            self._method = self._program.load_method("forward")
        except Exception as error:
            raise LowbitError(f"{path}: ExecuTorch cannot load it: {error!s:.300}") from error

    def __call__(self, inputs: Mapping[str, Tensor]) -> Result:
        """The float32 outputs. Raises LowbitError where ExecuTorch can't run it, or it is another network's."""
        # A sample's elements are taken as they lie: those of channels-last images lie in another order.
        samples = zip(*(inputs[name].split(1) for name in self.graph.inputs))
        try:
            results = [
                [each.clone() for each in self._method.execute([part.contiguous() for part in sample])]
                for sample in samples
            ]
        except Exception as error:
            raise LowbitError(f"{self.path}: ExecuTorch cannot run it: {error!s:.300}") from error
        if len(results[0]) != len(self.graph.outputs):
            raise not_this_network(self.path, f"it has {len(results[0])} outputs, not {len(self.graph.outputs)}")
        outputs = {}
        for name, *found in zip(self.graph.outputs, *results):
            shape = self.graph.by_name[name].shape_of()
            if tuple(found[0].shape[1:]) != shape:
                raise not_this_network(self.path, f"its output has shape {tuple(found[0].shape[1:])}, not {shape}")
            outputs[name] = torch.cat(found)
        return Result({}, outputs)
