"""From a trained network prepared with `integer_only=True` to the integer graph.

The nodes of the traced network are walked in order; the handler of each node's kind (`lowbit.lowering.handlers`) says what it
becomes. A computation (layer, addition, …) waits until the quantizer behind it says on which grid its result is; only then
is an integer node made. What lies between, batch-norm and clamps, goes into the node; what only moves codes (pooling by
maximum, reshaping, …) is done behind it. `lowbit.lowering.values` has what stands for a tensor meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from lowbit.errors import LowbitError
from lowbit.integer.graph import FloatType, Graph, Node, Shape, TensorType
from lowbit.integer.ops import Concatenate, Lookup, Quantize, Requantize
from lowbit.integer.ops.lookup import codes_at
from lowbit.integer.validate import validate
from lowbit.lowering import kinds as k
from lowbit.lowering.calls import REMEDY_FOR_ONE, Modules, arguments, describe, nodes_in
from lowbit.lowering.checks import check_norms, check_parameters, check_quantizers, check_shapes
from lowbit.lowering.codes import type_of
from lowbit.lowering.handlers import HANDLERS
from lowbit.lowering.shapes import Shapes, shapes_of
from lowbit.lowering.simplify import simplified
from lowbit.lowering.trained import Places, Traced, trained_runner
from lowbit.lowering.values import Codes, Computation, Concatenation, Move, Value
from lowbit.quantizer.module import Quantizer

__all__ = ["Converter", "Traced", "convert", "trained_runner"]


def convert(
    model: nn.Module, example_input: Any, *, fractional_zero_points: bool = False, allow_diverged: bool = False
) -> tuple[Graph, Places]:
    """The integer graph of a trained network, validated, and where its tensors stand in the network.

    Args:
        model: from `lowbit.prepare(…, integer_only=True)`, calibrated or trained. It is not changed.
        example_input: an input batch; its shape without the batch becomes the graph's input shape.
        fractional_zero_points: take offsets that are not snapped as they are. No integers compute such a graph.
        allow_diverged: take steps that training has driven out of their bounds, with the bound as the step.

    Raises:
        LowbitError: a model prepared otherwise, a quantizer without step, a step, offset or parameter that is not finite, a
            fractional offset, an example that the network does not take, or an operation in a form that has no integer
            counterpart; the message names the layer. Also what `validate` raises.
    """
    if not isinstance(model, fx.GraphModule) or not hasattr(model, "streams"):
        raise LowbitError(
            "the network was not prepared for integers: use lowbit.prepare(model, integer_only=True, …); on the command line, "
            "lowbit train … --quantization.integer-only"
        )
    check_quantizers(model, fractional_zero_points, allow_diverged)
    check_norms(model)
    check_parameters(model)
    shapes = shapes_of(model, [example_input])
    converter = Converter(model, shapes)
    graph = validate(converter.graph(), fractional_zero_points=fractional_zero_points)
    check_shapes(graph, converter.places, model, converter.modules, shapes)
    return simplified(graph, converter.places)


class Converter:
    """The walk over a traced network, and what handlers need of it.

    Attributes:
        modules, kinds, shapes: of the traced network.
        places: where the tensors that were made stand in the network.
    """

    def __init__(self, model: fx.GraphModule, shapes: Shapes) -> None:
        self.modules: Modules = dict(model.named_modules(remove_duplicate=False))
        kinds = k.kinds_of(model.graph, self.modules)
        self.kinds: k.Kinds = {node: kind for node, kind in kinds.items() if kind is not None}
        self.shapes = shapes
        self.places: Places = {}
        self._values: dict[fx.Node, Any] = {}
        self._nodes: list[Node] = []
        self._names: set[str] = set()
        self._made: dict[tuple[Value, Quantizer], Codes] = {}

    def graph(self) -> Graph:
        """The integer graph, not validated."""
        inputs: dict[str, Shape] = {}
        outputs: list[str] = []
        for node, kind in self.kinds.items():
            if kind is k.INPUT:
                inputs[node.name] = self.shapes[node][1:]
                self._values[node] = self._input(node.name)
            elif kind is k.OUTPUT:
                outputs += [self._output(self.value(tensor, node)) for tensor in node.all_input_nodes]
            elif kind is not k.SHAPE:
                self._values[node] = HANDLERS[kind](self, node)
        return Graph(inputs, tuple(self._nodes), tuple(outputs))

    def _input(self, name: str) -> Computation:
        self._names.add(name)
        return Computation(f"{name}_codes", lambda n, y: Quantize(name=n, inputs=(name,), type=y))

    def _output(self, value: Any) -> str:
        if isinstance(value, Codes):
            return value.name
        if not isinstance(value, Computation) or not value.may_be_float or value.moves:
            raise LowbitError("the network's output has no quantizer: prepare the network anew")
        return self._add(value.node(self._unique(value.name), FloatType()))

    # What a node of the traced network takes.

    def input_of(self, node: fx.Node) -> fx.Node:
        """The node whose tensor this one takes."""
        return self.arguments(node)["input"]

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """`calls.arguments` of a node."""
        return arguments(node, self.modules)

    def options(self, node: fx.Node, *names: str) -> list[Any]:
        """Arguments that are numbers, or made of numbers, by their names. Refuses those that the network computes."""
        given = self.arguments(node)
        values = [given[name] for name in names]
        if nodes_in(values):
            raise self.refusal(node, " is called with what forward computes from shapes, which has no integer form yet")
        return values

    def value(self, tensor: Any, node: fx.Node) -> Any:
        """What stands for a tensor that the node takes: a `Value`, or a list of them for what gives several tensors."""
        if not isinstance(tensor, fx.Node):
            raise self.refusal(node, f" takes {tensor!r}, where only tensors have an integer form")
        if tensor not in self._values:
            raise self.refusal(tensor, f" makes what {self.describe(node)} takes, and has no integer form")
        return self._values[tensor]

    def codes_at(self, tensor: Any, node: fx.Node) -> Codes:
        """The codes of a tensor that the node takes, which a quantizer has put on a grid."""
        value = self.value(tensor, node)
        if not isinstance(value, Codes):
            raise LowbitError(f"{self.describe(node)} takes a tensor without a quantizer: prepare the network anew")
        return value

    def describe(self, node: fx.Node) -> str:
        """`calls.describe` of a node."""
        return describe(node, self.modules)

    def refusal(self, node: fx.Node, why: str) -> LowbitError:
        """The error for a node in a form that has no integer counterpart: its description, what follows it, and the remedy."""
        return LowbitError(f"{self.describe(node)}{why}; {REMEDY_FOR_ONE}")

    # What becomes of it in the integer graph.

    def on_grid(self, value: Value, quantizer: Quantizer) -> Codes:
        """The value on the quantizer's grid."""
        key = (value, quantizer)
        if key not in self._made:
            self._made[key] = self._on_grid(value, quantizer)
        return self._made[key]

    def _on_grid(self, value: Value, quantizer: Quantizer) -> Codes:
        grid = type_of(quantizer)
        if isinstance(value, Codes):
            if value.type.code_type == grid.code_type:
                return value
            name, source = f"{value.name}_requantized", value.name
            return self.emit(name, lambda n: Requantize(name=n, inputs=(source,), type=grid))
        if isinstance(value, Concatenation):
            codes = self.concatenated(value.name, [self.on_grid(part, quantizer) for part in value.parts])
        else:
            codes = self._clamped(self.emit(value.name, lambda n: value.node(n, grid)), value.clamp)
        return self.moved(codes, value.moves)

    def concatenated(self, name: str, parts: Sequence[Codes]) -> Codes:
        """The channels of codes on one grid, one after the other."""
        return self.emit(
            name, lambda n: Concatenate(name=n, inputs=tuple(part.name for part in parts), type=parts[0].type)
        )

    def moved(self, value: Any, moves: Sequence[Move]) -> Any:
        """The value with its codes moved: at once, or when it is put on a grid."""
        if not isinstance(value, Codes):
            return replace(value, moves=(*value.moves, *moves))
        for move in moves:
            source, y = value.name, value.type
            made = self.emit(move.name, lambda n, move=move, source=source: move.node(n, source), y)
            value = made
        return value

    def emit(self, name: str, make: Callable[[str], Node], type: TensorType | None = None) -> Codes:
        """Add the node that `make` makes of its final name; `type` where the node leaves that to its input."""
        node = make(self._unique(name))
        y = type if node.type is None else node.type
        assert isinstance(y, TensorType)
        return Codes(self._add(node), y)

    def _add(self, node: Node) -> str:
        self._nodes.append(node)
        return node.name

    def _unique(self, name: str) -> str:
        unique, number = name.replace(":", "_"), 1
        while unique in self._names:
            number += 1
            unique = f"{name}_{number}"
        self._names.add(unique)
        return unique

    def _clamped(self, codes: Codes, clamp: tuple[float, float]) -> Codes:
        """A clamp (ReLU, ReLU6) on codes: nothing where the grid's own range does it, else a table.

        Rounding is monotonic, so clamping codes at the codes of the bounds equals quantizing the clamped value.
        """
        y = codes.type
        ends = torch.tensor(clamp, dtype=torch.float32) / torch.tensor(y.scale, dtype=torch.float32)
        low, high = codes_at(ends, y).tolist()
        if low <= y.qn and high >= y.qp:
            return codes
        table = torch.arange(y.qn, y.qp + 1, dtype=torch.float32).clamp(low, high).to(torch.int16)
        return self.emit(f"{codes.name}_clamped", lambda n: Lookup(name=n, inputs=(codes.name,), type=y, table=table))
