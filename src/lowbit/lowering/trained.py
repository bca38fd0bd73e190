"""The trained network beside its integer graph: the codes that its own quantizers give."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lowbit.integer.graph import Graph
from lowbit.integer.result import Result, Runner
from lowbit.lowering.codes import activation_codes
from lowbit.quantizer.module import Quantizer, as_quantizer


@dataclass(frozen=True)
class Traced:
    """Where the codes of an integer tensor are found in the trained network: the quantizer of this node.

    Attributes:
        node: the name of the traced network's node.
        of_input: whether the quantizer is the input quantizer of the layer there; else the node is an inserted quantizer.
    """

    node: str
    of_input: bool

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

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                for name, place in wanted.get(n.name, ()):
                    (tensor,) = n.all_input_nodes
                    found[name] = activation_codes(place.quantizer(modules[str(n.target)]), self.env[tensor])
                return super().run_node(n)

        with torch.no_grad():
            output = Recorder(model, garbage_collect_values=False).run(*inputs.values())
        outputs = [output] if isinstance(output, Tensor) else output
        return Result(found, dict(zip(graph.outputs, outputs)))

    return runner
