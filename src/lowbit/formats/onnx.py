"""ONNX for runtimes: opset 21, byte codes with Clip, int8 weights, int32 bias; runs in ONNX Runtime's integer kernels.

With graph optimizations on (the default), ONNX Runtime's codes on x86-64 equal the integer reference's to the bit, on processors with
and without VNNI (see `qdq`). With optimizations off it computes every layer in floats, so that codes near a tie may differ.
"""

from __future__ import annotations

import os

from onnx import ModelProto, save

from lowbit.files import atomic_write
from lowbit.formats import qdq
from lowbit.integer.ir import Graph


def build(graph: Graph) -> ModelProto:
    """The checked model of a validated graph."""
    return qdq.build(graph, packed=False)


def write(graph: Graph, path: str | os.PathLike) -> None:
    """Write a validated graph to `path`."""
    model = build(graph)
    with atomic_write(path) as temporary:
        save(model, temporary)
