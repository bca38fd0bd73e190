"""How every operation without weights is written in C: loops over codes, in the rounding that the file is written in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lowbit.errors import LowbitError
from lowbit.formats.c.roundings import Arithmetic, Number, arithmetic
from lowbit.formats.c.source import Builder
from lowbit.formats.c.tensors import Place, index
from lowbit.formats.registry import Lowerings
from lowbit.integer.graph import Node, TensorType
from lowbit.integer.ops import (
    Add,
    AveragePool,
    GlobalAveragePool,
    Lookup,
    LookupPerChannel,
    MaxPool,
    Multiply,
    Quantize,
    Requantize,
)
from lowbit.integer.ops.elementwise import Elementwise

LOWERINGS = Lowerings("C")


def _steps(builder: Builder, variable: str, place: Place, kind: TensorType, at: str) -> Number:
    """q − z."""
    code = builder.load(variable, place, at)
    return Number(f"({less(code, kind.zero_point)})" if kind.zero_point else code)


def less(code: str, zero_point: int | float) -> str:
    """The C expression of code − zero point."""
    return f"{code} {'-' if zero_point > 0 else '+'} {abs(int(zero_point))}" if zero_point else code


def _computed(builder: Builder, node: Node, code: Callable[[Sequence[Any], Arithmetic], Any]) -> None:
    """A loop over elements that stores `code` of the steps of every input."""
    types, y = builder.graph.input_types(node), builder.place(node.name)
    inputs = [builder.place(name).with_rank(len(y.shape)) for name in node.inputs]
    names = "abcdefgh"[: len(inputs)]
    for variable, place in zip(names, inputs):
        builder.declare(variable, place)
    builder.declare("y", y, writable=True)
    with builder.elements(y, inputs) as (at, others):
        steps = [_steps(builder, *each) for each in zip(names, inputs, types, others)]
        builder.store("y", y, at, str(code(steps, arithmetic(builder))))


@LOWERINGS(Quantize)
def _quantize(builder: Builder, node: Quantize) -> None:
    """Codes come from the caller, who may compute them with the file's own function."""


@LOWERINGS(Add)
def _add(builder: Builder, node: Add) -> None:
    multipliers = node.multipliers(builder.graph.input_types(node))
    _computed(builder, node, lambda steps, fixed: fixed.weighted_sum(steps, multipliers, node.codes_of()))


@LOWERINGS(Multiply)
def _multiply(builder: Builder, node: Multiply) -> None:
    (m,) = node.multipliers(builder.graph.input_types(node))
    _computed(builder, node, lambda steps, fixed: fixed.requantize(steps[0] * steps[1], m, node.codes_of()))


@LOWERINGS(Requantize)
def _requantize(builder: Builder, node: Requantize) -> None:
    (m,) = node.multipliers(builder.graph.input_types(node))
    _computed(builder, node, lambda steps, fixed: fixed.requantize(steps[0], m, node.codes_of()))


@LOWERINGS(Elementwise)
def _elementwise(builder: Builder, node: Elementwise) -> None:
    """What the operation states for steps, on C expressions in place of tensors."""
    types = builder.graph.input_types(node)

    def code(steps: Sequence[Any], fixed: Any) -> Any:
        try:
            found = node.in_integers(steps, types, fixed)
        except (TypeError, AttributeError) as error:
            found = error
        if not isinstance(found, Number):
            raise LowbitError(
                f"node {node.name!r}: C has no form of {type(node).__name__}, whose integers are more than sums, "
                "products and one rounding"
            )
        return found

    _computed(builder, node, code)


@LOWERINGS(LookupPerChannel)
def _lookup_per_channel(builder: Builder, node: LookupPerChannel) -> None:
    """The tables of all channels are one, and a channel's begins at its number times their length."""
    (kind,), length = builder.graph.input_types(node), node.tables.shape[1]
    x, y, table = builder.place(node.inputs[0]), builder.place(node.name), f"tables{builder.number(node)}"
    builder.constant(f"{'int8_t' if node.codes_of().signed else 'uint8_t'} {table}", node.tables.flatten().tolist())
    builder.declare("x", x)
    builder.declare("y", y, writable=True)
    with builder.loops([(f"i{axis}", y.shape[axis]) for axis in y.axes]):
        here, there = (index([(f"i{axis}", place.strides[axis]) for axis in place.axes]) for place in (y, x))
        code = less(builder.load("x", x, there), kind.qn)
        builder.store("y", y, here, f"{table}[i0 * {length} + {code}]")


@LOWERINGS(Lookup)
def _lookup(builder: Builder, node: Lookup) -> None:
    (x,) = builder.graph.input_types(node)
    table = f"table{builder.number(node)}"
    builder.constant(f"{'int8_t' if node.codes_of().signed else 'uint8_t'} {table}", node.table.tolist())

    def entry(steps: Sequence[Any], _: Arithmetic) -> str:
        return f"{table}[{less(str(steps[0]), x.qn - x.zero_point)}]"

    _computed(builder, node, entry)


# ---------------------------------------------------------------- windows


def _window(
    builder: Builder,
    node: MaxPool | AveragePool,
    dilation: Sequence[int],
    start: str,
    step: Callable[[str], str],
    end: Callable[[Builder], str],
) -> None:
    """Loops over positions, channels and the taps that lie in x; `step` goes into a tap's code."""
    x, y = builder.place(node.inputs[0]), builder.place(node.name)
    builder.declare("x", x)
    builder.declare("y", y, writable=True)
    positions = range(1, len(y.shape))
    sizes = [*((f"p{axis}", y.shape[axis]) for axis in positions), ("c", y.shape[0])]
    with builder.loops(sizes):
        builder.line(start)
        with builder.loops([(f"k{axis}", node.kernel[axis - 1]) for axis in positions]):
            for axis in positions:
                before, stride, apart = node.padding[axis - 1][0], node.stride[axis - 1], dilation[axis - 1]
                builder.line(f"const int32_t i{axis} = p{axis} * {stride} + k{axis} * {apart} - {before};")
            inside = " && ".join(f"i{axis} >= 0 && i{axis} < {x.shape[axis]}" for axis in positions)
            at = index([("c", x.strides[0]), *((f"i{axis}", x.strides[axis]) for axis in positions)])
            with builder.block(f"if ({inside})"):
                builder.line(step(builder.load("x", x, at)))
        at = index([("c", y.strides[0]), *((f"p{axis}", y.strides[axis]) for axis in positions)])
        builder.store("y", y, at, end(builder))


@LOWERINGS(MaxPool)
def _max_pool(builder: Builder, node: MaxPool) -> None:
    low = node.codes_of().qn
    _window(
        builder, node, node.dilation, f"int32_t best = {low};", lambda code: f"best = {code} > best ? {code} : best;",
        lambda _: "best",
    )  # fmt: skip


@LOWERINGS(AveragePool)
def _average_pool(builder: Builder, node: AveragePool) -> None:
    types = builder.graph.input_types(node)
    (m,), zero = node.multipliers(types), types[0].zero_point
    _window(
        builder, node, (1,) * len(node.kernel), "int32_t n = 0;", lambda code: f"n += {less(code, zero)};",
        lambda builder: str(arithmetic(builder).requantize("n", m, node.codes_of())),
    )  # fmt: skip


@LOWERINGS(GlobalAveragePool)
def _global_average_pool(builder: Builder, node: GlobalAveragePool) -> None:
    (kind,) = types = builder.graph.input_types(node)
    (m,) = node.multipliers(types)
    x, y = builder.place(node.inputs[0]), builder.place(node.name)
    builder.declare("x", x)
    builder.declare("y", y, writable=True)
    with builder.loop("c", y.shape[0]):
        builder.line("int32_t n = 0;")
        axes = [axis for axis in x.axes if axis and x.shape[axis] > 1]
        with builder.loops([(f"i{axis}", x.shape[axis]) for axis in axes]):
            at = index([("c", x.strides[0]), *((f"i{axis}", x.strides[axis]) for axis in axes)])
            builder.line(f"n += {less(builder.load('x', x, at), kind.zero_point)};")
        code = arithmetic(builder).requantize("n", m, node.codes_of())
        builder.store("y", y, index([("c", y.strides[0])]), str(code))
