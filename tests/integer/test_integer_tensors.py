"""Operations on tensors of any rank, against Python's integers, fractions and torch's own movement of numbers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.format_graphs import broadcasts, indices, matrix_products, moves, over_the_range, reductions, sentences
from tests.integer.test_integer_run import float32, requant_fixed, requant_float
from tests.integer_graphs import GraphBuilder, f32

from lowbit.errors import LowbitError
from lowbit.formats import FORMATS
from lowbit.formats import json as json_format
from lowbit.integer import file, limits
from lowbit.integer import run as run_file
from lowbit.integer.graph import FloatType, Graph, Node, TensorType
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import (
    Add,
    Concatenate,
    Constant,
    Embedding,
    Expand,
    Extremum,
    IndexSelect,
    MatMul,
    Multiply,
    Pad,
    Quantize,
    Reduce,
    Subtract,
    Transpose,
)
from lowbit.integer.run import run
from lowbit.integer.validate import validate

A, B = TensorType(f32(0.031), 17, 8, False), TensorType(f32(0.007), -3, 6, True)
Y, BYTE = TensorType(f32(0.05), 9, 8, False), TensorType(0.5, 0, 8, False)
SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)


def quantized(kinds: dict[str, TensorType], shapes: dict[str, tuple[int, ...]], *nodes: Node) -> Graph:
    """Nodes behind inputs that are quantized to these types."""
    inputs = {f"{name} float": shape for name, shape in shapes.items()}
    first = [Quantize(name=name, inputs=(f"{name} float",), type=kind) for name, kind in kinds.items()]
    return validate(Graph(inputs=inputs, nodes=(*first, *nodes), outputs=(nodes[-1].name,)))


def all_values(graph: Graph, batch: int = 2, rounding: str = "float") -> dict[str, torch.Tensor]:
    generator, x = torch.Generator().manual_seed(0), {}
    for node in graph.nodes:
        if isinstance(node, Quantize):
            y, shape = node.type, (batch, *graph.inputs[node.inputs[0]])
            codes = torch.randint(y.qn, y.qp + 1, shape, generator=generator)
            x[node.inputs[0]] = (codes - y.zero_point) * y.scale
    return dict(run(graph, x, rounding))


@pytest.mark.parametrize("rounding", ["float", "fixed"])
@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 4), (4, 2)), ((2, 3, 5), (2, 5, 4)), ((2, 1, 3, 2), (3, 2, 1)), ((4, 7), (3, 1, 7, 2)), ((1, 1), (1, 1))],
)
def test_matrix_product(a, b, rounding):
    """Every element from its own row and column, in whole numbers."""
    node = MatMul(name="p", inputs=("a", "b"), type=Y)
    graph = quantized({"a": A, "b": B}, {"a": a, "b": b}, node)
    values = all_values(graph, rounding=rounding)
    shape = graph.by_name["p"].shape_of()
    assert shape == tuple(torch.matmul(torch.zeros(a), torch.zeros(b)).shape)
    first, second = (
        values[name].long().reshape(2, *[1] * (len(shape) - len(sizes)), *sizes).expand(2, *shape[:-2], *sizes[-2:])
        for name, sizes in (("a", a), ("b", b))
    )
    m = float32(Fraction(float32(Fraction(A.scale) * Fraction(B.scale))) / Fraction(Y.scale))
    for place in itertools.product(range(2), *map(range, shape)):
        *leading, i, j = place
        row, column = first[(*leading, i)].tolist(), second[(*leading, slice(None), j)].tolist()
        n = sum((p - 17) * (q + 3) for p, q in zip(row, column))
        expected = requant_float(n, m, Y) if rounding == "float" else requant_fixed(
            n, Fraction(A.scale * B.scale / Y.scale), Y
        )  # fmt: skip
        assert int(values["p"][place]) == expected


def test_matrix_product_as_floats_and_in_long_sums():
    """Sums beyond 2^24 are exact; a float output is the sum times the product of the scales."""
    kinds = {"a": replace(A, zero_point=0), "b": replace(A, zero_point=0)}
    node = MatMul(name="p", inputs=("a", "b"), type=FloatType())
    values = all_values(quantized(kinds, {"a": (2, 3000), "b": (3000, 2)}, node))
    exact = values["a"].long() @ values["b"].long()
    assert int(exact.min()) > 1 << 24
    assert torch.equal(values["p"], exact.float() * (torch.tensor(A.scale) * torch.tensor(A.scale)))


def test_matrix_products_are_costed_and_bounded():
    node = MatMul(name="p", inputs=("a", "b"), type=Y)
    network = IntegerNetwork(quantized({"a": A, "b": B}, {"a": (3, 5, 4), "b": (4, 2)}, node))
    row = network.costs()[-1]
    assert (row.macs, row.bit_operations, row.weight_bytes) == (3 * 5 * 2 * 4, 120 * 8 * 6, 0)
    assert node.accumulator_bound([network.graph.by_name[name].type for name in "ab"]) == 4 * 238 * 34
    with pytest.raises(LowbitError, match="'p': its accumulator can reach"):
        quantized({"a": A, "b": B}, {"a": (1, 300_000), "b": (300_000, 1)}, node)


MOVES = {
    "transpose": (Transpose, {"order": (3, 1, 2)}, lambda x: x.permute(0, 3, 1, 2)),
    "expand": (Expand, {"shape": (3, 4, 5)}, lambda x: x.expand(-1, 3, 4, 5)),
    "flip": (IndexSelect, {"axis": 3, "places": (4, 3, 2, 1, 0)}, lambda x: x.flip(3)),
    "roll": (IndexSelect, {"axis": 2, "places": (3, 0, 1, 2)}, lambda x: x.roll(1, 2)),
    "concatenate": (Concatenate, {"axis": 3, "inputs": ("a", "a")}, lambda x: torch.cat([x, x], 3)),
    "pad": (
        Pad,
        {"padding": ((1, 0), (0, 2), (3, 0))},
        lambda x: torch.nn.functional.pad(x, (3, 0, 0, 2, 1, 0), value=17),
    ),
    "largest": (Extremum, {"axes": (1, 3), "keepdim": False, "function": "maximum"}, lambda x: x.amax((1, 3))),
    "smallest": (Extremum, {"axes": (2,), "keepdim": True, "function": "minimum"}, lambda x: x.amin(2, keepdim=True)),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves(name):
    kind, fields, expected = MOVES[name]
    node = kind(**{"name": "y", "inputs": ("a",)} | fields)
    values = all_values(quantized({"a": A}, {"a": (1, 4, 5)}, node))
    assert torch.equal(values["y"], expected(values["a"]))


@pytest.mark.parametrize("rounding", ["float", "fixed"])
@pytest.mark.parametrize("function", Reduce.functions)
def test_means_and_sums(function, rounding):
    node = Reduce(name="y", inputs=("a",), type=Y, axes=(1, 3), keepdim=False, function=function)
    values = all_values(quantized({"a": A}, {"a": (3, 4, 2)}, node), rounding=rounding)
    sums = (values["a"].long() - 17).sum((1, 3))
    if function == "mean":
        single = float32(Fraction(A.scale) / Fraction(float32(Fraction(Y.scale) * 6)))
        exact = Fraction(A.scale / (6 * Y.scale))
    else:
        single, exact = float32(Fraction(A.scale) / Fraction(Y.scale)), Fraction(A.scale / Y.scale)
    of = (lambda n: requant_float(n, single, Y)) if rounding == "float" else (lambda n: requant_fixed(n, exact, Y))
    assert values["y"].shape == (2, 4) and values["y"].flatten().tolist() == list(map(of, sums.flatten().tolist()))


def test_a_constant_is_the_same_for_every_sample_and_takes_its_bits():
    codes = torch.arange(-30, 30, dtype=torch.int16).reshape(3, 20)
    nodes = (
        Constant(name="c", inputs=(), type=B, codes=codes),
        Add(name="y", inputs=("a", "c"), type=Y),
    )
    network = IntegerNetwork(quantized({"a": A}, {"a": (20,)}, *nodes))
    values = all_values(network.graph, batch=4)
    assert torch.equal(values["c"], codes.to(torch.int8).expand(4, 3, 20)) and values["y"].shape == (4, 3, 20)
    row = network.costs()[1]
    assert (row.parameters, row.weight_bytes, row.macs) == (60, 60 * 6 // 8 + 4, 0)


@pytest.mark.parametrize("rounding", ["float", "fixed"])
@pytest.mark.parametrize("kind", [Add, Subtract, Multiply])
@pytest.mark.parametrize(("a", "b"), [((4,), (3, 1)), ((2, 3, 1), (4,)), ((1, 5), (3, 2, 1)), ((1,), (2, 2))])
def test_broadcasting_is_expansion(kind, a, b, rounding):
    """As if both operands were expanded first, elements in an order that the sum's rounding does not depend on."""
    values = all_values(
        quantized({"a": A, "b": B}, {"a": a, "b": b}, kind(name="y", inputs=("a", "b"), type=Y)), 3, rounding
    )
    shape = torch.broadcast_shapes(a, b)
    same = [
        values[name].reshape(3, *[1] * (len(shape) - len(sizes)), *sizes).expand(3, *shape).contiguous()
        for name, sizes in (("a", a), ("b", b))
    ]
    whole = quantized({"a": A, "b": B}, {"a": shape, "b": shape}, kind(name="y", inputs=("a", "b"), type=Y))
    x = {f"{name} float": (codes.float() - t.zero_point) * t.scale for name, codes, t in zip("ab", same, (A, B))}
    assert torch.equal(dict(run(whole, x, rounding))["y"], values["y"])


def check_files(folder, b):
    """Files of both kinds give the same codes, and the same bytes when they are written again."""
    graph, x = b.graph(), over_the_range(b)
    for write, load in ((file.save, file.load), (json_format.write, json_format.load)):
        write(graph, folder / "one")
        again = load(folder / "one")
        for rounding in ("float", "fixed"):
            assert all(torch.equal(p, q) for (_, p), (_, q) in zip(run(graph, x, rounding), run(again, x, rounding)))
        write(again, folder / "two")
        assert (folder / "one").read_bytes() == (folder / "two").read_bytes()


@SETTINGS
@given(st.one_of(moves(), broadcasts(), matrix_products(), reductions()))
def test_files(tmp_path_factory, b):
    check_files(tmp_path_factory.mktemp("files", numbered=True), b)


@pytest.mark.parametrize("budget", [7, 60])
def test_broadcasting_in_blocks_is_the_same(budget, monkeypatch):
    b = GraphBuilder((4, 1, 6))
    b.inputs = {"image": (4, 1, 6), "other": (5, 1)}
    operands = [b.append(Quantize, name, type=kind) for name, kind in zip(b.inputs, (A, B))]
    b.outputs = tuple(b.append(kind, *operands, type=Y) for kind in (Add, Subtract, Multiply))
    graph, x = b.graph(), over_the_range(b)
    expected = dict(run(graph, x))
    monkeypatch.setattr(run_file, "_BLOCK_ELEMENTS", budget)
    assert all(torch.equal(value, expected[name]) for name, value in run(graph, x))


def broken(node: Node, shape: tuple[int, ...] = (1, 6, 4)) -> Graph:
    first = Quantize(name="in", inputs=("image",), type=BYTE)
    return Graph(inputs={"image": shape}, nodes=(first, node), outputs=(node.name,))


IN = {"name": "big", "inputs": ("in",)}
TWO = {"name": "big", "inputs": ("in", "in"), "type": BYTE}
CODES = torch.zeros(3, dtype=torch.int16)
WRONG = {
    "no matrices": MatMul(**TWO),
    "not an order of the dimensions 1 .. 3": Transpose(**IN, order=(1, 2)),
    "does not expand to \\(2, 7, 4\\)": Expand(**IN, shape=(2, 7, 4)),
    "does not expand to \\(0, 6, 4\\)": Expand(**IN, shape=(0, 6, 4)),
    "more than 16,777,216 places": Expand(**IN, shape=(limits.INDICES_MAX + 1, 6, 4)),
    "no dimension 4": IndexSelect(**IN, axis=4, places=(0,)),
    "from 0 to 5": IndexSelect(**IN, axis=2, places=(6,)),
    "have no dimension 0": Concatenate(**TWO | {"type": None}, axis=0),
    "two numbers per dimension": Pad(**IN, padding=((0, 0), (-1, 0), (0, 0))),
    "padding \\(\\(1, 1\\),\\) of an input": Pad(**IN, padding=((1, 1),)),
    "too large": Pad(**IN, padding=((0, 0), (0, 0), (0, 2**31 - 1))),
    "some of 1 .. 3, each once, in order": Reduce(**IN, type=BYTE, axes=(2, 2), keepdim=True, function="mean"),
    "one of mean, sum, not 'median'": Reduce(**IN, type=BYTE, axes=(2,), keepdim=True, function="median"),
    "one of maximum, minimum": Extremum(**IN, axes=(2,), keepdim=True, function="mean"),
    "is empty": Reduce(**IN, type=BYTE, axes=(1, 2, 3), keepdim=False, function="mean"),
    "not codes of its grid": Constant(name="big", inputs=(), type=BYTE, codes=CODES - 1),
    "codes must be int16": Constant(name="big", inputs=(), type=BYTE, codes=CODES.float()),
    "Constant has 1 inputs": Constant(**IN, type=BYTE, codes=CODES),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_fields_are_named(message):
    with pytest.raises(LowbitError, match=f"'big'.*{message}"):
        validate(broken(WRONG[message]))


def test_shapes_that_do_not_broadcast():
    with pytest.raises(LowbitError, match=r"shapes \(3, 4\) and \(2, 4\); counted from the last"):
        quantized({"a": A, "b": B}, {"a": (3, 4), "b": (2, 4)}, Add(name="y", inputs=("a", "b"), type=Y))


def test_a_field_that_earlier_files_lack_is_left_out_where_it_says_nothing(tmp_path):
    for axis, written in ((1, False), (2, True)):
        graph = quantized({"a": A}, {"a": (2, 3)}, Concatenate(name="y", inputs=("a", "a"), axis=axis))
        json_format.write(graph, tmp_path / "network.json")
        assert ('"axis"' in (tmp_path / "network.json").read_text()) == written
        assert json_format.load(tmp_path / "network.json").by_name["y"].axis == axis


def test_rows_by_index(tmp_path):
    """Each word's own row; the table takes its bits, and files keep it."""
    b = sentences()
    network, x = IntegerNetwork(b.graph()), indices(b)
    codes = network.codes(x)
    table = b.nodes[0].codes
    expected = [[table[word].tolist() for word in sentence] for sentence in x["words"].tolist()]
    assert codes[b.nodes[0].name].tolist() == expected
    row = network.costs()[0]
    assert (row.operation, row.parameters, row.weight_bytes, row.macs) == ("Embedding", 66, 66 + 4, 0)
    network.save(tmp_path / "words")
    again = IntegerNetwork.load(tmp_path / "words").codes(x)
    assert all(torch.equal(value, codes[name]) for name, value in again.items())
    for wrong, words in (
        (x | {"words": x["words"].float()}, "input 'words' must be an int64 tensor on the CPU, not torch.float32"),
        (x | {"image": x["words"]}, "input 'image' must be a float32 tensor"),
        (x | {"words": x["words"] * 0 + 11}, "'words' holds the indices 11 .. 11; there are 0 .. 10"),
        (x | {"kinds": x["kinds"] * 0 - 1}, "'kinds' holds the indices -1 .. -1; there are 0 .. 1"),
    ):
        with pytest.raises(LowbitError, match=words):
            network(wrong)


@pytest.mark.parametrize("format", ["litert", "executorch", "c"])
def test_indices_are_refused_by_name(format, tmp_path):
    b = sentences()
    if format != "c":
        pytest.importorskip({"litert": "ai_edge_litert", "executorch": "executorch"}[format])
    with pytest.raises(LowbitError, match=r"node 'n0.Embedding': .* has no form of Embedding"):
        FORMATS[format].checked_write(b.graph(), tmp_path / "words.c")


def test_an_input_is_floats_or_indices():
    table = Embedding(name="e", inputs=("in",), type=BYTE, codes=torch.zeros(3, 2, dtype=torch.int16))
    floats = Quantize(name="q", inputs=("in",), type=BYTE)
    with pytest.raises(LowbitError, match="input 'in' is taken as floats and as indices"):
        validate(Graph(inputs={"in": (4,)}, nodes=(floats, table), outputs=("e", "q")))
    with pytest.raises(LowbitError, match="'e': Embedding takes the graph's input 'in', not 'q'"):
        validate(Graph(inputs={"in": (4,)}, nodes=(floats, replace(table, inputs=("q",))), outputs=("e",)))
    with pytest.raises(LowbitError, match="'e': codes must have rows and features"):
        validate(Graph(inputs={"in": (4,)}, nodes=(replace(table, codes=table.codes[0]),), outputs=("e",)))
