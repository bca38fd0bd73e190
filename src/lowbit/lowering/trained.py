"""The trained network beside its integer graph: the codes that its own quantizers give."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from lowbit.integer.arithmetic import code_dtype
from lowbit.integer.graph import Graph
from lowbit.integer.result import Result, Runner
from lowbit.lowering.codes import activation_codes, type_of
from lowbit.lowering.layouts import Layout
from lowbit.quantizer.module import Quantizer, as_quantizer


@dataclass(frozen=True)
class Traced:
    """Where the codes of an integer tensor are found in the trained network: the quantizer of this node.

    Attributes:
        node: the name of the traced network's node.
        of_input: whether the quantizer is the input quantizer of the layer there; else the node is an inserted
            quantizer.
        layout: where the batch lies in its tensor.
    """

    node: str
    of_input: bool
    layout: Layout = Layout()

    def quantizer(self, module: nn.Module) -> Quantizer:
        """The quantizer, of the module that the node calls."""
        return as_quantizer(module.get_submodule("input_quantizer") if self.of_input else module)


Places = dict[Traced, str]
"""The integer tensors of the trained network's quantizers, by place; several places may have one tensor."""


def trained_runner(model: fx.GraphModule, graph: Graph, places: Places) -> Runner:
    """A runner of the trained network, which computes on the CPU, on a copy.

    Args:
        model: the network that was converted.
        graph: its integer graph.
        places: where the graph's tensors stand in the network; from `convert` too.
    """
    model = copy.deepcopy(model).cpu().eval()
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted: dict[str, list[tuple[str, Traced]]] = {}
    for place, name in places.items():
        wanted.setdefault(place.node, []).append((name, place))

    def runner(inputs: Mapping[str, Tensor]) -> Result:
        found: dict[str, Tensor] = {}
        batch = len(next(iter(inputs.values())))

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                for name, place in wanted.get(n.name, ()):
                    tensor = self.env[n.all_input_nodes[0]]
                    quantizer = place.quantizer(modules[str(n.target)])
                    codes = activation_codes(quantizer, tensor).to(code_dtype(type_of(quantizer)))
                    found[name] = place.layout.to_samples(codes, batch)
                return super().run_node(n)

        with torch.no_grad():
            output = Recorder(model).run(*in_order(model, inputs))
        return Result(found, dict(zip(graph.outputs, tree_leaves(output))))

    return runner


def in_order(model: fx.GraphModule, inputs: Mapping[str, Tensor]) -> list[Tensor | None]:
    """The inputs in the order of forward's arguments; None for those that it does not use."""
    return [inputs.get(str(node.target)) for node in model.graph.nodes if node.op == "placeholder"]
