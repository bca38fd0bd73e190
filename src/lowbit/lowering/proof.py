"""Whether the integer network computes what the trained one does, node by node.

Every tensor that a quantizer of the trained network puts on a grid is computed twice from the tensors before it, which
are
given: their codes are those that the trained network's own quantizers give.

    integer   the integer nodes between, executed on these codes ("float" rounding)
    exact     the trained network's own operations between, in float64, on the real values of these codes

The integer code must be the code of the exact value v (in steps of the output, clip(rint(v) + z)). Both are roundings
of one number, so they may differ only where v lies next to a tie: at most `tolerance` steps away from it, and by one
code. How far the arithmetic of an operation is from that of real numbers, it says itself (`Node.tolerance`, with the
derivation); the tolerance is the sum over the nodes between.

Anything else that differs is a fault of preparation or conversion: an operation dropped or taken for another, the wrong
batch-norm, a clamp forgotten, strides swapped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from lowbit.errors import LowbitError
from lowbit.integer.graph import FloatType, Graph, Node, TensorType
from lowbit.integer.network import dequantize
from lowbit.integer.ops import Constant
from lowbit.integer.result import Mismatch
from lowbit.integer.roundings import get_rounding
from lowbit.integer.run import executed
from lowbit.integer.settings import reference_arithmetic
from lowbit.layers.function import QuantizedFunction
from lowbit.layers.quantized import QuantizedLayer
from lowbit.layers.rules import INSERTED
from lowbit.lowering import kinds as k
from lowbit.lowering.calls import arguments
from lowbit.lowering.codes import type_of
from lowbit.lowering.constants import constant
from lowbit.lowering.trained import Places, in_order, trained_runner
from lowbit.quantizer.module import Quantizer, as_quantizer

_ELEMENTS_AT_ONCE = 1 << 26
"""Of all tensors of the samples that are looked at together."""
_ELEMENTS_OF_A_TRIAL = 1 << 20
_ELEMENTS_SCRAMBLED = 1 << 22


class Proof:
    """Compares one trained network with its integer graph, on any number of batches.

    Args:
        model: the trained network that was converted. It is not changed.
        graph: its integer graph, validated.
        places: where the graph's tensors stand in the network; from `convert` too.

    Attributes:
        trained: the runner of the trained network.
    """

    def __init__(self, model: fx.GraphModule, graph: Graph, places: Places) -> None:
        self.graph = graph
        self.trained = trained_runner(model, graph, places)
        self._exact = _ExactNetwork(model, graph, places)
        self._samples = max(2, _ELEMENTS_AT_ONCE // graph.elements())  # two, since one would be computed twice

    def __call__(self, inputs: Mapping[str, Tensor], *, scrambled: bool = False) -> dict[str, Mismatch]:
        """The tensors that differ, by name, in the graph's order; none where the integer network is the trained one.

        Args:
            inputs: float32 (batch, *shape) of every input, by name.
            scrambled: let every operation take random codes of the whole grid, of the same shapes, instead of those
                that the trained network gives. What data seldom reach, as the ends of a table, is tried too.
        """
        found: dict[str, Mismatch] = {}
        count = len(next(iter(inputs.values())))
        for start in range(0, count, self._samples):
            part = {name: x[start : start + self._samples] for name, x in inputs.items()}
            for mismatch in self._compare(part, scrambled):
                if mismatch.name in found:
                    found[mismatch.name].count += mismatch.count
                else:
                    found[mismatch.name] = mismatch
        return found

    def _compare(self, inputs: Mapping[str, Tensor], scrambled: bool) -> list[Mismatch]:
        samples = len(next(iter(inputs.values())))
        # At least two samples, so that nothing takes the batch for a dimension of size one.
        several = {name: x if samples > 1 else torch.cat([x, x]) for name, x in inputs.items()}
        with reference_arithmetic():
            codes, exact = (
                {name: x[:samples] for name, x in found.items()} for found in self.expected(several, scrambled)
            )
            return self._compare_nodes(inputs, codes, exact)

    def expected(
        self, inputs: Mapping[str, Tensor], scrambled: bool
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The codes that operations take, and the exact value of each tensor that is put on a grid, by name."""
        codes = self.trained(inputs).codes
        if not scrambled:
            return codes, self._exact(inputs, codes)
        same = {name for place, name in self._exact.places.items() if place.layout.axis is None}
        codes = _random_codes(codes, self._exact.grids, self.graph, same)
        # What is a part of another tensor has that one's codes; whether it is the right part the data say.
        moved, given = set(), set(codes)
        for node in self.graph.nodes:
            if not node.moves_codes or not any(name in given for name in node.inputs):
                continue
            given.add(node.name)
            if node.name not in codes:
                continue
            moved.add(node.name)
            if all(name in codes for name in node.inputs):
                parts = [codes[name] for name in node.inputs]
                types, samples = self.graph.input_types(node), len(parts[0])
                codes[node.name] = executed(node, parts, types, get_rounding("float"), samples)
        return codes, {name: x for name, x in self._exact(inputs, codes).items() if name not in moved}

    def _compare_nodes(
        self, inputs: Mapping[str, Tensor], codes: Mapping[str, Tensor], exact: Mapping[str, Tensor]
    ) -> list[Mismatch]:
        graph, rounding = self.graph, get_rounding("float")
        samples = len(next(iter(inputs.values())))
        values: dict[str, Tensor] = dict(inputs)
        # How far the arithmetic that the trained network repeats may be from real numbers: since the last codes that
        # are given, and, for what only moves these, in them too. A quantizer behind the move rounds the same value.
        slack: dict[str, float] = dict.fromkeys(inputs, 0.0)
        slack_if_moved = dict(slack)
        last_use = {name: node.name for node in graph.nodes for name in node.inputs}
        found = []
        for node in graph.nodes:
            types = graph.input_types(node)
            value = executed(node, [values[name] for name in node.inputs], types, rounding, samples)
            tolerance = node.tolerance(types) + sum(
                (slack_if_moved if node.moves_codes else slack)[name] for name in node.inputs
            )
            if node.name in exact:
                mismatch = _mismatch(node, value, exact[node.name], self._exact.grids.get(node.name), tolerance)
                if mismatch is not None:
                    found.append(mismatch)
            given = node.name in codes
            values[node.name] = codes[node.name].to(value.dtype) if given else value
            slack_if_moved[node.name] = tolerance
            slack[node.name] = 0.0 if given else node.tolerance(types) + sum(slack[name] for name in node.inputs)
            for name in node.inputs:
                if last_use[name] == node.name:
                    values.pop(name, None)
        return found


def _mismatch(node: Node, value: Tensor, exact: Tensor, y: TensorType | None, tolerance: float) -> Mismatch | None:
    """What of the node's value is neither the exact value's on the trained network's grid y nor next to a tie.

    None where nothing is.
    """
    if y is None:
        trained, wrong = exact, ~((value.double() - exact).abs() <= tolerance)
    else:
        trained = exact / y.scale
        codes = trained.round().clamp_(y.qn - y.zero_point, y.qp - y.zero_point)
        wrong = codes != value.double().sub_(y.zero_point)  # NaN differs too
        if not bool(wrong.any()):
            return None
        trained = trained + y.zero_point
        to_tie = (trained - trained.floor() - 0.5).abs()
        wrong &= ~((to_tie <= tolerance) & ((value.double() - trained).abs() <= 0.5 + tolerance))
    if not bool(wrong.any()):
        return None
    place = tuple(wrong.nonzero()[0].tolist())
    return Mismatch(node.name, int(wrong.sum()), float(value[place]), float(trained[place]))


class _ExactNetwork:
    """The trained network in float64 between its quantizers, whose results are given.

    Weights are quantized in float32, as in training, and then taken as float64; so are batch-norm's and the biases'
    values.

    Attributes:
        grids: on which the network's own quantizers put its tensors, by the name of the integer tensor.
    """

    def __init__(self, model: fx.GraphModule, graph: Graph, places: Places) -> None:
        self.graph, self.places = graph, places
        self.model = copy.deepcopy(model).cpu().eval()
        self._codes: Mapping[str, Tensor] = {}
        self._by_place = {(place.node, place.of_input): (place, name) for place, name in places.items()}
        self._met: dict[tuple[str, bool], Tensor] = {}
        self._place: tuple[str, bool] = ("", False)
        self._modules = modules = dict(self.model.named_modules(remove_duplicate=False))
        nodes = {node.name: node for node in self.model.graph.nodes}
        self.grids: dict[str, TensorType] = {}
        for place, name in places.items():
            self.grids[name] = type_of(place.quantizer(modules[str(nodes[place.node].target)]))
        weights = {}
        for module in self.model.modules():
            if isinstance(module, QuantizedLayer):
                with torch.no_grad():
                    weights[module] = module.weight_quantizer(module.quantized_from()).double()
        self._kinds = k.kinds_of(self.model.graph, modules)
        self._weights: dict[str, Tensor] = {}
        for node in self.model.graph.nodes:
            function = modules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(function, QuantizedFunction):
                with torch.no_grad():
                    weight = function.parameter_quantizer(constant(node.args[1], self._kinds, {}, modules))
                self._weights[node.name] = weight.double()
        self.model.double()
        for module, original in zip(self.model.modules(), model.modules()):
            if isinstance(module, Quantizer):
                self._in_float32(module)
            if isinstance(module, QuantizedLayer):
                own = as_quantizer(original.get_submodule("input_quantizer"))
                _replace_forward(module.weight_quantizer, lambda w, w_hat=weights[module]: w_hat)
                _replace_forward(module.input_quantizer, lambda x, own=own: self._quantized(x, own))
            if isinstance(module, QuantizedFunction):
                _replace_forward(module.parameter_quantizer, lambda _: self._weights[self._place[0]])
                _replace_forward(module.input_quantizer, self._quantized)
        for name, module in self.model.get_submodule(INSERTED).named_children():
            own = as_quantizer(model.get_submodule(f"{INSERTED}.{name}"))
            _replace_forward(module, lambda x, own=own: self._quantized(x, own))

    @staticmethod
    def _in_float32(quantizer: Quantizer) -> None:
        """Steps that a method sets from the weight are those of the float32 weight."""
        step_for = quantizer.step_for
        object.__setattr__(quantizer, "step_for", lambda x: step_for(x.float()))

    def _quantized(self, x: Tensor, own: Quantizer | None = None) -> Tensor:
        self._met.setdefault(self._place, x)
        if self._place not in self._by_place and own is not None:  # a constant that is part of another in the graph
            return own(x.to(own.raw_step)).to(x)
        place, name = self._by_place[self._place]
        return place.layout.from_samples(dequantize(self._codes[name], self.grids[name]).double())

    def __call__(self, inputs: Mapping[str, Tensor], codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The exact real value of every tensor that has a place in the network, and of the float outputs, by name.

        Args:
            inputs: of the network.
            codes: what its quantizers give, by tensor.
        """
        self._met, self._codes = {}, codes
        batch = len(next(iter(inputs.values())))
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
        outputs = tree_leaves(Interpreter(self.model).run(*in_order(self.model, doubles)))
        found = {}
        for place, name in self.places.items():
            met = self._met.get((place.node, place.of_input))
            if met is None:
                raise LowbitError(f"node {name!r}: the trained network never quantizes the tensor that stands for it")
            found.setdefault(name, place.layout.to_samples(met, batch))
        for name, value in zip(self.graph.outputs, outputs):
            if isinstance(self.graph.by_name[name].type, FloatType):
                found[name] = value
        return found


def _replace_forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
    """Let a call of the module compute something else."""
    object.__setattr__(module, "forward", forward)


def check_equal(proof: Proof, examples: Mapping[str, Tensor]) -> None:
    """Refuse an integer graph that computes something else than the network it was made from.

    It is tried on `trial_inputs`, and on random codes.

    Raises:
        LowbitError: naming the first node that differs, with both values.
    """
    graph = proof.graph
    for mismatch in trial(proof, trial_inputs(graph, examples)).values():
        operation = type(graph.by_name[mismatch.name]).__name__
        raise LowbitError(
            f"node {mismatch.name!r} ({operation}) would not compute what the trained network does: {mismatch.text()}. "
            "An operation before it behaves in another way than its integer form: write it in another way or leave it "
            "out, and please report it"
        )


def trial(proof: Proof, inputs: Mapping[str, Tensor]) -> dict[str, Mismatch]:
    """What differs on the inputs; if nothing does, on random codes too, where that is little work."""
    elements = len(next(iter(inputs.values()))) * proof.graph.elements()
    return proof(inputs) or (proof(inputs, scrambled=True) if elements <= _ELEMENTS_SCRAMBLED else {})


def _random_codes(
    codes: Mapping[str, Tensor], grids: Mapping[str, TensorType], graph: Graph, same: Collection[str]
) -> dict[str, Tensor]:
    """Seeded codes of the same shapes, equally distributed over each grid; constants stay what they are.

    same: the tensors that are the same for every sample.
    """
    generator = torch.Generator("cpu").manual_seed(0)

    def random(name: str, x: Tensor) -> Tensor:
        found = torch.randint(grids[name].qn, grids[name].qp + 1, x.shape, generator=generator).to(x.dtype)
        found = found[:1].expand_as(found) if name in same else found
        return x if isinstance(graph.by_name[name], Constant) else found

    return {name: random(name, x) for name, x in codes.items()}


def trial_inputs(graph: Graph, examples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The examples' first samples, and as many random ones.

    One each of a large network, several where that is little work.

    A tensor of 2 bits with one position tells little of one sample.
    """
    samples = min(max(_ELEMENTS_OF_A_TRIAL // graph.elements(), 1), 4)
    random = random_inputs(graph, samples)
    return {name: torch.cat([examples[name].detach()[:samples].cpu().to(x.dtype), x]) for name, x in random.items()}


def random_inputs(graph: Graph, samples: int) -> dict[str, Tensor]:
    """Seeded samples of every input, whose values cover the input's grid and a little beyond it, or all its indices."""
    generator, found, limits = torch.Generator("cpu").manual_seed(0), {}, graph.index_limits()
    for name, shape in graph.inputs.items():
        if name in limits:
            found[name] = torch.randint(limits[name], (samples, *shape), generator=generator, device="cpu")
            continue
        kind = next((node.codes_of() for node in graph.nodes if name in node.inputs), None)
        low, high = (0.0, 1.0) if kind is None else (kind.scale * (end - kind.zero_point) for end in (kind.qn, kind.qp))
        values = torch.rand(samples, *shape, generator=generator, dtype=torch.float32, device="cpu")
        found[name] = values * 1.1 * (high - low) + low - 0.05 * (high - low)
    return found
