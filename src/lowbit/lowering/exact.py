"""The trained network in exact arithmetic between its quantizers, whose results are given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from lowbit.errors import LowbitError
from lowbit.integer.graph import FloatType, Graph, TensorType
from lowbit.integer.network import dequantize
from lowbit.layers.function import QuantizedFunction
from lowbit.layers.quantized import QuantizedLayer
from lowbit.layers.rules import INSERTED
from lowbit.lowering import kinds as k
from lowbit.lowering.calls import arguments
from lowbit.lowering.codes import type_of
from lowbit.lowering.constants import constant
from lowbit.lowering.trained import Places, in_order
from lowbit.quantizer.module import Quantizer, as_quantizer


class ExactNetwork:
    """The trained network in float64 between its quantizers, whose results are given.

    Weights are quantized in float32, as in training, and then taken as float64; so are batch-norm's and the biases'
    values.

    Attributes:
        grids: on which the network's own quantizers put its tensors, by the name of the integer tensor.
        names: of the integer tensors whose exact values it gives.
    """

    def __init__(self, model: fx.GraphModule, graph: Graph, places: Places) -> None:
        self.graph, self.places = graph, places
        self.model = copy.deepcopy(model).cpu().eval()
        self._codes: Mapping[str, Tensor] = {}
        self._by_place = {(place.node, place.of_input): (place, name) for place, name in places.items()}
        firsts = {name: place for place, name in reversed(places.items())}
        self._compared = {(place.node, place.of_input) for place in firsts.values()}
        floats = {name for name in graph.outputs if isinstance(graph.by_name[name].type, FloatType)}
        self.names = floats | firsts.keys()
        self._met: set[tuple[str, bool]] = set()
        self._values: list[tuple[str, Tensor]] = []
        self._batch = 0
        self._place: tuple[str, bool] = ("", False)
        self._modules = modules = dict(self.model.named_modules(remove_duplicate=False))
        nodes = {node.name: node for node in self.model.graph.nodes}
        self.grids: dict[str, TensorType] = {}
        for place, name in places.items():
            self.grids[name] = type_of(place.quantizer(modules[str(nodes[place.node].target)]))
        layers = [each for each in self.model.modules() if isinstance(each, QuantizedLayer)]
        with torch.no_grad():
            weights = {each: each.weight_quantizer(each.quantized_from()).double() for each in layers}
        self._kinds = k.kinds_of(self.model.graph, modules)
        self._weights: dict[str, Tensor] = {}
        for node in self.model.graph.nodes:
            function = modules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(function, QuantizedFunction):
                with torch.no_grad():
                    weight = function.parameter_quantizer(constant(node.args[1], self._kinds, {}, modules))
                self._weights[node.name] = weight.double()
        kept = [(each, each._parameters.pop("weight")) for each in layers if "weight" in each._parameters]
        self.model.double()
        for layer, weight in kept:  # which nothing is computed with: it takes no eight bytes a weight
            layer._parameters["weight"] = weight
        for module, original in zip(self.model.modules(), model.modules()):
            if isinstance(module, Quantizer):
                self._in_float32(module)
            if isinstance(module, QuantizedLayer):
                own = as_quantizer(original.get_submodule("input_quantizer"))
                replace_forward(module.weight_quantizer, lambda w, w_hat=weights[module]: w_hat)
                replace_forward(module.input_quantizer, lambda x, own=own: self._quantized(x, own))
            if isinstance(module, QuantizedFunction):
                replace_forward(module.parameter_quantizer, lambda _: self._weights[self._place[0]])
                replace_forward(module.input_quantizer, self._quantized)
        for name, module in self.model.get_submodule(INSERTED).named_children():
            own = as_quantizer(model.get_submodule(f"{INSERTED}.{name}"))
            replace_forward(module, lambda x, own=own: self._quantized(x, own))

    @staticmethod
    def _in_float32(quantizer: Quantizer) -> None:
        """Steps that a method sets from the weight are those of the float32 weight."""
        step_for = quantizer.step_for
        object.__setattr__(quantizer, "step_for", lambda x: step_for(x.float()))

    def _quantized(self, x: Tensor, own: Quantizer | None = None) -> Tensor:
        if self._place not in self._by_place and own is not None:  # a constant that is part of another in the graph
            return own(x.to(own.raw_step)).to(x)
        place, name = self._by_place[self._place]
        if self._place in self._compared and self._place not in self._met:
            self._values.append((name, place.layout.to_samples(x, self._batch)))
        self._met.add(self._place)
        return place.layout.from_samples(dequantize(self._codes[name], self.grids[name]).double())

    def __call__(self, inputs: Mapping[str, Tensor], codes: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the exact real values of every tensor of `names` by name, when the trained network computes it.

        Args:
            inputs: of the network.
            codes: what its quantizers give, by tensor.

        Raises:
            LowbitError: at the end, where the network never quantizes a tensor that has a place in it.
        """
        self._met, self._values, self._codes = set(), [], codes
        self._batch = len(next(iter(inputs.values())))
        outer, modules, kinds = self, self._modules, self._kinds

        class Interpreter(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                layer = n.op == "call_module" and isinstance(
                    modules[str(n.target)], (QuantizedLayer, QuantizedFunction)
                )
                outer._place = n.name, layer
                if kinds[n] is not k.UPSAMPLE:
                    found = super().run_node(n)
                    narrow = isinstance(found, Tensor) and found.dtype == torch.float32  # a cast that forward writes
                    return found.double() if narrow else found
                # The positions are those that torch computes in float32, of values in two parts.
                source = arguments(n, modules)["input"]
                value = self.env[source]
                self.env[source] = high = value.float()
                first = super().run_node(n)
                self.env[source] = (value - high).float()
                second = super().run_node(n)
                self.env[source] = value
                return first.double() + second.double()

        doubles = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
        interpreter = Interpreter(self.model)
        interpreter.args_iter = iter(in_order(self.model, doubles))
        outputs: list[Any] = []
        for node in self.model.graph.nodes:
            value = interpreter.run_node(node)
            if node.op == "output":
                outputs = tree_leaves(value)
            interpreter.env[node] = value
            for used_up in interpreter.user_to_last_uses.get(node, ()):
                del interpreter.env[used_up]
            del value
            while self._values:
                yield self._values.pop(0)
        for place, name in self.places.items():
            if (place.node, place.of_input) not in self._met:
                raise LowbitError(f"node {name!r}: the trained network never quantizes the tensor that stands for it")
        for name, value in zip(self.graph.outputs, outputs):
            if isinstance(self.graph.by_name[name].type, FloatType):
                yield name, value


def replace_forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
    """Let a call of the module compute something else."""
    object.__setattr__(module, "forward", forward)
