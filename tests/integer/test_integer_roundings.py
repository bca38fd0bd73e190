"""The roundings of microcontrollers: TensorFlow Lite's, single and double, and 16-bit multipliers, against plain integers."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from tests.integer_graphs import GraphBuilder, all_pairs_of_bytes, every_operation, f32

from lowbit.integer.arithmetic import Multiplier
from lowbit.integer.graph import TensorType
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import Add, AveragePool, GlobalAveragePool, Quantize, Reduce, Reshape, Subtract
from lowbit.integer.roundings import ROUNDINGS

Y = TensorType(f32(0.037), 3, 8, False)
BOTH = pytest.mark.parametrize("single", [False, True], ids=["double", "single"])


def quantized(m: float) -> tuple[int, int]:
    """TensorFlow Lite's QuantizeMultiplier."""
    fraction, exponent = math.frexp(m)
    q = math.floor(Fraction(fraction) * 2**31 + Fraction(1, 2))
    if q == 2**31:
        q, exponent = q // 2, exponent + 1
    return (q, exponent) if exponent >= -31 else (0, 0)


def scaled(n: int, q: int, exponent: int, single: bool) -> int:
    """Its MultiplyByQuantizedMultiplier, as gemmlowp's two functions or as one shift."""
    if single:
        return (n * q + (1 << (30 - exponent))) >> (31 - exponent)
    product = (n << max(exponent, 0)) * q
    nudged = product + (1 << 30 if product >= 0 else 1 - (1 << 30))
    high = nudged // 2**31 if nudged >= 0 else -(-nudged // 2**31)
    by = max(-exponent, 0)
    mask = (1 << by) - 1
    return (high >> by) + ((high & mask) > (mask >> 1) + (high < 0))


def clip(value: int, y: TensorType) -> int:
    return min(max(value + y.zero_point, y.qn), y.qp)


def name_of(single: bool) -> str:
    return "single-rounding" if single else "double-rounding"


def numbers(random: random.Random, count: int = 60) -> list[int]:
    """Of every size up to 31 bits, and near halves of steps."""
    return [random.choice([-1, 1]) * random.getrandbits(random.randint(0, 30)) for _ in range(count)]


@BOTH
def test_accumulators_of_any_size_times_multipliers_of_any_size(single) -> None:
    choice, middle = random.Random(0), 0
    for _ in range(400):
        unit = f32(2.0 ** choice.uniform(-40, 8) * Y.scale * choice.choice([1, 1, 0.5**20]))
        sign = choice.choice([-1, 1])
        near = round(Y.scale / unit * (choice.randint(0, 254) + 0.5)) if unit < 1e5 else 0
        n = [*numbers(choice), *(near + d for d in (-2, -1, 0, 1, 2) if abs(near) < 2**31 - 4)]
        m = torch.tensor(sign * unit, dtype=torch.float64)
        found = ROUNDINGS[name_of(single)].requantize(torch.tensor(n, dtype=torch.int32), Multiplier(m, m, m), Y)
        expected = [clip(scaled(sign * each, *quantized(unit / Y.scale), single), Y) for each in n]
        assert found.tolist() == expected
        middle += sum(3 < code < 255 for code in expected)
    assert middle > 1000


def test_halves_show_the_difference() -> None:
    """−2.5 is −2 rounded once, −3 rounded twice; +2.5 is 3 in both. 2^-32 of a step is lost in the first of two roundings."""
    y = TensorType(1.0, 0, 8, True)

    def found(name: str, n: list[int], m: float) -> list[int]:
        factor = torch.tensor(m, dtype=torch.float64)
        return ROUNDINGS[name].requantize(torch.tensor(n), Multiplier(factor, factor, factor), y).tolist()

    assert found("single-rounding", [-5, 5, -7], 0.5) == [-2, 3, -3]
    assert found("double-rounding", [-5, 5, -7], 0.5) == [-2, 3, -3]  # an exponent of 0: one rounding, half up
    assert found("single-rounding", [-10, 10, -14], 0.25) == [-2, 3, -3]
    assert found("double-rounding", [-10, 10, -14], 0.25) == [-3, 3, -4]
    assert found("fixed", [-10, 10, -14], 0.25) == [-3, 3, -4]
    assert found("fixed16", [-10, 10, -14], 0.25) == [-2, 3, -3]
    just_below = 0.25 - 2.0**-33
    assert found("single-rounding", [2], just_below) == [0] and found("double-rounding", [2], just_below) == [1]


@BOTH
@pytest.mark.parametrize("kind", [Add, Subtract])
@pytest.mark.parametrize("scales", [(0.031, 0.0522, 0.071), (0.25, 0.5, 0.5), (0.9, 0.0011, 1.0)])
def test_sums_of_every_pair_of_bytes(kind, scales, single) -> None:
    b = GraphBuilder((256, 256))
    b.inputs = {"image": b.shape, "other": b.shape}
    types = [TensorType(f32(s), z, 8, signed) for s, z, signed in ((scales[0], 17, False), (scales[1], -3, True))]
    operands = [b.append(Quantize, name, type=each) for name, each in zip(b.inputs, types)]
    y = TensorType(f32(scales[2]), 9, 8, False)
    name = b.append(kind, *operands, type=y)
    pairs = all_pairs_of_bytes()
    a, c = pairs[:, :256], pairs[:, 256:]
    x = {"image": ((a + 128 - 17) * types[0].scale)[None], "other": ((c + 3) * types[1].scale)[None]}
    codes = IntegerNetwork(b.graph()).codes(x, name_of(single))
    assert codes[operands[0]].unique().numel() == codes[operands[1]].unique().numel() == 256
    twice = 2 * max(t.scale for t in types)
    first, second = (
        {int(q): scaled((q - t.zero_point) << 20, *quantized(t.scale / twice), single) for q in range(t.qn, t.qp + 1)}
        for t in types
    )
    last, sign = quantized(twice / (2**20 * y.scale)), 1 if kind is Add else -1
    pairs = zip(*(codes[each].flatten().tolist() for each in operands))
    assert codes[name].flatten().tolist() == [
        clip(scaled(first[p] + sign * second[q], *last, single), y) for p, q in pairs
    ]


@BOTH
@pytest.mark.parametrize("space", [(5, 5), (8, 8), (25, 5), (1, 3), (4,)])
def test_means_divide_the_multiplier(space, single) -> None:
    b = GraphBuilder((3, *space), seed=math.prod(space))
    x = b.quantize(8, signed=False, zero=100)
    pooled = b.same_range(GlobalAveragePool, x, bits=8, signed=True, zero=-5, shrink=3)
    mean = b.same_range(Reduce, x, bits=8, shrink=3, axes=(2,), keepdim=False, function="mean")
    total = b.append(Reduce, x, type=b.grid(3.0, 8, True), axes=(2,), keepdim=True, function="sum")
    b.outputs = (pooled, mean, total)
    graph = b.graph()
    codes = IntegerNetwork(graph).codes(b.input(9), name_of(single))
    for name, axes, count in (
        (pooled, tuple(range(2, 2 + len(space))), math.prod(space)),
        (mean, 2, space[0]),
        (total, 2, 1),
    ):
        y, steps = graph.by_name[name].type, codes[x].long() - 100
        q, exponent = quantized(graph.by_name[x].type.scale / y.scale)
        by = min(count.bit_length() - 1, 31 + exponent)
        q, exponent = (q << by) // count, exponent - by
        sums = steps.sum(axes).flatten().tolist()
        assert codes[name].flatten().tolist() == [clip(scaled(n, q, exponent, single), y) for n in sums]


@BOTH
def test_layers_and_windows_take_the_numbers_of_the_file(single) -> None:
    """Scales are multiplied in float64; windows have weights of f(1 / c)."""
    b = GraphBuilder((3, 6, 6), seed=7)
    x = b.quantize(8, signed=False, zero=90)
    window = b.same_range(AveragePool, x, kernel=(3, 2), stride=(2, 2), padding=((1, 1), (0, 1)), zero=4)
    flat = b.append(Reshape, x, shape=(-1,))
    one, several = (b.linear(flat, 7, float_output=False, per_channel=each) for each in (False, True))
    b.outputs = (window, one, several)
    graph = b.graph()
    codes = IntegerNetwork(graph).codes(b.input(30), name_of(single))
    kind = graph.by_name[x].type
    for name in (one, several):
        node = graph.by_name[name]
        sums = (codes[flat].double() - 90) @ node.weight.codes.double().T + node.bias
        for row, scale in enumerate(node.weight.scale.expand(7).tolist()):
            last = quantized(kind.scale * scale / node.type.scale)
            expected = [clip(scaled(int(n), *last, single), node.type) for n in sums[:, row]]
            assert codes[name][:, row].tolist() == expected
    y = graph.by_name[window].type
    padded = torch.nn.functional.pad(codes[x].long() - 90, (0, 1, 1, 1))
    sums = padded.unfold(2, 3, 2).unfold(3, 2, 2).sum((-2, -1)).flatten().tolist()
    last = quantized(kind.scale * f32(1 / 6) / y.scale)
    assert codes[window].flatten().tolist() == [clip(scaled(n, *last, single), y) for n in sums]


def multiplier16(m: Fraction) -> tuple[int, int]:
    k = 0
    while abs(m) * Fraction(2) ** k < 2**15:
        k += 1
    while abs(m) * Fraction(2) ** k >= 2**16:
        k -= 1
    q = round(abs(m) * Fraction(2) ** k)
    return (q, k) if q < 2**16 else (q // 2, k - 1)


def test_16_bit_multipliers() -> None:
    choice, middle = random.Random(1), 0
    for _ in range(300):
        m = choice.choice([-1, 1]) * 2.0 ** choice.uniform(-40, 20)
        n = [*numbers(choice), *(round(d / m) for d in range(-9, 9) if abs(d / m) < 2**31)]
        factor = torch.tensor(m, dtype=torch.float64)
        found = ROUNDINGS["fixed16"].requantize(torch.tensor(n), Multiplier(factor, factor, factor), Y)
        q, k = multiplier16(Fraction(m))
        sign = 1 if m > 0 else -1
        exact = [Fraction(sign * each * q) / Fraction(2) ** k for each in n]
        assert found.tolist() == [clip(math.floor(each + Fraction(1, 2)), Y) for each in exact]
        middle += sum(0 < code < 255 and code != 3 for code in found.tolist())
    assert middle > 500


@pytest.mark.parametrize("scales", [(0.031, 0.0522, 0.071), (0.25, 0.5, 0.5), (3e4, 1.0, 0.2), (1e-9, 1e-8, 0.3)])
def test_16_bit_sums(scales) -> None:
    factors = [Fraction(scales[0] / scales[2]), -Fraction(scales[1] / scales[2])]
    given = [Multiplier(*[torch.tensor(float(f), dtype=torch.float64)] * 3) for f in factors]
    n = torch.randint(-255, 256, (2, 500), generator=torch.Generator().manual_seed(0))
    found = ROUNDINGS["fixed16"].weighted_sum([*n], given, Y)
    k = max(1, multiplier16(max(factors, key=abs))[1])
    q = [max(-65535, min(65535, round(f * Fraction(2) ** k))) if k <= 47 else 0 for f in factors]
    expected = [
        clip(math.floor(Fraction(a * q[0] + c * q[1]) / Fraction(2) ** k + Fraction(1, 2)), Y)
        for a, c in zip(*n.tolist())
    ]
    assert found.tolist() == expected


@pytest.mark.parametrize("rounding", ["fixed16", "double-rounding", "single-rounding"])
def test_every_operation_is_at_most_a_step_from_fixed(rounding) -> None:
    """Each from the same codes before it: 16-bit multipliers are off by 2^-17 of a code's value, two roundings by half a step."""
    b = every_operation(5, bits=8)
    graph, x = b.graph(), b.input(4)
    fixed = IntegerNetwork(graph).codes(x, "fixed")
    changed = 0
    for node in graph.nodes[1:-1]:
        inputs = [fixed[name] for name in node.inputs]
        found = node.execute(inputs, graph.input_types(node), ROUNDINGS[rounding]).int()
        assert int((found - fixed[node.name].int()).abs().max()) <= 1, node.name
        changed += int((found != fixed[node.name].int()).sum())
    assert changed or rounding == "single-rounding"  # which differs from "fixed" at negative halves alone


def test_a_product_wider_than_64_bits_in_a_sum_of_16_bit_codes() -> None:
    kind = TensorType(f32(0.3), 0, 16, True)
    y = replace(kind, scale=f32(0.6))
    n = torch.tensor([-(2**15), 2**15 - 1, 12345, -1])
    m = Multiplier(*[torch.tensor(0.5, dtype=torch.float64)] * 2, torch.tensor(kind.scale, dtype=torch.float64))
    found = ROUNDINGS["double-rounding"].weighted_sum([n, n], [m, m], y)
    assert found.tolist() == n.tolist()


def test_powers_of_two_are_shifted_with_halves_to_even() -> None:
    choice, shift = random.Random(0), ROUNDINGS["shift"]
    n = numbers(choice, 200) + [sign * ((2 * k + 1) << 6) for k in range(40) for sign in (1, -1)]
    for exponent in (-40, -32, -31, -9, -7, -1, 0, 3):
        for sign in (1, -1):
            factor = torch.tensor(sign * 2.0**exponent, dtype=torch.float64)
            found = shift.requantize(torch.tensor(n, dtype=torch.int32), Multiplier(factor.float(), factor, factor), Y)
            assert found.tolist() == [clip(round(Fraction(sign * each) * Fraction(2) ** exponent), Y) for each in n]


def test_other_multipliers_and_distant_ones_are_those_of_fixed() -> None:
    choice = random.Random(0)
    n = [torch.tensor([choice.randint(-255, 255) for _ in range(300)], dtype=torch.int32) for _ in range(2)]

    def factors(*values: float) -> list[Multiplier]:
        exact = [torch.tensor(value, dtype=torch.float64) for value in values]
        return [Multiplier(each.float(), each, each) for each in exact]

    for values in ((0.3, 0.5), (2.0**-20, 2.0**-4), (0.7, -1.3)):
        both = [ROUNDINGS[name].weighted_sum(n, factors(*values), Y) for name in ("shift", "fixed")]
        assert torch.equal(*both)
    a, b = (each.tolist() for each in n)
    for values in ((0.5, 0.25), (2.0**-10, 2.0**-1), (-(2.0**-3), 2.0**-6)):
        found = ROUNDINGS["shift"].weighted_sum(n, factors(*values), Y)
        exact = [round(Fraction(values[0]) * p + Fraction(values[1]) * q) for p, q in zip(a, b)]
        assert found.tolist() == [clip(each, Y) for each in exact]
    per_channel = Multiplier(torch.tensor([0.5, 0.3]), *[torch.tensor([0.5, 0.3], dtype=torch.float64)] * 2)
    sums = torch.stack(n, 1)
    assert torch.equal(*(ROUNDINGS[name].requantize(sums, per_channel, Y) for name in ("shift", "fixed")))
