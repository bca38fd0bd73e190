"""Normalization and softmax against their definitions in Python's integers and numpy, and against torch in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.format_graphs import MASK, grids, normalizations, softmaxes
from tests.integer.test_integer_tensors import all_values, check_files, quantized
from tests.integer.test_integer_tolerance import excess
from tests.integer_graphs import f32
from torch.nn import functional as F

from lowbit.errors import LowbitError
from lowbit.integer.graph import Graph, Node, TensorType
from lowbit.integer.ops import MaskedSoftmax, MatMul, Normalize, Quantize, Softmax, Transpose
from lowbit.integer.ops.normalize import integer_root
from lowbit.integer.ops.softmax import exponentials
from lowbit.integer.run import run
from lowbit.integer.validate import validate

X = TensorType(f32(0.0313), 117, 8, False)
SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)


def away_from_zero(numerator: int, denominator: int) -> int:
    return (1 if numerator > 0 else -1) * ((2 * abs(numerator) + denominator) // (2 * denominator))


def clip(steps: float, y: TensorType) -> int:
    return min(max(int(steps) + y.zero_point, y.qn), y.qp)


def norm_block(node: Normalize, n: list[int], gain: list, shift: list, x: TensorType, fixed: bool) -> list[int]:
    """One block, from the definition; gain and shift are None or float32 numbers of its elements."""
    y, c = node.type, node.count
    first = sum(n) if node.centered else 0
    variance = c * sum(v * v for v in n) - first * first
    extra = c * c * node.eps / (x.scale * x.scale)
    found = []
    if not fixed:
        single = np.float32
        t = np.sqrt(np.float64(variance) + extra) * np.float64(y.scale)
        a = single(1 / t) if node.centered else single(c / t)
        for v, g, b in zip(n, gain, shift):
            p = (single(c * v) - single(first) if node.centered else single(v)) * a
            p = p if g is None else p * single(g)
            p = p if b is None else p + single(b) / single(y.scale)
            assert p.dtype == single
            found.append(clip(np.rint(p), y))
        return found
    reach = max(abs(x.qn - x.zero_point), abs(x.qp - x.zero_point))
    h = 0
    while ((c * reach) ** 2 + extra) * 2.0 ** (h + 2) < 2.0**62:
        h += 2
    root = max(1, math.isqrt((variance << h) + round(extra * 2.0**h)))
    gains, shifts = ([0.0 if v is None else float(v) for v in values] for values in (gain, shift))
    gains = [1.0] * c if gain[0] is None else gains
    gains, shifts = [g / y.scale * 2.0**-20 for g in gains], [b / y.scale for b in shifts]
    k = 62
    while max(round(abs(g) * 2.0**k) for g in gains) >= 2**31 or max(round(abs(b) * 2.0**k) for b in shifts) >= 2**61:
        k -= 1
    for v, g, b in zip(n, gains, shifts):
        q = away_from_zero((c * v - first) << (h // 2 + 20), root)
        found.append(clip(away_from_zero(q * round(g * 2.0**k) + round(b * 2.0**k), 2**k), y))
    return found


@SETTINGS
@given(grids((0.031, 0.25)), grids((0.0131, 0.02)), st.booleans(), st.booleans(), st.integers(0, 2**16), st.data())
def test_normalization(x, y, centered, fixed, seed, data):
    generator = torch.Generator().manual_seed(seed)
    count = data.draw(st.sampled_from([1, 2, 9, 40]))
    gain, shift = (
        torch.randn(count, generator=generator) if data.draw(st.booleans()) else None for _ in ("gain", "shift")
    )
    eps = data.draw(st.sampled_from([1e-5, 1e-12, 0.3]))
    node = Normalize(name="y", inputs=("a",), type=y, count=count, centered=centered, eps=eps, gain=gain, shift=shift)
    values = all_values(quantized({"a": x}, {"a": (3, count)}, node), 2, "fixed" if fixed else "float")
    parts = [[None] * count if each is None else each.tolist() for each in (gain, shift)]
    for codes, got in zip(values["a"].reshape(-1, count).tolist(), values["y"].reshape(-1, count).tolist()):
        assert got == norm_block(node, [q - x.zero_point for q in codes], *parts, x, fixed)


def parameters(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).abs() + 0.2


G, B = parameters(12), parameters(13)[:12] - 0.5
NORMS: dict[str, tuple[dict, Callable[[torch.Tensor], torch.Tensor]]] = {
    "layer-norm": (
        {"count": 12, "centered": True, "eps": 1e-5, "gain": G, "shift": B},
        lambda x: F.layer_norm(x, (12,), G.double(), B.double()),
    ),
    "layer-norm over two dimensions": (
        {"count": 60, "centered": True, "eps": 1e-6},
        lambda x: F.layer_norm(x, (5, 12), eps=1e-6),
    ),
    "group-norm": (
        {"count": 120, "centered": True, "eps": 1e-5, "gain": G[:4].reshape(4, 1, 1), "shift": B[:4].reshape(4, 1, 1)},
        lambda x: F.group_norm(x, 2, G[:4].double(), B[:4].double()),
    ),
    "instance-norm": ({"count": 60, "centered": True, "eps": 1e-5}, F.instance_norm),
    "RMS-norm": (
        {"count": 12, "centered": False, "eps": 1e-5, "gain": G},
        lambda x: F.rms_norm(x, (12,), G.double(), 1e-5),
    ),
    "L2 normalization": (
        {"count": 12, "centered": False, "eps": 1e-24, "gain": torch.full((1,), 12**-0.5)},
        lambda x: F.normalize(x, dim=-1),
    ),
}


@pytest.mark.parametrize("rounding", ["float", "fixed"])
@pytest.mark.parametrize("name", NORMS)
def test_normalization_is_that_of_torch(name, rounding):
    """Within the tolerance of a tie, on rows of all spreads: constant ones, almost constant ones, and wide ones."""
    fields, function = NORMS[name]
    y = TensorType(f32(0.0131), -3, 8, True)
    node = Normalize(name="y", inputs=("a",), type=y, **fields)
    graph = quantized({"a": X}, {"a": (4, 5, 12)}, node)
    generator = torch.Generator().manual_seed(1)
    steps = torch.randint(-117, 139, (200, 4, 5, 12), generator=generator)
    steps[:20], steps[20:60] = steps[:20, :, :, :1], steps[20:60, :, :, :1].clamp(-100, 100) + steps[20:60] % 2
    values = dict(run(graph, {"a float": steps * X.scale}, rounding))
    real = (values["a"].double() - X.zero_point) * X.scale
    tolerance = node.tolerance([graph.by_name["a"].type])
    over, undecided = excess(values["y"], function(real), y, tolerance)
    assert tolerance < 1e-3 and over <= (tolerance if rounding == "float" else 0.01)
    assert undecided < 0.01 * values["y"].numel()


def test_long_blocks_are_within_their_wider_tolerance():
    """80,000 elements: C·n passes 2^24, so that differences are rounded."""
    y = TensorType(f32(0.031), 0, 8, True)
    node = Normalize(name="y", inputs=("a",), type=y, count=80_000, centered=True, eps=1e-5)
    graph = quantized({"a": X}, {"a": (80_000,)}, node)
    kind = graph.by_name["a"].type
    steps = torch.randint(-117, 139, (8, 80_000), generator=torch.Generator().manual_seed(0))
    steps[4:] = 90 + (steps[4:] > 137)
    values = dict(run(graph, {"a float": steps * X.scale}))
    assert not node.differences_are_exact(kind) and 0.001 < node.tolerance([kind]) < 0.5
    exact = F.layer_norm(steps.double() * X.scale, (80_000,))
    over, _ = excess(values["y"], exact, y, 0.0)
    assert over <= node.tolerance([kind])


def test_the_integer_root_is_the_floor():
    roots = torch.tensor([0, 1, 2, 3, 2**20, 2**26 + 1, 2**31 - 1, 3037000499 >> 1])
    for near in (-1, 0, 1):
        w = (roots * roots + near).clamp(0, 2**62)
        assert integer_root(w).tolist() == [math.isqrt(each) for each in w.tolist()]


@SETTINGS
@given(grids((0.031, 0.25, 1.0)), grids((1 / 255, 0.03, 0.0004)), st.booleans(), st.sampled_from([1, 2, 30, 300]))
def test_softmax(x, y, fixed, length):
    node = Softmax(name="y", inputs=("a",), type=y, axis=1, table=exponentials(x, length))
    values = all_values(quantized({"a": x}, {"a": (length, 2)}, node), 2, "fixed" if fixed else "float")
    table = node.table.tolist()
    k = 0
    while k < 29 and round(2.0 ** (k + 1) / y.scale) < 2**31:
        k += 1
    m = round(2.0**k / y.scale)
    rows = (each.movedim(1, -1).reshape(-1, length).tolist() for each in (values["a"], values["y"]))
    for codes, got in zip(*rows):
        e = [table[max(codes) - q] for q in codes]
        if fixed:
            want = [clip((2 * each * m + (sum(e) << k)) // (sum(e) << (k + 1)), y) for each in e]
        else:
            share = np.float32(1) / np.float32(y.scale) / np.float32(sum(e))
            want = [clip(np.rint(np.float32(each) * share), y) for each in e]
        assert got == want


@SETTINGS
@given(grids((0.031, 0.25, 1.0)), grids((1 / 255, 0.03, 0.0004)), st.booleans(), st.sampled_from([1, 2, 30]))
def test_a_masked_softmax_is_that_of_what_is_shown(x, y, fixed, length):
    """Rows of any length, some of which show nothing: what is hidden has the code of 0."""
    fields = {"type": y, "axis": 2, "table": exponentials(x, length)}
    nodes = (
        Quantize(name="a", inputs=("a float",), type=x),
        Quantize(name="m", inputs=("mask",), type=MASK),
        MaskedSoftmax(name="y", inputs=("a", "m"), **fields),
    )
    graph = validate(Graph(inputs={"a float": (5, length), "mask": (1, length)}, nodes=nodes, outputs=("y",)))
    generator = torch.Generator().manual_seed(length)
    codes = torch.randint(x.qn, x.qp + 1, (3, 5, length), generator=generator)
    mask = torch.randint(0, 2, (3, 1, length), generator=generator).float()
    values = dict(
        run(graph, {"a float": (codes - x.zero_point) * x.scale, "mask": mask}, "fixed" if fixed else "float")
    )
    for scores, shown, got in zip(
        values["a"].flatten(0, 1), mask.expand(3, 5, length).flatten(0, 1), values["y"].flatten(0, 1)
    ):
        seen = shown.bool()
        assert bool((got[~seen] == clip(0, y)).all())
        if bool(seen.any()):
            plain = Softmax(name="y", inputs=("a",), **fields)
            alone = quantized({"a": x}, {"a": (1, int(seen.sum()))}, plain)
            rows = dict(
                run(
                    alone,
                    {"a float": (scores[seen].double() - x.zero_point).float()[None, None] * x.scale},
                    "fixed" if fixed else "float",
                )
            )
            assert torch.equal(rows["y"].flatten(), got[seen])


@pytest.mark.parametrize("length", [1, 197, 256, 257, 5000])
def test_exponentials(length):
    """The table is the exponential to half a unit, and its sums are exact: in float32 up to 256 elements."""
    table = exponentials(X, length)
    exact = int(table[0]) * np.exp(-X.scale * np.arange(256))
    assert np.abs(table.numpy() - exact).max() <= 0.5 + 1e-6
    assert int(table[0]) == {1: 2**23, 197: 2**16, 256: 2**16, 257: 2**16, 5000: 2**16}[length]
    assert int(exponentials(X, 1 << 20)[0]) << 20 == 1 << 30


@pytest.mark.parametrize("rounding", ["float", "fixed"])
@pytest.mark.parametrize(("length", "scale"), [(197, 1 / 255), (12, 1 / 255), (197, 0.001)])
def test_softmax_is_that_of_torch(length, scale, rounding):
    """Within the tolerance of a tie, flat rows and steep ones; the sum of the shares is 1."""
    x, y = replace(X, scale=f32(0.05)), TensorType(f32(scale), 0, 8, False)
    node = Softmax(name="y", inputs=("a",), type=y, axis=2, table=exponentials(x, length))
    graph = quantized({"a": x}, {"a": (4, length)}, node)
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(100, 4, 1, generator=generator)
    steps = ((torch.rand(100, 4, length, generator=generator) * 256).floor() - 117) * spread
    values = dict(run(graph, {"a float": steps * x.scale}, rounding))
    exact = torch.softmax((values["a"].double() - x.zero_point) * x.scale, -1)
    kind = graph.by_name["a"].type
    over, _ = excess(values["y"], exact, y, 0.0)
    assert over <= min(
        node.tolerance([kind]), 0.1
    )  # the tolerance is of rows of which all exponentials are half a unit off
    sums = values["y"].double().sum(-1) * y.scale
    clipped = (values["y"] == y.qp).any(-1)
    assert float((sums[~clipped] - 1).abs().max()) <= (length + 1) * y.scale / 2


@SETTINGS
@given(st.one_of(normalizations(), softmaxes()))
def test_files(tmp_path_factory, b):
    check_files(tmp_path_factory.mktemp("files", numbered=True), b)


@pytest.mark.parametrize("rounding", ["float", "fixed"])
@pytest.mark.parametrize("budget", [7, 40, 130])
def test_parts_of_samples_are_computed_apart(rounding, budget, monkeypatch):
    """In blocks of one sample, or of a few rows of one, the same."""
    norm = {"inputs": ("a",), "type": replace(X, scale=0.03125), "centered": True, "eps": 1e-5}
    nodes: list[Node] = [
        Normalize(name="rows", count=12, gain=G, shift=parameters(6, 1, 1), **norm),
        Normalize(name="groups", count=2 * 36, gain=parameters(6, 1, 1), shift=parameters(6, 3, 12), **norm),
        Normalize(name="odd", count=54, **norm),
        Normalize(name="whole", count=216, **norm),
        Softmax(name="s", inputs=("rows",), type=TensorType(1 / 256, 0, 8, False), axis=2, table=exponentials(X, 3)),
        Transpose(name="t", inputs=("a",), order=(1, 3, 2)),
        MatMul(name="p", inputs=("a", "t"), type=X),
    ]
    graph = quantized({"a": X}, {"a": (6, 3, 12)}, *nodes)
    expected = all_values(graph, 5, rounding)
    for module in ("normalize", "softmax", "matmul"):
        monkeypatch.setattr(f"lowbit.integer.ops.{module}._BLOCK_ELEMENTS", budget)
    assert all(torch.equal(value, expected[name]) for name, value in all_values(graph, 5, rounding).items())


BYTE = TensorType(0.5, 0, 8, False)
NORM = {"name": "big", "inputs": ("in",), "type": BYTE, "count": 4, "centered": True, "eps": 1e-5}
SOFT = {"name": "big", "inputs": ("in",), "type": TensorType(1 / 256, 0, 8, False), "axis": 1}
TABLE = exponentials(BYTE, 4)
WRONG = {
    "does not divide into blocks of 5": Normalize(**NORM | {"count": 5}),
    "blocks of 0": Normalize(**NORM | {"count": 0}),
    "gain of shape \\(3,\\)": Normalize(**NORM, gain=torch.ones(3)),
    "shift of shape \\(2, 6, 4\\)": Normalize(**NORM, shift=torch.ones(2, 6, 4)),
    "eps 0.0 must be": Normalize(**NORM | {"eps": 0.0}),
    "eps nan must be": Normalize(**NORM | {"eps": math.nan}),
    "eps is 1.6e\\+301": Normalize(**NORM | {"eps": 2.5e299}),
    "eps is 3.16202e-322 beside": Normalize(**NORM | {"eps": 5e-324}),
    "gain must be float32 and finite": Normalize(**NORM, gain=torch.tensor([math.inf])),
    "shift must be float32 and finite, not torch.float64": Normalize(**NORM, shift=torch.ones(4).double()),
    "gain reaches more than": Normalize(**NORM, gain=torch.tensor([1e9])),
    "no dimension 4": Softmax(**SOFT | {"axis": 4}, table=TABLE),
    "has a table": Softmax(**SOFT, table=None),
    "int32 with 256 entries": Softmax(**SOFT, table=TABLE[1:]),
    "must fall from 1": Softmax(**SOFT, table=TABLE.flip(0)),
    "not in 2\\^-20": Softmax(**SOFT | {"type": replace(BYTE, scale=32.0)}, table=TABLE),
    "accumulator can reach": Softmax(**SOFT | {"axis": 2}, table=torch.full((256,), 2**23, dtype=torch.int32)),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_fields_are_named(message):
    first = Quantize(name="in", inputs=("image",), type=BYTE)
    shape = (1, 300, 4) if "reach" in message and "accumulator" in message else (1, 6, 4)
    with pytest.raises(LowbitError, match=f"'big'.*{message}"):
        validate(Graph(inputs={"image": shape}, nodes=(first, WRONG[message]), outputs=("big",)))


def test_blocks_too_long_for_float64():
    first = Quantize(name="in", inputs=("image",), type=TensorType(0.5, 0, 14, False))
    node = Normalize(name="big", inputs=("in",), type=BYTE, count=1 << 13, centered=True, eps=1e-5)
    with pytest.raises(LowbitError, match=r"'big': its sums reach .* up to 2\^53"):
        validate(Graph(inputs={"image": (1 << 13,)}, nodes=(first, node), outputs=("big",)))
