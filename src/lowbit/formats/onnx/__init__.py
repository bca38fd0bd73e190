"""ONNX for runtimes: byte codes with Clip, int8 weights, int32 bias; runs in ONNX Runtime's integer kernels.

"onnx" is opset 21. "onnx-packed" is as small as the bits allow: weights of at most 4 bits stand in INT4 or INT2 tensors
(opset 25, the first with INT2, where a layer has weights of 1 or 2 bits), cast to int8 on loading. A runtime folds the
Cast when it loads the file, so that codes and speed are those of "onnx". ONNX has no 3-bit tensors: 3-bit weights take
4 bits.

With graph optimizations on (the default), ONNX Runtime's codes on x86-64 equal the integer reference's to the bit, on
processors with and without VNNI (see `writer`). With optimizations off it computes every layer in floats, so that codes
near a tie may differ.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from lowbit.formats.registry import Format
from lowbit.integer.graph import Graph, Node
from lowbit.integer.result import Runner


def write(graph: Graph, path: Path, *, packed: bool = False) -> None:
    """Write a validated graph to `path`."""
    from lowbit.formats.onnx import writer

    writer.write(graph, path, packed=packed)


def open_runner(path: Path, graph: Graph) -> Runner:
    """The file in ONNX Runtime."""
    from lowbit.formats.onnx.runner import OnnxRunner

    return OnnxRunner(path, graph)


def _covers(kind: type[Node]) -> bool:
    from lowbit.formats.onnx.writer import LOWERINGS

    return LOWERINGS.find(kind) is not None


def _recognizes(content: Any) -> bool:
    return False  # nothing at a fixed place: what no other format recognizes is taken for ONNX


PLAIN = Format("onnx", ".onnx", "export", write, open_runner, _recognizes, _covers, bits_max=16)
PACKED = Format(
    "onnx-packed", ".packed.onnx", "export", partial(write, packed=True), open_runner, _recognizes, _covers, bits_max=16
)
