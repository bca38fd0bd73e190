"""Networks that the tests of several formats share: operations alone, on any grids and shapes."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from lowbit.integer.graph import FloatType, TensorType
from lowbit.integer.ops import (
    Add,
    Concatenate,
    Constant,
    Embedding,
    Expand,
    Extremum,
    IndexSelect,
    Linear,
    LinearResize,
    LookupPerChannel,
    MaskedSoftmax,
    MatMul,
    Multiply,
    Normalize,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Quantize,
    Reduce,
    Reshape,
    Slice,
    Softmax,
    Subtract,
    Transpose,
    UnevenAveragePool,
    Upsample,
)
from lowbit.integer.ops.softmax import exponentials
from tests.integer_graphs import GraphBuilder, f32


@st.composite
def grids(draw, scales: tuple[float, ...]) -> TensorType:
    """Any grid of 1 to 8 bits, with any zero point that its byte holds, in or out of the range of its codes."""
    signed = draw(st.booleans())
    bits = draw(st.integers(2 if signed else 1, 8))
    zero = draw(st.integers(0, 255)) - (1 << (bits - 1) if signed else 0)
    return TensorType(f32(draw(st.sampled_from(scales))), zero, bits, signed, signed and draw(st.booleans()))


@st.composite
def differences(draw) -> GraphBuilder:
    """Subtract of two inputs on grids of their own: of equal shape, or either of the two per channel; ties included."""
    shape = draw(st.sampled_from([(7,), (5, 9), (5, 4, 3), (1, 6, 6)]))
    channels = (shape[0],) + (1,) * (len(shape) - 1)
    b = GraphBuilder(shape, draw(st.integers(0, 2**16)))
    first, second = draw(st.sampled_from([(shape, shape), (channels, shape), (shape, channels)]))
    b.inputs = {"image": first, "other": second}
    operands = [b.append(Quantize, name, type=draw(grids((0.031, 0.25, 0.0522)))) for name in b.inputs]
    b.append(Subtract, *operands, type=draw(grids((0.5, 0.071, 0.9))))
    return b


def upsampling(factors: tuple[int, ...], channels: int = 3) -> GraphBuilder:
    """Upsample of 2, 3, … positions per dimension, between two convolutions."""
    b = GraphBuilder((2, *range(2, 2 + len(factors))), seed=sum(factors))
    x = b.conv(b.quantize(8, signed=False, zero=100), channels, bits=4, signed=True, zero=3, narrow=True)
    b.conv(b.append(Upsample, x, factors=factors), 4, bits=8)
    return b


def picking(space: int) -> GraphBuilder:
    """Positions and channels by index, repeated, left out and out of order, between two convolutions."""
    b = GraphBuilder((2, *range(3, 3 + space)), seed=space)
    x = b.conv(b.quantize(8, signed=False, zero=100), 3, bits=4, signed=True, zero=3, narrow=True)
    x = b.append(IndexSelect, x, axis=1 + space, places=(2, 2, 0, 1, 1))
    x = b.append(IndexSelect, x, axis=1, places=(2, 0, 0, 1))
    b.conv(x, 4, bits=8)
    return b


def tables_per_channel(space: int) -> GraphBuilder:
    """A random table for each of three channels, of codes of a narrow grid."""
    b = GraphBuilder((2, *range(3, 3 + space)), seed=space)
    x = b.conv(b.quantize(8, signed=False, zero=100), 3, bits=5, signed=True, zero=3, narrow=True)
    tables = b.codes(-32, 31, 3, 31).to(torch.int16)
    b.append(LookupPerChannel, x, type=b.grid(1.0, 6, True, 4), tables=tables)
    return b


def pixels(space: int) -> GraphBuilder:
    """Channels that become positions, and positions that become channels, by unequal factors."""
    b = GraphBuilder((2, *range(3, 3 + space)), seed=space)
    up, down = (3, 2, 2)[:space], (3, 4, 5)[:space]
    x = b.conv(b.quantize(8, signed=False, zero=100), 2 * math.prod(up), bits=4, signed=True, zero=3, narrow=True)
    x = b.append(PixelShuffle, x, factors=up)
    x = b.append(PixelUnshuffle, x, factors=down)
    b.conv(x, 4, bits=8)
    return b


def resampling(space: int, wide: bool = False) -> GraphBuilder:
    """Both kinds of weighted means over 1, 2 or 3 dimensions, one after the other; `wide`: sums beyond 24 bits."""
    b = GraphBuilder((3, *range(5, 5 + space)), seed=space)
    spatial = range(2, 2 + space)
    windows = [(axis, *window) for axis in spatial for window in ((0, 2, 3), (0, 3, 3), (1, 5, 4), (4, 5, 1))]
    points = [(axis, *point) for axis in spatial for point in ((0, 7, 0), (0, 3, 4), (0, -1, 5, 4, -1), (3, 7, 0))]
    if wide:
        points = [(axis, *point) for axis in spatial for point in ((0, 511, 0), (1, 200, 311), (0, -40, 250, 340, -39))]
    x = b.quantize(8, signed=False, zero=100)
    x = b.same_range(UnevenAveragePool, x, bits=7, signed=True, zero=-5, windows=tuple(windows))
    b.same_range(LinearResize, x, bits=8, zero=3, points=tuple(points))
    return b


def two_inputs_and_two_outputs() -> GraphBuilder:
    """Two inputs of one shape on different grids; as outputs a float one, then codes that a later node takes."""
    b = GraphBuilder((3, 6, 5), seed=4)
    b.inputs = {"second": b.shape, "first": b.shape}
    operands = [b.append(Quantize, name, type=b.grid(1.5, bits, True)) for name, bits in (("first", 8), ("second", 5))]
    x = b.conv(b.append(Subtract, *operands, type=b.grid(2.0, 8, True, 4)), 8, bits=6, signed=True, zero=-2)
    b.outputs = (b.linear(b.append(Reshape, x, shape=(-1,)), 4), x)
    return b


def over_the_range(b: GraphBuilder, batch: int = 3) -> dict[str, torch.Tensor]:
    """Inputs that take every code of what quantizes them, where there is room, and values beyond."""
    found = {}
    for node in b.nodes:
        if isinstance(node, Quantize):
            y, shape = node.type, (batch, *b.inputs[node.inputs[0]])
            codes = y.qn - 1.5 + (y.qp - y.qn + 3) * torch.rand(shape, generator=b.random)
            found[node.inputs[0]] = (codes - y.zero_point) * y.scale
    return found


# ---------------------------------------------------------------- operations on tensors of any rank


def _sizes(draw, rank: int) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, 5), min_size=rank, max_size=rank)))


def _codes(b: GraphBuilder, kind: TensorType, shape: tuple[int, ...]) -> torch.Tensor:
    return b.codes(kind.qn, kind.qp, *shape).to(torch.int16)


@st.composite
def moves(draw, ranks: tuple[int, ...] = (1, 2, 3, 4)) -> GraphBuilder:
    """Codes that move: a few operations one after the other, each along any dimension."""
    rank = draw(st.sampled_from(ranks))
    b = GraphBuilder(_sizes(draw, rank), draw(st.integers(0, 2**16)))
    kind = draw(grids((0.031, 0.25)).filter(lambda kind: kind.qn <= kind.zero_point <= kind.qp))
    x = b.append(Quantize, "image", type=kind)
    for _ in range(draw(st.integers(1, 4))):
        shape = b.type_of(x).shape
        axis = draw(st.integers(1, rank))
        size = shape[axis - 1]
        sizes = [size if size > 1 else draw(st.integers(1, 3)) for size in shape]
        pads = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=rank, max_size=rank))
        other = _codes(b, kind, (*shape[: axis - 1], draw(st.integers(1, 3)), *shape[axis:]))
        move, fields = draw(
            st.sampled_from(
                [
                    (Transpose, {"order": tuple(draw(st.permutations(range(1, rank + 1))))}),
                    (Expand, {"shape": tuple(sizes)}),
                    (IndexSelect, {"axis": axis, "places": tuple(draw(st.permutations(range(size)))[: size // 2 + 1])}),
                    (Slice, {"axis": axis, "start": size // 2, "stop": size}),
                    (Pad, {"padding": tuple(pads)}),
                    (
                        Extremum,
                        {"axes": (axis,), "keepdim": True, "function": draw(st.sampled_from(Extremum.functions))},
                    ),
                    (Concatenate, {"axis": axis}),
                ]
            )
        )
        if move is Concatenate:
            x = b.append(move, b.append(Constant, type=kind, codes=other), x, x, **fields)
        elif math.prod(shape) < 2000:
            x = b.append(move, x, **fields)
    return b


@st.composite
def broadcasts(draw, ranks: tuple[int, ...] = (1, 2, 3, 4)) -> GraphBuilder:
    """Sums, differences and products of two tensors whose shapes broadcast, either of them a constant or not."""
    rank = draw(st.sampled_from(ranks))
    whole = _sizes(draw, rank)
    first, second = (
        tuple(size if draw(st.integers(0, 2)) else 1 for size in whole)[draw(st.integers(0, rank - 1)) :] for _ in "ab"
    )
    b = GraphBuilder(first, draw(st.integers(0, 2**16)))
    b.inputs = {"image": first, "other": second}
    operands = [b.append(Quantize, name, type=draw(grids((0.031, 0.25, 0.0522)))) for name in b.inputs]
    which = draw(st.integers(0, 2))
    if which < 2:
        kind = draw(grids((0.031, 0.25)))
        operands[which] = b.append(Constant, type=kind, codes=_codes(b, kind, (first, second)[which]))
    kinds = [Add, Subtract, Multiply]
    b.outputs = tuple(b.append(kind, *operands, type=draw(grids((0.5, 0.071, 0.9)))) for kind in kinds)
    return b


@st.composite
def matrix_products(draw, ranks: tuple[int, ...] = (2, 3, 4)) -> GraphBuilder:
    """A product of two tensors of codes over leading dimensions that broadcast, and perhaps layers behind it."""
    leading = [_sizes(draw, draw(st.sampled_from(ranks)) - 2) for _ in "ab"]
    leading[1] = tuple(size if draw(st.booleans()) else 1 for size in leading[0])[
        draw(st.integers(0, len(leading[0]))) :
    ]
    i, k, j = (draw(st.integers(1, 9)) for _ in range(3))
    b = GraphBuilder((*leading[0], i, k), draw(st.integers(0, 2**16)))
    b.inputs = {"image": b.shape, "other": (*leading[1], k, j)}
    operands = [b.append(Quantize, name, type=draw(grids((0.031, 0.25, 0.0522)))) for name in b.inputs]
    if draw(st.booleans()):
        kind = draw(grids((0.031, 0.25)))
        operands[1] = b.append(Constant, type=kind, codes=_codes(b, kind, b.inputs["other"]))
    x = b.append(MatMul, *operands, type=draw(grids((0.5, 0.071, 2.0))))
    floats = b.append(MatMul, *operands, type=FloatType())
    b.outputs = (floats, x)
    if draw(st.booleans()):
        return b
    weight = b.weight((3, j), draw(st.integers(1, 8)), draw(st.booleans()))
    bias = b.codes(-500, 500, 3).to(torch.int32) if draw(st.booleans()) else None
    layers = [b.append(Linear, x, type=y, weight=weight, bias=bias) for y in (draw(grids((0.9, 4.0))), FloatType())]
    b.outputs = (*b.outputs, *layers)
    return b


@st.composite
def reductions(draw, ranks: tuple[int, ...] = (2, 3, 4)) -> GraphBuilder:
    """Means and sums over any dimensions but all of them."""
    rank = draw(st.sampled_from(ranks))
    b = GraphBuilder(_sizes(draw, rank), draw(st.integers(0, 2**16)))
    q = b.append(Quantize, "image", type=draw(grids((0.031, 0.25))))
    found = []
    for function in Reduce.functions:
        axes = tuple(sorted(draw(st.sets(st.integers(1, rank), min_size=1, max_size=rank - 1))))
        fields = {"axes": axes, "keepdim": draw(st.booleans()), "function": function}
        found.append(b.append(Reduce, q, type=draw(grids((0.031, 0.1, 0.5))), **fields))
    b.outputs = tuple(found)
    return b


def sentences(seed: int = 0) -> GraphBuilder:
    """Words by their indices and kinds, their positions, and what they are seen as: BERT's embedding."""
    b = GraphBuilder((5, 6), seed)
    b.inputs = {"words": (5,), "kinds": (5,), "image": (5, 6)}
    kinds = [TensorType(f32(scale), zero, 8, False) for scale, zero in ((0.03, 120), (0.01, 9), (0.02, 128))]
    words, which = (
        b.append(Embedding, name, type=kind, codes=_codes(b, kind, (rows, 6)))
        for name, kind, rows in (("words", kinds[0], 11), ("kinds", kinds[1], 2))
    )
    x = b.append(Add, words, which, type=kinds[2])
    position = b.append(Constant, type=kinds[1], codes=_codes(b, kinds[1], (5, 6)))
    x = b.append(Add, x, position, type=kinds[2])
    x = b.append(Add, x, b.append(Quantize, "image", type=kinds[0]), type=kinds[2])
    b.append(Normalize, x, type=TensorType(f32(0.02), 128, 8, False), count=6, centered=True, eps=1e-12)
    return b


def indices(b: GraphBuilder, batch: int = 3) -> dict[str, torch.Tensor]:
    """Inputs of `sentences`."""
    return {
        "words": b.codes(0, 10, batch, 5), "kinds": b.codes(0, 1, batch, 5),
        "image": torch.randn(batch, 5, 6, generator=b.random),
    }  # fmt: skip


def transformer(seed: int = 0) -> GraphBuilder:
    """A block of attention with a class token, and group-norm, sums and extrema behind it: one of each of a transformer's operations."""
    b = GraphBuilder((6, 8), seed)
    wide, byte = TensorType(f32(0.03), 128, 8, False), TensorType(f32(1 / 255), 0, 8, False)
    token = b.append(Constant, type=wide, codes=_codes(b, wide, (1, 8)))
    x = b.append(Concatenate, token, b.append(Quantize, "image", type=wide), axis=1)
    gain, shift = torch.rand(8, generator=b.random) + 0.5, torch.randn(8, generator=b.random)
    norm = b.append(Normalize, x, type=wide, count=8, centered=True, eps=1e-6, gain=gain, shift=shift)
    qkv = b.append(
        Linear, norm, type=wide, weight=b.weight((24, 8), 4, per_channel=True), bias=b.codes(-90, 90, 24).int()
    )
    heads = b.append(Transpose, b.append(Reshape, qkv, shape=(7, 3, 2, 4)), order=(2, 3, 1, 4))
    q, k, v = (
        b.append(Reshape, b.append(Slice, heads, axis=1, start=i, stop=i + 1), shape=(2, 7, 4)) for i in range(3)
    )
    scores = b.append(MatMul, q, b.append(Transpose, k, order=(1, 3, 2)), type=wide)
    mask = b.append(Constant, type=wide, codes=_codes(b, wide, (7, 7)))
    scores = b.append(
        Add, scores, b.append(Expand, b.append(Reshape, mask, shape=(1, 7, 7)), shape=(2, 7, 7)), type=wide
    )
    shares = b.append(Softmax, scores, type=byte, axis=3, table=exponentials(wide, 7))
    y = b.append(Transpose, b.append(MatMul, shares, v, type=wide), order=(2, 1, 3))
    y = b.append(
        Add,
        x,
        b.append(IndexSelect, b.append(Reshape, y, shape=(7, 8)), axis=1, places=(6, 0, 1, 2, 3, 4, 5)),
        type=wide,
    )
    y = b.append(Normalize, b.append(Pad, y, padding=((1, 0), (0, 0))), type=wide, count=16, centered=False, eps=1e-5)
    b.outputs = (
        b.append(Reduce, y, type=wide, axes=(1,), keepdim=False, function="mean"),
        b.append(Extremum, y, axes=(1, 2), keepdim=True, function="maximum"),
    )
    return b


@st.composite
def normalizations(draw, ranks: tuple[int, ...] = (1, 2, 3)) -> GraphBuilder:
    """Layer-, RMS-, group- and instance-norms of any grid, with and without γ and β, whose blocks are short, long, or prime."""
    rank = draw(st.sampled_from(ranks))
    shape = (*_sizes(draw, rank - 1), draw(st.sampled_from([1, 2, 7, 24, 192, 257, 300])))
    b = GraphBuilder(shape, draw(st.integers(0, 2**16)))
    q = b.append(Quantize, "image", type=draw(grids((0.031, 0.25, 0.0522))))
    count = math.prod(shape[draw(st.integers(0, rank - 1)) :])
    around = [shape[-1:], (shape[0],) + (1,) * (rank - 1), ()]
    gain, shift = (
        None if not each else torch.randn(each, generator=b.random)
        for each in (draw(st.sampled_from(around)) for _ in "ab")
    )
    fields = {"count": count, "centered": draw(st.booleans()), "eps": draw(st.sampled_from([1e-5, 1e-12, 0.1]))}
    b.append(Normalize, q, type=draw(grids((0.031, 0.0071, 0.25))), gain=gain, shift=shift, **fields)
    return b


@st.composite
def softmaxes(draw, ranks: tuple[int, ...] = (1, 2, 3)) -> GraphBuilder:
    """Softmax of any grid along any dimension: of all elements, or of those that a constant or an input shows."""
    rank = draw(st.sampled_from(ranks))
    shape = tuple(draw(st.permutations([*_sizes(draw, rank - 1), draw(st.sampled_from([1, 3, 50, 197, 300]))])))
    b = GraphBuilder(shape, draw(st.integers(0, 2**16)))
    kind, axis = draw(grids((0.031, 0.25, 0.0522, 1.0))), draw(st.integers(1, rank))
    q = b.append(Quantize, "image", type=kind)
    fields = {"axis": axis, "table": exponentials(kind, shape[axis - 1])}
    y, mask = draw(grids((1 / 255, 0.0071, 0.001, 0.3))), draw(st.sampled_from(["none", "constant", "input"]))
    if mask == "none":
        b.append(Softmax, q, type=y, **fields)
        return b
    of_mask = tuple(draw(st.sampled_from([1, size])) for size in shape)[draw(st.integers(0, rank - 1)) :]
    if mask == "constant":
        shown = b.append(Constant, type=MASK, codes=_codes(b, MASK, of_mask))
    else:
        b.inputs = {"image": shape, "mask": of_mask}
        shown = b.append(Quantize, "mask", type=MASK)
    b.append(MaskedSoftmax, q, shown, type=y, **fields)
    return b


MASK = TensorType(1.0, 0, 1, False)
