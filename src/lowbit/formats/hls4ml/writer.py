"""An integer graph as hls4ml's own file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lowbit.files import atomic_write
from lowbit.formats.hls4ml.layers import project
from lowbit.integer.graph import Graph
from lowbit.integer.ops import Convolution

PROJECT = "network"
"""The name of the C++ function."""


def write(graph: Graph, path: Path) -> None:
    """Write a validated graph to `path`. Raises LowbitError, naming the node, for what hls4ml can't hold."""
    model = built(graph)
    from hls4ml.utils.serialization import serialize_model

    with tempfile.TemporaryDirectory(prefix="lowbit-") as folder, atomic_write(path) as temporary:
        serialize_model(model, Path(folder) / "network.fml")
        temporary.write_bytes((Path(folder) / "network.fml").read_bytes())


def built(graph: Graph) -> Any:
    """The hls4ml.model.ModelGraph of a validated graph, for the Vitis backend.

    Networks with convolutions are streamed, others computed all in parallel.
    """
    made = project(graph)
    from hls4ml.model.graph import ModelGraph

    streams = any(isinstance(node, Convolution) for node in graph.nodes)
    config = {
        "Backend": "Vitis",
        "ProjectName": PROJECT,
        "OutputDir": "hls4ml-network",
        "Part": "xcu250-figd2104-2L-e",
        "ClockPeriod": 5,
        "IOType": "io_stream" if streams else "io_parallel",
        "HLSConfig": {
            "Model": {"Precision": {"default": "fixed<32,16>"}, "ReuseFactor": 1, "Strategy": "Latency"},
            "LayerName": made.settings,
        },
    }
    first, last = (made.layers[place]["name"] for place in (0, -1))
    return ModelGraph.from_layer_list(config, made.layers, inputs=[first], outputs=[last])
