"""TensorFlow Lite Micro's interpreter (`pip install tflite-micro`), with its reference kernels, on exported files of codes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowbit.formats.litert.runner import File, code_input
from lowbit.formats.xnnpack import carrier
from lowbit.integer.graph import Graph
from lowbit.integer.network import dequantize
from lowbit.integer.ops import Quantize
from lowbit.integer.result import Result

_ARENA = 1 << 25


class TflmRunner:
    """A file of codes in TensorFlow Lite Micro, one sample at a time, with every tensor that carries a node's name.

    Args:
        path: what `lowbit.export(…, "litert", io="codes")` wrote.
        graph: what it computes: its outputs are codes.
    """

    rounding = "double-rounding"

    def __init__(self, path: Path, graph: Graph) -> None:
        from tflite_micro.python.tflite_micro import runtime

        self.graph, self.file = graph, File(path)
        keep = runtime.InterpreterConfig.kPreserveAllTensors
        self.interpreter = runtime.Interpreter.from_bytes(path.read_bytes(), arena_size=_ARENA, intrepreter_config=keep)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Result:
        entries = [node for node in self.graph.nodes if isinstance(node, Quantize)]
        given = [code_input(node, inputs[node.inputs[0]]) for node in entries]
        found: dict[str, list[Tensor]] = {node.name: [] for node in self.graph.nodes}
        for sample in range(len(given[0])):
            for number, codes in enumerate(given):
                self.interpreter.set_input(np.ascontiguousarray(codes[sample : sample + 1]), number)
            self.interpreter.invoke()
            for node in self.graph.nodes:
                channels, *space = node.shape_of()
                value = self.interpreter.GetTensor(self.file.places[node.name], 0)["tensor_data"]
                carried = torch.from_numpy(value.copy()).reshape(1, *space, channels).movedim(-1, 1)
                found[node.name].append(carried.to(torch.int16) - carrier(node.codes_of()))
        codes = {name: torch.cat(parts) for name, parts in found.items()}
        outputs = {name: dequantize(codes[name], self.graph.by_name[name].type) for name in self.graph.outputs}
        return Result(codes, outputs)


def arena_bytes(path: Path) -> int:
    """What the interpreter takes of its arena for a file, by its own report: tensors, and what it keeps of every operator."""
    program = (
        "import sys\nfrom tflite_micro.python.tflite_micro import runtime\n"
        f"found = runtime.Interpreter.from_bytes(open(sys.argv[1], 'rb').read(), arena_size={_ARENA})\nfound.print_allocations()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    found = re.search(r"Arena allocation total (\d+) bytes", done.stdout + done.stderr)
    if found is None:
        raise RuntimeError(f"TensorFlow Lite Micro reports no arena: {done.stderr[-1000:]}")
    return int(found[1])
