"""ONNX as small as the bits allow: as `onnx`, with weights of at most 4 bits in INT4 or INT2 tensors, cast to int8 on loading.

A runtime folds the Cast when it loads the file, so the codes and the speed are those of `onnx`. ONNX has no 3-bit tensors:
3-bit weights take 4 bits. The opset is 21, or 25 (the first with INT2) where a layer has weights of 1 or 2 bits.
"""

from __future__ import annotations

import os

from onnx import ModelProto, save

from lowbit.files import atomic_write
from lowbit.formats import qdq
from lowbit.integer.ir import Graph


def build(graph: Graph) -> ModelProto:
    """The checked model of a validated graph."""
    return qdq.build(graph, packed=True)


def write(graph: Graph, path: str | os.PathLike) -> None:
    """Write a validated graph to `path`."""
    model = build(graph)
    with atomic_write(path) as temporary:
        save(model, temporary)
