"""The executor against oracles that share nothing with it: Python integers, exact fractions, numpy float32."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.integer_graphs import GraphBuilder, every_operation, f32, resnet_like

from lowbit.errors import LowbitError
from lowbit.formats import FORMATS
from lowbit.integer.arithmetic import mantissa_and_shift, to_codes
from lowbit.integer.graph import FloatType, Graph, Node, TensorType, Weight
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import (
    Add,
    AveragePool,
    ChannelShuffle,
    Convolution,
    GlobalAveragePool,
    Linear,
    Lookup,
    MaxPool,
    Multiply,
    PadChannels,
    Quantize,
    Requantize,
    Reshape,
    Subtract,
    Upsample,
)
from lowbit.integer.ops.lookup import lookup_table
from lowbit.integer.roundings import ROUNDINGS
from lowbit.integer.run import run
from lowbit.integer.validate import validate

scales = st.floats(2.0**-10, 4, width=32)
SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def grids(draw, widest: int = 8):
    width, signed = draw(st.integers(2, widest)), draw(st.booleans())
    low = -(1 << (width - 1)) if signed else 0
    zero = draw(st.one_of(st.just(0), st.integers(low, low + (1 << width) - 1)))
    return TensorType(draw(scales), zero, width, signed, narrow=signed and draw(st.booleans()))


def compute(node: Node, inputs: list, types: list, fixed: bool) -> torch.Tensor:
    """The node alone."""
    return node.execute(inputs, types, ROUNDINGS["fixed" if fixed else "float"])


def all_codes(kind: TensorType) -> torch.Tensor:
    return torch.arange(kind.qn, kind.qp + 1).to(torch.int8 if kind.signed else torch.uint8)


def pairs(a: TensorType, b: TensorType) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of codes, as tensors (1, pairs)."""
    first, second = all_codes(a), all_codes(b)
    return first.repeat_interleave(len(second))[None], second.repeat(len(first))[None]


def float32(value: Fraction) -> float:
    """An exact value rounded to the nearest float32, half to even."""
    if value == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(value)))
    exponent -= abs(value) < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    return float(round(value / unit) * unit)


def half_away(value: Fraction) -> int:
    return int(math.copysign(1, value)) * math.floor(abs(value) + Fraction(1, 2))


def clip(value: int, kind: TensorType) -> int:
    return min(max(value, kind.qn), kind.qp)


def requant_float(n: int, m: float, y: TensorType) -> int:
    return clip(round(Fraction(float32(Fraction(float32(Fraction(n))) * Fraction(m)))) + y.zero_point, y)


def requant_fixed(n: int, m: Fraction, y: TensorType) -> int:
    """From the definition: the mantissa of |m| in 31 bits, one product, one rounding."""
    k = 0
    while abs(m) * Fraction(2) ** k < 2**30:
        k += 1
    while abs(m) * Fraction(2) ** k >= 2**31:
        k -= 1
    mantissa = round(abs(m) * Fraction(2) ** k)
    sign = 1 if m > 0 else -1
    return clip((0 if k > 62 else half_away(Fraction(sign * n * mantissa) / Fraction(2) ** k)) + y.zero_point, y)


def test_input_quantizer_divides():
    """0.35 / f(0.1) rounds differently from 0.35 · 10; halves go to even; the ends clip, infinities too."""
    kind = TensorType(f32(0.1), 3, 4, False)
    graph = validate(
        Graph(inputs={"image": (6,)}, nodes=(Quantize(name="q", inputs=("image",), type=kind),), outputs=("q",))
    )
    x = torch.tensor([[0.35, 0.25, -0.05, -9.0, float("inf"), float("-inf")]])
    expected = [np.clip(np.rint(np.float32(v) / np.float32(0.1)) + 3, 0, 15) for v in x[0].tolist()]
    assert dict(run(graph, x))["q"][0].tolist() == expected


def test_input_quantizer_is_a_division():
    rng = np.random.default_rng(0)
    x, s = rng.standard_normal(200_000).astype(np.float32), np.float32(0.013)
    kind = TensorType(float(s), 0, 8, True)
    node = Quantize(name="q", inputs=("image",), type=kind)
    codes = compute(node, [torch.from_numpy(x)], [None], False).numpy()
    assert (codes == np.clip(np.rint(x / s), -128, 127)).all()


@SETTINGS
@given(grids(), grids(), st.booleans())
def test_requantize(x, y, fixed):
    codes = all_codes(x)
    got = compute(Requantize(name="r", inputs=("x",), type=y), [codes[None]], [x], fixed)[0].tolist()
    if fixed:
        want = [requant_fixed(int(c) - x.zero_point, Fraction(x.scale / y.scale), y) for c in codes]
    else:
        m = float32(Fraction(x.scale) / Fraction(y.scale))
        want = [requant_float(int(c) - x.zero_point, m, y) for c in codes]
    assert got == want


@SETTINGS
@given(grids(4), grids(4), grids())
def test_add_float_is_fused_multiply_add(a, b, y):
    first, second = pairs(a, b)
    got = compute(Add(name="s", inputs=("a", "b"), type=y), [first, second], [a, b], False)[0].tolist()
    ra, rb = (float32(Fraction(t.scale) / Fraction(y.scale)) for t in (a, b))
    za, zb, zy = (t.zero_point + t.carrier_offset for t in (a, b, y))
    product = float32(Fraction(rb) * zb)
    c = float32(zy - Fraction(float32(Fraction(ra) * za + Fraction(product))))
    want = []
    for u, v in zip(first[0].tolist(), second[0].tolist()):
        inner = float32((v + b.carrier_offset) * Fraction(rb) + Fraction(c))
        total = round(Fraction(float32((u + a.carrier_offset) * Fraction(ra) + Fraction(inner))))
        want.append(clip(total - y.carrier_offset, y))
    assert got == want


@SETTINGS
@given(grids(4), grids(4), grids(), st.booleans())
def test_subtract(a, b, y, fixed):
    first, second = pairs(a, b)
    got = compute(Subtract(name="d", inputs=("a", "b"), type=y), [first, second], [a, b], fixed)[0].tolist()
    ratios = [Fraction(t.scale / y.scale) for t in (a, b)]
    k = 0
    while max(ratios) * Fraction(2) ** k < 2**30:
        k += 1
    while max(ratios) * Fraction(2) ** k >= 2**31:
        k -= 1
    want = []
    for q, p in zip(first[0].tolist(), second[0].tolist()):
        n, m = q - a.zero_point, p - b.zero_point
        if fixed:
            total = n * round(ratios[0] * Fraction(2) ** k) - m * round(ratios[1] * Fraction(2) ** k)
            steps = half_away(Fraction(total) / Fraction(2) ** k)
        else:
            r_a, r_b = (Fraction(float32(Fraction(t.scale) / Fraction(y.scale))) for t in (a, b))
            steps = round(Fraction(float32(Fraction(float32(n * r_a)) - Fraction(float32(m * r_b)))))
        want.append(clip(steps + y.zero_point, y))
    assert got == want


@SETTINGS
@given(grids(4), grids(4), grids())
def test_add_fixed(a, b, y):
    first, second = pairs(a, b)
    got = compute(Add(name="s", inputs=("a", "b"), type=y), [first, second], [a, b], True)[0].tolist()
    ratios = [Fraction(t.scale / y.scale) for t in (a, b)]
    k = 30 - math.floor(math.log2(max(ratios)))
    ma, mb = (round(r * Fraction(2) ** k) for r in ratios)
    want = [
        clip(
            half_away(Fraction((u - a.zero_point) * ma + (v - b.zero_point) * mb) / Fraction(2) ** k) + y.zero_point, y
        )
        for u, v in zip(first[0].tolist(), second[0].tolist())
    ]
    assert got == want


@SETTINGS
@given(grids(4), grids(4), grids(), st.booleans())
def test_multiply(a, b, y, fixed):
    first, second = pairs(a, b)
    got = compute(Multiply(name="p", inputs=("a", "b"), type=y), [first, second], [a, b], fixed)[0].tolist()
    products = [(u - a.zero_point) * (v - b.zero_point) for u, v in zip(first[0].tolist(), second[0].tolist())]
    if fixed:
        want = [requant_fixed(n, Fraction(a.scale * b.scale / y.scale), y) for n in products]
    else:
        m = float32(Fraction(float32(Fraction(a.scale) * Fraction(b.scale))) / Fraction(y.scale))
        zero = y.zero_point + y.carrier_offset
        want = [
            clip(round(Fraction(float32(Fraction(float32(n * Fraction(m))) + zero))) - y.carrier_offset, y)
            for n in products
        ]
    assert got == want


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("space", [1, 2, 3])
def test_convolution(space, fixed):
    """Against torch's float64 convolution of padded, centred codes and the requantization in fractions."""
    b = GraphBuilder((4,) + (7,) * space, seed=space)
    q = b.quantize(8, signed=False, zero=90)
    b.conv(q, 6, 3, bits=6, zero=9, weight_bits=5, per_channel=True, negative=True, stride=2, groups=2, padding=(1, 2))
    graph, x = b.graph(), b.input(3)
    codes = dict(run(graph, x, "fixed" if fixed else "float"))
    node, kind = graph.nodes[1], graph.nodes[0].type
    centred = torch.nn.functional.pad(codes[q].double() - 90, (1, 2) * space)
    convolve = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[space - 1]
    total = convolve(centred, node.weight.codes.double(), node.bias.double(), stride=2, groups=2).long()
    want = torch.empty_like(total)
    for o in range(6):
        scale, s_y = float(node.weight.scale[o]), node.type.scale
        if fixed:
            oracle = [
                requant_fixed(n, Fraction(kind.scale * scale / s_y), node.type) for n in total[:, o].flatten().tolist()
            ]
        else:
            m = float32(Fraction(float32(Fraction(kind.scale) * Fraction(scale))) / Fraction(s_y))
            oracle = [requant_float(n, m, node.type) for n in total[:, o].flatten().tolist()]
        want[:, o] = torch.tensor(oracle).reshape(want[:, o].shape)
    assert torch.equal(codes[node.name].long(), want)
    assert len(want.unique()) > 10


def test_large_accumulators_are_exact():
    """Sums beyond 2^24, where float32 could not hold them, and the float output's arithmetic."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(100, 128, (5, 4000), generator=generator).to(torch.int8)
    kind = TensorType(0.5, 0, 8, False, shape=(4000,))
    weight = Weight(codes, torch.tensor([0.3, -0.2, 0.1, 0.7, 0.9]), 8)
    bias = torch.tensor([1, -1, 7, 0, 3], dtype=torch.int32)
    node = Linear(name="l", inputs=("x",), type=FloatType((5,)), weight=weight, bias=bias)
    x = torch.randint(200, 256, (3, 4000), generator=generator).to(torch.uint8)
    total = (x.long() @ codes.long().T + bias).numpy()
    assert total.min() > 1 << 24
    want = total.astype(np.float32) * (np.float32(0.5) * weight.scale.numpy())
    assert (compute(node, [x], [kind], False).numpy() == want).all()


def test_reduced_matmul_precision_changes_nothing():
    """The user's setting of torch's matrix precision must not reach the integers."""
    b = resnet_like(0)
    graph, x = b.graph(), b.input(2)
    want = dict(run(graph, x))
    torch.set_float32_matmul_precision("medium")
    try:
        got = dict(run(graph, x))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(got[name], value) for name, value in want.items())


@pytest.mark.parametrize("fixed", [False, True])
def test_average_pools(fixed):
    kind, y = TensorType(f32(0.03), 7, 8, False, shape=(3, 6, 6)), TensorType(f32(0.02), -5, 6, True, shape=(3, 3, 4))
    x = torch.randint(0, 256, (2, 3, 6, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    node = AveragePool(name="p", inputs=("x",), type=y, kernel=(3, 2), stride=(2, 2), padding=((1, 1), (1, 1)))
    got = compute(node, [x], [kind], fixed)
    windows = torch.nn.functional.pad(x.long() - 7, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 2, 2).sum((4, 5))
    inner = float32(Fraction(kind.scale) * Fraction(float32(Fraction(1, 6))))
    m = float32(Fraction(inner) / Fraction(y.scale))
    exact = Fraction(kind.scale / (6 * y.scale))
    want = [requant_fixed(n, exact, y) if fixed else requant_float(n, m, y) for n in windows.flatten().tolist()]
    assert got.flatten().tolist() == want
    node = GlobalAveragePool(name="g", inputs=("x",), type=y)
    got = compute(node, [x], [kind], fixed)
    m = float32(Fraction(kind.scale) / Fraction(float32(Fraction(y.scale) * 36)))
    exact = Fraction(kind.scale / (36 * y.scale))
    sums = (x.long() - 7).sum((2, 3)).flatten().tolist()
    assert got.shape == (2, 3, 1, 1)
    assert got.flatten().tolist() == [requant_fixed(n, exact, y) if fixed else requant_float(n, m, y) for n in sums]


def test_max_pool_padding_never_wins():
    kind = TensorType(0.5, 0, 4, True, shape=(1, 4, 4))
    x = torch.full((1, 1, 4, 4), -8, dtype=torch.int8)
    x[0, 0, 3, 3] = 5
    geometry = {"kernel": (3, 3), "stride": (2, 2), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    node = MaxPool(name="m", inputs=("x",), type=TensorType(0.5, 0, 4, True, shape=(1, 2, 2)), **geometry)
    assert compute(node, [x], [kind], False).tolist() == [[[[-8, -8], [-8, 5]]]]


def test_moving_codes():
    kind = TensorType(0.5, 3, 4, False, shape=(6, 1))
    x = torch.arange(6, dtype=torch.uint8).reshape(1, 6, 1)
    shuffled = compute(ChannelShuffle(name="s", inputs=("x",), type=kind, groups=2), [x], [kind], False)
    assert shuffled.flatten().tolist() == [0, 3, 1, 4, 2, 5]
    wider = TensorType(0.5, 3, 4, False, shape=(9, 1))
    padded = compute(PadChannels(name="p", inputs=("x",), type=wider, before=1, after=2), [x], [kind], False)
    assert padded.flatten().tolist() == [3, 0, 1, 2, 3, 4, 5, 3, 3]


def test_lookup_table_is_the_function_between_the_grids():
    x, y = TensorType(f32(0.07), -20, 8, True, narrow=True), TensorType(f32(0.03), 9, 6, False)
    table = lookup_table(torch.nn.functional.silu, x, y)
    assert table.shape == (255,)
    reals = (np.arange(-127, 128, dtype=np.float32) + 20) * np.float32(x.scale)
    exact = reals.astype(np.float64) / (1 + np.exp(-reals.astype(np.float64)))
    assert np.abs(table.numpy() - np.clip(np.rint(exact / y.scale) + 9, 0, 63)).max() <= 1
    node = Lookup(name="t", inputs=("x",), type=y, table=table)
    assert compute(node, [all_codes(x)[None]], [x], False)[0].tolist() == table.tolist()


def test_upsample_repeats_positions():
    x = torch.arange(12, dtype=torch.uint8).reshape(1, 2, 2, 3)
    kind = TensorType(0.5, 0, 8, False, shape=(2, 2, 3))
    got = compute(Upsample(name="u", inputs=("x",), factors=(2, 3)), [x], [kind], False)
    assert torch.equal(got, x.repeat_interleave(2, 2).repeat_interleave(3, 3))
    expected = torch.nn.functional.interpolate(x.float(), scale_factor=(2, 3), mode="nearest")
    assert torch.equal(got.float(), expected)


def test_a_rounding_of_ones_own(monkeypatch):
    """A registered rounding reaches every operation that computes; what only moves codes is the same in all."""

    class TowardZero:
        name = "toward-zero"

        def requantize(self, n, m, y):
            return to_codes((n * m.exact).trunc(), y)

        def weighted_sum(self, steps, factors, y):
            return to_codes(sum(n * m.exact for n, m in zip(steps, factors)).trunc(), y)

    monkeypatch.setitem(ROUNDINGS, "toward-zero", TowardZero())
    b = every_operation(1)
    graph, x = b.graph(), b.input(2)
    mine, theirs = dict(run(graph, x, "toward-zero")), dict(run(graph, x))
    kind, source = graph.by_name["n1.Convolution"], mine["n0.Quantize"]
    (m,) = kind.multipliers(graph.input_types(kind))
    total = torch.nn.functional.conv2d(
        source.double() - graph.by_name["n0.Quantize"].type.zero_point, kind.weight.codes.double(), kind.bias.double(),
        kind.stride, [pair[0] for pair in kind.padding], kind.dilation, kind.groups,
    )  # fmt: skip
    y = kind.type
    want = ((total * m.exact.reshape(-1, 1, 1)).trunc() + y.zero_point).clamp(y.qn, y.qp)
    assert torch.equal(mine["n1.Convolution"].double(), want)
    assert not torch.equal(mine["n1.Convolution"], theirs["n1.Convolution"])
    with pytest.raises(LowbitError, match=r"there are 'float', 'fixed', .*'toward-zero'"):
        list(run(graph, x, "nearest"))


def siamese() -> Graph:
    """Two inputs on grids of their own, one difference; a table and a layer of it are the outputs."""
    b = GraphBuilder((3, 6), 4)
    first, second = (
        b.append(Quantize, name, type=TensorType(f32(scale), zero, 8, False))
        for name, scale, zero in (("left", 0.02, 128), ("right", 0.013, 100))
    )
    b.inputs = {"left": (3, 6), "right": (3, 6)}
    difference = b.append(Subtract, first, second, type=TensorType(f32(0.03), 120, 8, False))
    looked = b.lookup(difference, torch.abs, bits=6)
    flat = b.append(Reshape, difference, shape=(-1,))
    b.linear(flat, 4)
    b.outputs = (looked, b.last)
    return b.graph()


def test_several_inputs_and_outputs(tmp_path):
    graph = siamese()
    network = IntegerNetwork(graph)
    x = {name: torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(graph.inputs)}
    found = network(x)
    assert list(found) == list(graph.outputs) and [tuple(each.shape) for each in found.values()] == [(5, 3, 6), (5, 4)]
    codes = [
        np.clip(np.rint(x[name].numpy() / np.float32(scale)) + zero, 0, 255) - zero
        for name, scale, zero in (("left", 0.02, 128), ("right", 0.013, 100))
    ]
    real = np.float32(0.02) * codes[0] - np.float32(0.013) * codes[1]
    gap = np.abs(found[graph.outputs[0]].numpy() - np.abs(real)).max()
    assert gap <= 0.03 / 2 + graph.by_name[graph.outputs[0]].type.scale / 2 + 1e-6
    network.save(tmp_path / "two.safetensors")
    again = IntegerNetwork.load(tmp_path / "two.safetensors")
    assert again.graph.outputs == graph.outputs and again.graph.inputs == graph.inputs
    assert all(torch.equal(again(x)[name], found[name]) for name in found)
    for wrong, words in (
        (x["left"], "has 2 inputs, left, right: give a dictionary"),
        ({"left": x["left"]}, "inputs are left, right, but tensors are given for left"),
        (x | {"right": x["right"][:2]}, r"differ in their batch: \[5, 2\]"),
        (x | {"right": x["right"][:, :2]}, r"input 'right' has shape \(5, 2, 6\)"),
    ):
        with pytest.raises(LowbitError, match=words):
            network(wrong)


@pytest.mark.parametrize(("bits", "signed"), [(9, False), (12, True), (16, True), (16, False)])
def test_codes_wider_than_a_byte(bits, signed, tmp_path):
    """A sum on a wide grid, and a layer, a table and a change of grid that take it."""
    b = GraphBuilder((4,), bits)
    low = -(1 << (bits - 1)) if signed else 0
    q = b.append(Quantize, "image", type=TensorType(f32(0.001), low + 300, bits, signed))
    total = b.append(Add, q, q, type=TensorType(f32(0.0021), low + 200, bits, signed))
    b.append(Requantize, total, type=TensorType(f32(0.05), 3, 8, False))
    looked = b.append(
        Lookup, b.last, type=TensorType(1.0, 0, 12, False), table=torch.arange(256, dtype=torch.int16) * 16
    )
    b.outputs = (looked,)
    graph, x = b.graph(), b.input(3).abs()
    codes = dict(run(graph, x))
    dtype = {(9, False): torch.int16, (16, False): torch.int32}.get((bits, signed), torch.int16)
    assert codes[q].dtype == codes[total].dtype == dtype
    exact = np.rint(x.numpy() / np.float32(0.001)) + low + 300
    assert (codes[q].numpy() == np.clip(exact, low, low + 2**bits - 1)).all()
    for how in ("float", "fixed"):
        real = (dict(run(graph, x, how))[total].double() - low - 200) * f32(0.0021)
        assert float((real - 2 * (codes[q].double() - low - 300) * f32(0.001)).abs().max()) <= 0.0021 * 0.51
    IntegerNetwork(graph).save(tmp_path / "wide.safetensors")
    assert torch.equal(dict(run(IntegerNetwork.load(tmp_path / "wide.safetensors").graph, x))[looked], codes[looked])
    with pytest.raises(LowbitError, match=r"codes of up to 8 bits, and of 16, not of|Add for codes of 8 bits"):
        FORMATS["onnx"].checked_write(graph, tmp_path / "wide.onnx")


def test_linear_over_leading_dimensions():
    b = GraphBuilder((5, 2, 7), 0)
    weight = b.weight((3, 7), 4, per_channel=True)
    q = b.quantize(8, signed=False, zero=40)
    bias = torch.tensor([100, -200, 5], dtype=torch.int32)
    b.append(Linear, q, type=TensorType(f32(0.2), 0, 8, True), weight=weight, bias=bias)
    graph, x = b.graph(), b.input(2)
    flat = GraphBuilder((7,), 0)
    flat.nodes = list(b.nodes)
    alone = dict(run(flat.graph(), x.reshape(-1, 7)))[b.last]
    for how in ("float", "fixed"):
        assert dict(run(graph, x, how))[b.last].shape == (2, 5, 2, 3)
    assert torch.equal(dict(run(graph, x))[b.last].reshape(-1, 3), alone)


def test_mantissa_and_shift():
    m = torch.tensor([1.0, 0.5, 2.0**-40, 1e-9, 1 - 2.0**-40, 3.7, 1000.1], dtype=torch.float64)
    mantissa, shift = mantissa_and_shift(m)
    assert bool(((mantissa >= 1 << 30) & (mantissa < 1 << 31)).all())
    assert torch.allclose(mantissa.double() * 2.0 ** -shift.double(), m, rtol=2.0**-31, atol=0)


def test_mantissa_and_shift_too_small_to_matter_gives_zero():
    y = TensorType(1.0, 5, 8, False)
    node = Requantize(name="r", inputs=("x",), type=y)
    x = TensorType(2.0**-60, 0, 8, False)
    assert compute(node, [all_codes(x)[None]], [x], True).unique().tolist() == [5]


def test_fixed_differs_from_float_only_by_roundings():
    """On random networks the two agree but for a few codes, by one."""
    for seed in range(3):
        b = every_operation(seed)
        graph, x = b.graph(), b.input(2)
        one, other = dict(run(graph, x)), dict(run(graph, x, "fixed"))
        for name in one:
            if isinstance(graph.by_name[name], Convolution) and isinstance(graph.by_name[name].type, TensorType):
                difference = (one[name].int() - other[name].int()).abs()
                assert int(difference.max()) <= 1
                assert float((difference > 0).float().mean()) < 0.01


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3, 12, 11), r"\(2, 3, 12, 11\); it must be \(batch, 3, 12, 12\)"),
        (torch.zeros(3, 12, 12), "must be"),
        (torch.zeros(0, 3, 12, 12), "at least one sample"),
        (torch.zeros(2, 3, 12, 12, dtype=torch.float64), "float32 tensor on the CPU, not torch.float64"),
        (torch.full((1, 3, 12, 12), float("nan")), "NaN"),
        (np.zeros((2, 3, 12, 12), np.float32), "not ndarray"),
    ],
)
def test_bad_input(x, message):
    with pytest.raises(LowbitError, match=message):
        list(run(resnet_like(0).graph(), x))


def test_unknown_requantization():
    b = resnet_like(0)
    with pytest.raises(LowbitError, match="'float', 'fixed'"):
        list(run(b.graph(), b.input(1), "double"))
