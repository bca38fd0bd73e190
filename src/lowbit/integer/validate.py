"""Whether a graph is an integer network: every rule, checked before anything runs or is written."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from lowbit.errors import LowbitError
from lowbit.grid import BITS_MAX
from lowbit.integer import limits
from lowbit.integer.arithmetic import FLOAT32_MAX, FLOAT32_TINY, SCALE_MIN, f32
from lowbit.integer.graph import FloatType, Graph, Node, Shape, TensorType, known_shape, reach
from lowbit.integer.ops import OPERATIONS
from lowbit.integer.settings import reference_arithmetic

ACCUMULATOR_MAX = 2**31 - 1
_MULTIPLIER_MAX = 2.0**29  # so that the fixed form's shift is at least 1
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that steer a terminal or break a line, and of lone surrogates."""


def validate(graph: Graph, *, fractional_zero_points: bool = False) -> Graph:
    """The same graph with every type and shape filled in, after checking every rule.

    Checked: names, order, number and types of inputs; grids and scales; shapes and sizes (`integer.limits`); what each
    operation checks of its own fields; multipliers; that no accumulator can overflow 32 bits, by its bound over the
    actual weights; and that no float output can overflow float32.

    Args:
        graph: any graph.
        fractional_zero_points: accept TensorType.zero_point that is not an integer (for the QONNX writer).

    Raises:
        LowbitError: naming the node and the rule it breaks.
    """
    with reference_arithmetic():
        return _validated(graph, fractional_zero_points)


def _validated(graph: Graph, fractional_zero_points: bool) -> Graph:
    known: dict[str, TensorType | FloatType] = {}
    for name, shape in graph.inputs.items():
        _check_name(name, known)
        known[name] = FloatType(_checked_shape(shape, f"input {name!r}: ", limits.INPUT_MAX))
    if not known:
        raise LowbitError("the graph has no input")
    check_count(len(graph.nodes))
    floats, indices = (
        {name for node in graph.nodes if getattr(node, takes) for name in node.inputs}
        for takes in ("takes_floats", "takes_indices")
    )
    for name in sorted(floats & indices & graph.inputs.keys()):
        raise LowbitError(f"the graph's input {name!r} is taken as floats and as indices; it can be one of the two")
    nodes: list[Node] = []
    elements = macs = 0
    for node in graph.nodes:
        try:
            node = _checked(node, known, graph, fractional_zero_points)
            elements += math.prod(node.shape_of())
            work = node.work([kind for name in node.inputs if isinstance(kind := known[name], TensorType)])
            macs += work.macs if work else 0
            if elements > limits.TOTAL_MAX or macs > limits.MACS_MAX:
                raise LowbitError(
                    f"the tensors of a sample have {elements:,} elements so far, with {macs:,} multiply-accumulates; "
                    f"at most {limits.TOTAL_MAX:,} and {limits.MACS_MAX:,} are run"
                )
        except LowbitError as error:
            raise LowbitError(f"node {node.name!r}: {error}") from error
        assert node.type is not None
        known[node.name] = node.type
        nodes.append(node)
    for name in graph.outputs:
        if name not in known or name in graph.inputs:
            raise LowbitError(f"the graph's output {name!r} is made by no node")
    if not graph.outputs or len(set(graph.outputs)) != len(graph.outputs):
        raise LowbitError(f"the graph's outputs {graph.outputs} must be one or more names, each once")
    return replace(graph, nodes=tuple(nodes))


def check_count(nodes: int) -> None:
    """Raise LowbitError for more nodes than a network has."""
    if nodes > limits.NODES_MAX:
        raise LowbitError(f"the graph has {nodes:,} nodes; at most {limits.NODES_MAX:,} are read")


def _check_name(name: str, known: dict) -> None:
    if not isinstance(name, str) or not name or ":" in name:
        raise LowbitError("a name is a string that is not empty and has no colon in it")
    if any(unicodedata.category(character) in _UNPRINTABLE for character in name):
        raise LowbitError(f"the name {name!a} has control characters, line breaks or lone surrogates in it; rename it")
    if name in known:
        raise LowbitError("the name is used twice; names of nodes and of the input must differ")


def _checked(node: Node, known: dict[str, TensorType | FloatType], graph: Graph, fractional: bool) -> Node:
    operation = type(node).__name__
    if OPERATIONS.get(operation) is not type(node):
        raise LowbitError(f"{operation} is not an operation of an integer network")
    _check_name(node.name, known)
    if len(node.inputs) > limits.INPUTS_MAX:
        raise LowbitError(f"{operation} has {len(node.inputs):,} inputs; at most {limits.INPUTS_MAX:,} are read")
    for name in node.inputs:
        if name not in known:
            raise LowbitError(f"its input {name!r} is made by no earlier node")
    if (node.arity is None and len(node.inputs) < 2) or (node.arity is not None and len(node.inputs) != node.arity):
        raise LowbitError(f"{operation} has {len(node.inputs)} inputs")
    inputs = [known[name] for name in node.inputs]
    types = [x for x in inputs if isinstance(x, TensorType)]
    if node.takes_floats or node.takes_indices:
        for name in node.inputs:
            if name not in graph.inputs:
                names, what = ", ".join(map(repr, graph.inputs)), "float input" if node.takes_floats else "input"
                raise LowbitError(f"{operation} takes the graph's {what} {names}, not {name!r}")
    elif len(types) < len(inputs):
        raise LowbitError("its inputs must be codes, not floats: quantize the input first")
    y = _checked_type(node, types, graph, fractional)
    node = replace(node, type=y)
    node.check(types)
    shape = _checked_shape(node.output_shape([known_shape(x) for x in inputs]), "", limits.TENSOR_MAX)
    if y.shape is not None and tuple(y.shape) != shape:
        raise LowbitError(f"its type says shape {tuple(y.shape)}, its inputs make it {shape}")
    node = replace(node, type=replace(y, shape=shape))
    if types:
        _check_arithmetic(node, types)
    return node


def _checked_type(node: Node, inputs: Sequence[TensorType], graph: Graph, fractional: bool) -> TensorType | FloatType:
    """The type of the node's tensor; of an operation that moves codes, that of its inputs."""
    y = node.type
    if node.moves_codes:
        if len({x.code_type for x in inputs}) > 1:
            raise LowbitError("its inputs lie on different grids; put a Requantize before it")
        if y is not None and not (isinstance(y, TensorType) and y.code_type == inputs[0].code_type):
            raise LowbitError(f"{type(node).__name__} moves codes, so its type must be that of its input")
        y = replace(inputs[0], shape=None) if y is None else y
    if isinstance(y, FloatType):
        if node.name not in graph.outputs or not node.may_give_floats:
            raise LowbitError("only a layer or matrix product at the network's end may have a float output")
    elif isinstance(y, TensorType):
        _check_codes(y, fractional)
    else:
        raise LowbitError("has no type; give it the grid of its output")
    return y


def _check_codes(y: TensorType, fractional: bool) -> None:
    if type(y.bits) is not int or not (2 if y.signed else 1) <= y.bits <= BITS_MAX:
        raise LowbitError(f"{y.bits} bits; codes have 1 to {BITS_MAX} bits, signed ones 2 to {BITS_MAX}")
    if y.narrow and not y.signed:
        raise LowbitError("narrow is for signed grids")
    scale = y.scale
    if not isinstance(scale, float) or not math.isfinite(scale) or not SCALE_MIN <= scale <= FLOAT32_MAX:
        raise LowbitError(f"scale {scale}; a scale is finite and at least {SCALE_MIN:g}: calibrate the network again")
    if float(f32(scale)) != scale:
        raise LowbitError(f"scale {scale!r} is not a float32 value; round it to float32 first")
    zero = y.zero_point
    if not isinstance(zero, int | float) or not math.isfinite(zero):
        raise LowbitError(f"zero point {zero!r} is not a number")
    if not fractional and type(zero) is not int:
        raise LowbitError(
            f"zero point {zero!r} is not an integer: round it before conversion (lowbit.round_zero_points)"
        )
    carrier = 8 if y.bits <= 8 else 16
    if not 0 <= zero + y.carrier_offset <= (1 << carrier) - 1:
        what = "byte" if carrier == 8 else "16 bits"
        raise LowbitError(f"zero point {zero} with {y.bits} bits does not fit the {what} that carries the codes")
    if reach(y) * scale > FLOAT32_MAX:
        raise LowbitError(
            f"scale {scale}: its largest value {reach(y) * scale:g} is more than float32 holds ({FLOAT32_MAX:g})"
        )


def _check_arithmetic(node: Node, inputs: Sequence[TensorType]) -> None:
    bound = node.accumulator_bound(inputs)
    if bound > ACCUMULATOR_MAX:
        raise LowbitError(
            f"its accumulator can reach {bound}, more than 32 bits hold ({ACCUMULATOR_MAX}); give the layer fewer "
            "bits or fewer inputs per output"
        )
    largest = FLOAT32_MAX if isinstance(node.type, FloatType) else _MULTIPLIER_MAX
    for multiplier in node.multipliers(inputs):
        size = multiplier.exact.abs()
        if not (bool((size >= FLOAT32_TINY).all()) and bool((size <= largest).all())):
            raise LowbitError(
                f"the ratio of its accumulator's scale to its output's scale is {float(size.max()):g}, outside "
                f"{FLOAT32_TINY:g} .. {largest:g}; calibrate the network again"
            )
        through = multiplier.through
        if through is not None and not bool(((through >= FLOAT32_TINY) & (through <= FLOAT32_MAX)).all()):
            raise LowbitError(
                f"the scale of its accumulator is {float(through.min()):g}, outside {FLOAT32_TINY:g} .. "
                f"{FLOAT32_MAX:g}, the normal numbers of float32; calibrate the network again"
            )
        if isinstance(node.type, FloatType) and bound * float(size.max()) > FLOAT32_MAX:
            raise LowbitError(
                f"its float output can reach {bound * float(size.max()):g}, more than float32 holds ({FLOAT32_MAX:g}); "
                "calibrate the network again"
            )


def _checked_shape(shape: Shape, where: str, largest: int) -> Shape:
    shape = tuple(shape)
    if not shape or not all(type(size) is int and size >= 1 for size in shape):
        raise LowbitError(f"{where}shape {shape} of a sample is empty or not made of whole numbers")
    if math.prod(shape) > largest:
        raise LowbitError(f"{where}shape {shape} of a sample is too large; it has at most {largest:,} elements")
    return shape
