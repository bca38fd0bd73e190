"""Sums over elements, in C: matrix products, reductions, weighted means, softmax and normalization, in the rounding of the file."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lowbit.formats.c.operations import LOWERINGS, less
from lowbit.formats.c.roundings import arithmetic
from lowbit.formats.c.source import Builder
from lowbit.formats.c.tensors import Place, index, row_major
from lowbit.integer.graph import FloatType, known_shape
from lowbit.integer.ops import Extremum, MaskedSoftmax, MatMul, Normalize, Reduce, Softmax
from lowbit.integer.ops.normalize import FRACTION
from lowbit.integer.ops.reduce import Reduction
from lowbit.integer.ops.resample import Resample


def _at(place: Place, **others: str) -> str:
    """The index of place i0, i1, … of a tensor; `others` has the variables of some axes: a2="k"."""
    named = [(others.get(f"a{axis}", f"i{axis}"), place.strides[axis]) for axis in place.axes if place.shape[axis] > 1]
    return index(named)


@LOWERINGS(MatMul)
def _matmul(builder: Builder, node: MatMul) -> None:
    y = builder.place(node.name)
    rank = len(y.shape)
    a, b = (builder.place(name).with_rank(rank) for name in node.inputs)
    kinds = builder.graph.input_types(node)
    builder.declare("a", a)
    builder.declare("b", b)
    builder.declare("y", y, writable=True)
    with builder.loops([(f"i{axis}", y.shape[axis]) for axis in range(rank)]):
        builder.line("int32_t n = 0;")
        with builder.loop("k", a.shape[-1]):
            one = less(builder.load("a", a, _at(a, **{f"a{rank - 1}": "k"})), kinds[0].zero_point)
            two = less(builder.load("b", b, _at(b, **{f"a{rank - 2}": "k"})), kinds[1].zero_point)
            builder.line(f"n += ({one}) * ({two});")
        if isinstance(node.type, FloatType):
            builder.store("y", y, _at(y), "n")
        else:
            (m,) = node.multipliers(kinds)
            builder.store("y", y, _at(y), str(arithmetic(builder).requantize("n", m, node.codes_of())))


def _reduced(builder: Builder, node: Reduction, start: str, step: str, end: str) -> None:
    """Loops over the dimensions that are kept, and within over the others; `step` has {code} in it."""
    x, y = builder.place(node.inputs[0]), builder.place(node.name)
    gone = [axis - 1 for axis in node.axes]
    kept = [axis for axis in range(len(x.shape)) if node.keepdim or axis not in gone]  # of x, by the axes of y
    builder.declare("x", x)
    builder.declare("y", y, writable=True)
    with builder.loops([(f"i{axis}", x.shape[axis]) for axis in range(len(x.shape)) if axis not in gone]):
        builder.line(start)
        with builder.loops([(f"i{axis}", x.shape[axis]) for axis in gone]):
            builder.line(step.format(code=builder.load("x", x, _at(x))))
        here = index([(f"i{axis}", y.strides[place]) for place, axis in enumerate(kept) if axis not in gone])
        builder.store("y", y, here, end)


@LOWERINGS(Reduce)
def _reduce(builder: Builder, node: Reduce) -> None:
    (kind,) = kinds = builder.graph.input_types(node)
    code = arithmetic(builder).requantize("n", node.multipliers(kinds)[0], node.codes_of())
    _reduced(builder, node, "int32_t n = 0;", f"n += {less('{code}', kind.zero_point)};", str(code))


@LOWERINGS(Extremum)
def _extremum(builder: Builder, node: Extremum) -> None:
    y, largest = node.codes_of(), node.function == "maximum"
    start = f"int32_t best = {y.qn if largest else y.qp};"
    sign = ">" if largest else "<"
    _reduced(builder, node, start, f"best = {{code}} {sign} best ? {{code}} : best;", "best")


@LOWERINGS(Resample)
def _resample(builder: Builder, node: Resample) -> None:
    """Σ of the taps of every dimension, whose first positions and weights are tables."""
    (kind,), number = builder.graph.input_types(node), builder.number(node)
    x, y = builder.place(node.inputs[0]), builder.place(node.name)
    taps = {axis - 1: each for axis, each in node.taps(known_shape(kind)).items()}
    for axis, each in taps.items():
        builder.constant(f"int32_t first{number}_{axis}", list(each.first))
        builder.constant(f"int32_t weights{number}_{axis}", [weight for run in each.weights for weight in run])
    builder.declare("x", x)
    builder.declare("y", y, writable=True)
    with builder.loops([(f"i{axis}", y.shape[axis]) for axis in y.axes]):
        builder.line("int32_t n = 0;")
        with builder.loops([(f"k{axis}", len(each.weights[0])) for axis, each in taps.items()]):
            places = {f"a{axis}": f"(first{number}_{axis}[i{axis}] + k{axis})" for axis in taps}
            weights = [
                f"weights{number}_{axis}[i{axis} * {len(each.weights[0])} + k{axis}]" for axis, each in taps.items()
            ]
            code = less(builder.load("x", x, _at(x, **places)), kind.zero_point)
            builder.line(f"n += {' * '.join([*weights, f'({code})'])};")
        (m,) = node.multipliers([kind])
        builder.store("y", y, _at(y), str(arithmetic(builder).requantize("n", m, node.codes_of())))


@LOWERINGS(Softmax, MaskedSoftmax)
def _softmax(builder: Builder, node: Softmax | MaskedSoftmax) -> None:
    kind, y, number = builder.graph.input_types(node)[0], node.codes_of(), builder.number(node)
    arithmetic(builder).check_wide(node)
    x, out, axis = builder.place(node.inputs[0]), builder.place(node.name), node.axis - 1
    builder.constant(f"int32_t exponentials{number}", node.entries().tolist())
    m, k = node.fixed_factor()
    builder.uses |= {"scaled"}
    builder.declare("x", x)
    shown, code = "", builder.load("x", x, _at(x))
    if isinstance(node, MaskedSoftmax):
        mask = builder.place(node.inputs[1]).with_rank(len(x.shape))
        builder.declare("mask", mask)
        shown = builder.load("mask", mask, _at(mask))
    builder.declare("y", out, writable=True)
    entry = f"exponentials{number}[best - {code}]"
    entry = f"({shown} ? {entry} : 0)" if shown else entry
    with builder.loops([(f"i{other}", size) for other, size in enumerate(x.shape) if other != axis]):
        builder.line(f"int32_t best = {kind.qn};")
        builder.line("uint64_t sum = 0;")
        with builder.loop(f"i{axis}", x.shape[axis]):
            builder.line(f"best = {f'{shown} && ' if shown else ''}{code} > best ? {code} : best;")
        with builder.loop(f"i{axis}", x.shape[axis]):
            builder.line(f"sum += (uint64_t){entry};")
        if shown:
            builder.line("sum += sum == 0;")
        builder.line(f"sum <<= {k};")
        with builder.loop(f"i{axis}", x.shape[axis]):
            builder.line(f"const uint64_t share = 2u * (uint64_t){entry} * {m}u + sum;")
            builder.line(f"const int32_t steps = (int32_t)(share / (2u * sum)) + {y.zero_point};")
            builder.store("y", out, _at(out), f"clipped(steps, {y.qn}, {y.qp})")


@LOWERINGS(Normalize)
def _normalize(builder: Builder, node: Normalize) -> None:
    """Block by block of elements in the model's order."""
    (kind,), y, number = builder.graph.input_types(node), node.codes_of(), builder.number(node)
    x, out = builder.place(node.inputs[0]), builder.place(node.name)
    arithmetic(builder).check_wide(node)
    (half, extra), (m, b, k) = node.root_shift(kind), node.fixed_factors()
    gain = _factor(builder, f"gain{number}", m, out.shape)
    shift = _factor(builder, f"shift{number}", b, out.shape)
    builder.uses |= {"scaled", "root"}
    builder.declare("x", x)
    builder.declare("y", out, writable=True)
    n = less(builder.load("x", x, x.at("i")), kind.zero_point)
    with builder.loop("block", x.count // node.count):
        builder.line("int64_t sum = 0, squares = 0;")
        builder.line("uint64_t root;")
        builder.line(f"const int32_t first = block * {node.count};")
        with builder.block(f"for (int32_t i = first; i < first + {node.count}; i++)"):
            builder.line(f"const int32_t n = {n};")
            if node.centered:
                builder.line("sum += n;")
            builder.line("squares += n * n;")
        builder.line(f"squares = squares * {node.count} - sum * sum;")
        builder.line(f"root = square_root(((uint64_t)squares << {2 * half}) + {extra}u);")
        builder.line("root += root == 0;")
        with builder.block(f"for (int32_t i = first; i < first + {node.count}; i++)"):
            builder.line(f"const int64_t d = (int64_t){node.count} * ({n}) - sum;")
            builder.line(f"const uint64_t size = (uint64_t)(d < 0 ? -d : d) << {half + FRACTION + 1};")
            builder.line("const int64_t q = (int64_t)((size + root) / (2 * root));")
            builder.line(f"const int64_t v = (d < 0 ? -q : q) * {gain} + {shift};")
            builder.store("y", out, out.at("i"), f"scaled(v, {k}, {y.zero_point}, {y.qn}, {y.qp})")


def _factor(builder: Builder, name: str, values: Tensor, shape: Sequence[int]) -> str:
    """The C expression of a factor of the i-th element: a number, or an entry of a table."""
    flat = values.reshape(-1).tolist()
    if len(flat) == 1:
        return f"INT64_C({flat[0]})"
    builder.constant(f"int64_t {name}", flat)
    own = (1,) * (len(shape) - values.ndim) + tuple(values.shape)
    terms = []
    for size, count, stride in zip(own, row_major(tuple(shape)), row_major(own)):
        if size > 1:
            terms.append((f"({f'i / {count}' if count > 1 else 'i'} % {size})", stride))
    return f"{name}[{index(terms)}]"
