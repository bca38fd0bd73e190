"""LiteRT: the codes of the file, in LiteRT's interpreter with XNNPACK, are the integer reference's."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.format_graphs import (
    broadcasts,
    differences,
    matrix_products,
    moves,
    over_the_range,
    picking,
    pixels,
    reductions,
    resampling,
    tables_per_channel,
    two_inputs_and_two_outputs,
    upsampling,
)
from tests.integer_graphs import GraphBuilder, all_pairs_of_bytes, every_operation, f32, resnet_like

from lowbit.errors import LowbitError
from lowbit.integer.graph import Graph, Node, TensorType, Weight
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import (
    Add,
    Convolution,
    Linear,
    Lookup,
    MaxPool,
    Multiply,
    PadChannels,
    Quantize,
    Requantize,
    Reshape,
    Slice,
    Subtract,
    Upsample,
)
from lowbit.integer.validate import validate
from lowbit.verification.compare import compare

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
from ai_edge_litert.interpreter import Interpreter, OpResolverType  # noqa: E402

from lowbit.formats import litert, xnnpack  # noqa: E402
from lowbit.formats.litert import writer  # noqa: E402
from lowbit.formats.litert.runner import LitertRunner  # noqa: E402


def assert_equal(graph: Graph, x: torch.Tensor | dict[str, torch.Tensor], folder) -> None:
    """Every code of every node, and the outputs."""
    litert.write(graph, folder / "network.tflite")
    report = compare(IntegerNetwork(graph), folder / "network.tflite", [x])
    assert report.ok, report.text()
    assert report.compared == sum(row.compared for row in report.rows)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_codes_equal_for_every_operation(bits, tmp_path) -> None:
    b = every_operation(seed=bits, bits=bits)
    assert_equal(b.graph(), b.input(3), tmp_path)


@pytest.mark.parametrize("per_channel", [False, True])
def test_codes_equal_on_a_residual_network(per_channel, tmp_path) -> None:
    b = resnet_like(seed=3, bits=2, size=8, per_channel=per_channel)
    assert_equal(b.graph(), b.input(4), tmp_path)


def test_layers_of_every_kind(tmp_path) -> None:
    b = GraphBuilder((3, 10, 10), seed=11)
    x = b.conv(b.quantize(8, signed=False, zero=117), 16, weight_bits=8, bits=8, zero=30, per_channel=True)
    b.conv(x, 16, 5, bits=8, weight_bits=8, per_channel=True, groups=16, padding=(1, 2), signed=True, zero=-9)
    b.conv(x, 32, 3, bits=8, weight_bits=4, groups=16, signed=True, narrow=True)  # two outputs per input channel
    b.conv(x, 8, bits=3, weight_bits=3, per_channel=True, negative=True, stride=2, groups=2, signed=True, dilation=2)
    x = b.conv(x, 32, 1, bits=8, weight_bits=1, bias=False, padding=(0, 0))
    # A multiplier of 1/8: one output in eight is a tie.
    scale = b.type_of(x).scale
    weight = Weight(b.codes(-8, 7, 4, 32, 1, 1).to(torch.int8), torch.tensor(0.125), 4)
    where = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    x = b.append(Convolution, x, type=TensorType(scale, 5, 8, True), weight=weight, **where)
    b.linear(b.linear(b.append(Reshape, x, shape=(-1,)), 16, float_output=False, per_channel=True), 10)
    assert_equal(b.graph(), b.input(8), tmp_path)


def test_one_spatial_dimension_and_reshapes(tmp_path) -> None:
    b = GraphBuilder((3, 40), seed=1)
    x = b.conv(b.quantize(8, signed=False, zero=5), 8, 5, stride=2, padding=(2, 1))
    x = b.append(MaxPool, x, kernel=(3,), stride=(2,), padding=((1, 1),), dilation=(1,))
    x = b.same_range(Requantize, x, bits=5)
    x = b.append(Slice, x, axis=2, start=1, stop=8, step=2)
    x = b.append(PadChannels, x, before=1, after=3)
    x = b.conv(b.append(Reshape, x, shape=(6, -1, 2)), 4, 1)
    x = b.same_range(Requantize, b.append(Reshape, x, shape=(-1,)), bits=3)
    b.append(Reshape, x, shape=(2, -1))
    assert_equal(b.graph(), b.input(5), tmp_path)


@pytest.mark.parametrize(
    ("scales", "plain"), [((0.031, 0.0522, 0.071), True), ((0.25, 0.5, 0.5), False)], ids=["generic", "ties"]
)
def test_every_pair_of_codes_of_additions_and_products(scales, plain, tmp_path) -> None:
    b = GraphBuilder((2, 256, 256))
    x = b.append(Quantize, "image", type=TensorType(1.0, 0, 8, True))
    codes = torch.arange(256, dtype=torch.int16)
    operands = []
    for channel, (scale, zero, signed) in enumerate([(scales[0], 17, False), (scales[1], -3, True)]):
        part = b.append(Slice, x, axis=1, start=channel, stop=channel + 1)
        kind = TensorType(f32(scale), zero, 8, signed)
        operands.append(b.append(Lookup, part, type=kind, table=codes + kind.qn))
    total = b.append(Add, *operands, type=TensorType(f32(scales[2]), 9, 8, False))
    b.append(Multiply, *operands, type=TensorType(f32(scales[2] * 4), -7, 8, True))
    graph = b.graph()
    found = xnnpack.plain_factors(graph.by_name[total], *(graph.by_name[name].type for name in operands))
    assert (found is not None) == plain  # so that both forms are tried
    pairs = all_pairs_of_bytes()
    assert_equal(graph, torch.stack([pairs[:, :256], pairs[:, 256:]])[None], tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("litert")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(differences())
def test_differences(folder, b) -> None:
    assert_equal(b.graph(), over_the_range(b, 40), folder)


REFUSED = "two spatial dimensions|repeat the constant|flat features|only below 16777216|two summands|256|−128"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.one_of(each(ranks) for each in (moves, broadcasts, matrix_products, reductions) for ranks in ((2, 3), (2, 3, 4)))
)
def test_operations_alone(folder, b) -> None:
    """The same codes, or refused in words."""
    try:
        assert_equal(b.graph(), over_the_range(b), folder)
    except LowbitError as error:
        assert re.search(REFUSED, str(error)), error


def test_every_pair_of_codes_of_a_difference(tmp_path) -> None:
    b = GraphBuilder((256, 256))
    b.inputs = {"image": b.shape, "other": b.shape}
    kinds = (TensorType(f32(0.031), 17, 8, False), TensorType(f32(0.0155), -3, 8, True))
    operands = [b.append(Quantize, name, type=kind) for name, kind in zip(b.inputs, kinds)]
    b.append(Subtract, *operands, type=TensorType(f32(0.062), 9, 8, False))
    codes = torch.arange(256.0)
    a, c = ((codes + kind.qn - kind.zero_point) * kind.scale for kind in kinds)
    assert_equal(b.graph(), {"image": a.expand(1, 256, 256), "other": c[:, None].expand(1, 256, 256)}, tmp_path)


@pytest.mark.parametrize("first", [(5, 1, 1), (5, 4, 3)])
def test_the_file_states_the_shapes_that_litert_computes(first) -> None:
    b = GraphBuilder((5, 4, 3))
    b.inputs = {"image": first, "other": b.shape}
    operands = [b.append(Quantize, name, type=b.grid(1.5, 8, True)) for name in b.inputs]
    x = b.append(Subtract, *operands, type=b.grid(2.0, 4, True))
    b.append(Upsample, b.conv(x, 6), factors=(3, 2))
    content = writer.build(b.graph())
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # a delegate hides what it computes
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    (part,) = schema.ModelT.InitFromPackedBuf(content).subgraphs
    stated = {tensor.name.decode(): list(tensor.shape) for tensor in part.tensors}
    computed = {each["name"]: each["shape"].tolist() for each in interpreter.get_tensor_details()}
    assert len(stated) > 30 and stated == {name: computed[name] for name in stated}


@pytest.mark.parametrize("factors", [(3,), (2, 3), (1, 2), (2, 1), (1, 1), (1,)])
def test_upsampling(factors, tmp_path) -> None:
    b = upsampling(factors)
    assert_equal(b.graph(), over_the_range(b), tmp_path)


@pytest.mark.parametrize("make", [resampling, picking, tables_per_channel, pixels])
@pytest.mark.parametrize("space", [1, 2])
def test_resampling_picking_and_tables_per_channel(make, space, tmp_path) -> None:
    b = make(space)
    assert_equal(b.graph(), b.input(3), tmp_path)


def test_sums_beyond_24_bits_are_refused(tmp_path) -> None:
    with pytest.raises(LowbitError, match=r"LinearResize.*exactly only below"):
        litert.write(resampling(2, wide=True).graph(), tmp_path / "network.tflite")


def test_two_inputs_and_two_outputs(tmp_path) -> None:
    b = two_inputs_and_two_outputs()
    graph, x = b.graph(), over_the_range(b)
    assert_equal(graph, x, tmp_path)
    runner, expected = LitertRunner(tmp_path / "network.tflite", graph), IntegerNetwork(graph).outputs(x)
    for given_in in (x, dict(reversed(x.items()))):
        found = runner(given_in).outputs
        assert list(found) == list(graph.outputs)
        assert all(torch.equal(found[name], expected[name]) for name in graph.outputs)
    renamed = validate(replace(graph, inputs={"second": b.shape, "third": b.shape}, nodes=_renamed(graph, "third")))
    with pytest.raises(LowbitError, match=r"inputs or outputs differ"):
        LitertRunner(tmp_path / "network.tflite", renamed)
    with pytest.raises(LowbitError, match=r"inputs or outputs differ"):
        LitertRunner(tmp_path / "network.tflite", replace(graph, outputs=graph.outputs[:1]))


def _renamed(graph: Graph, name: str) -> tuple[Node, ...]:
    """The nodes, with the input "first" called by another name."""
    return tuple(replace(node, inputs=tuple({"first": name}.get(x, x) for x in node.inputs)) for node in graph.nodes)


@pytest.mark.parametrize("kind", [Linear, Convolution])
def test_a_float_output_whose_sum_passes_24_bits(kind, tmp_path) -> None:
    b = GraphBuilder((1300,) if kind is Linear else (1300, 1, 1), seed=2)
    x = b.quantize(8, signed=False)
    if kind is Linear:
        b.linear(x, 6)
    else:
        b.conv(x, 6, 1, weight_bits=8, padding=(0, 0), float_output=True)
    heavy = torch.full_like(b.nodes[1].weight.codes, 127)
    heavy[1], heavy[2] = -128, torch.arange(1300).reshape(heavy[2].shape) % 100 + 27
    nodes = (b.nodes[0], replace(b.nodes[1], weight=Weight(heavy, b.nodes[1].weight.scale, 8)))
    graph = validate(replace(b.graph(), nodes=nodes))
    scale = graph.nodes[0].type.scale
    ends = torch.randint(250, 260, (5, *graph.inputs["image"]), generator=b.random) * scale
    assert int(IntegerNetwork(graph)(ends).abs().max() / float((scale * b.nodes[1].weight.scale).max())) > 1 << 25
    assert_equal(graph, ends, tmp_path)


def test_the_input_is_divided_not_multiplied(tmp_path) -> None:
    """Values at the boundary between two codes, where x / s and x · (1 / s) round to different ones."""
    b = GraphBuilder((4096,))
    kind = TensorType(f32(0.031), 3, 8, True)
    b.append(Quantize, "image", type=kind)
    scale = torch.tensor(kind.scale)
    x = (torch.arange(-140.0, 140.0).repeat(32)[:8192] + 0.5) * scale
    x = (x.view(torch.int32) + torch.randint(-2, 3, x.shape, generator=b.random).int()).view(torch.float32).view(2, -1)
    assert bool(((x / scale).round() != (x * (1 / scale)).round()).any())
    assert_equal(b.graph(), x, tmp_path)


def test_the_file_starts_its_buffers_at_multiples_of_16_bytes() -> None:
    b = resnet_like()
    content = writer.build(b.graph())
    model = schema.Model.GetRootAs(content)
    starts = []
    for place in range(model.BuffersLength()):
        buffer = model.Buffers(place)
        if not buffer.DataIsNone():
            data = buffer._tab.Vector(buffer._tab.Offset(4))
            starts.append(data % 16)
    assert len(starts) > 10 and set(starts) == {0}


def _one_convolution(**changes) -> Graph:
    b = GraphBuilder((3, 4, 4))
    b.conv(b.quantize(8), 4)
    graph = b.graph()
    return validate(replace(graph, nodes=(graph.nodes[0], replace(graph.nodes[1], **changes))))


def test_a_bias_that_float32_does_not_hold(tmp_path) -> None:
    bias = torch.tensor([1 << 25 | 1, -(1 << 25) - 3, 0, 7], dtype=torch.int32)
    graph = _one_convolution(bias=bias, type=TensorType(f32(30000.0), 0, 8, True))
    assert_equal(graph, torch.randn(2, 3, 4, 4), tmp_path)


def test_refuses_what_it_cannot_write_exactly() -> None:
    lowest = Weight(torch.full((4, 3, 3, 3), -128, dtype=torch.int8), -torch.full((4,), 0.01), 8)
    with pytest.raises(LowbitError, match=r"n1.Convolution.*narrow"):
        writer.build(_one_convolution(weight=lowest))
    with pytest.raises(LowbitError, match=r"n1.Convolution.*256"):
        writer.build(_one_convolution(type=TensorType(f32(1e-7), 0, 4, False)))
    b = GraphBuilder((3, 9, 9))
    b.append(MaxPool, b.quantize(8), kernel=(2, 2), stride=(1, 1), padding=((0, 0),) * 2, dilation=(2, 2))
    with pytest.raises(LowbitError, match=r"n1.MaxPool.*dilation"):
        writer.build(b.graph())
    b = GraphBuilder((5, 5))
    b.linear(b.quantize(8), 4)
    with pytest.raises(LowbitError, match=r"n1.Linear.*flat"):
        writer.build(b.graph())
    b = GraphBuilder((3, 4, 4, 4))
    b.conv(b.quantize(8), 4)
    with pytest.raises(LowbitError, match=r"n0.Quantize.*three"):
        writer.build(b.graph())


def test_a_file_of_another_network_is_named(tmp_path) -> None:
    path = tmp_path / "network.tflite"
    litert.write(_one_convolution(), path)
    b = GraphBuilder((3, 4, 4))
    b.conv(b.quantize(8), 5)
    with pytest.raises(LowbitError, match=r"n1.Convolution.*has shape.*export it again"):
        compare(IntegerNetwork(b.graph()), path, [b.input(2)])
    x = b.conv("n0.Quantize", 4)
    with pytest.raises(LowbitError, match=f"no tensor '{x}'"):
        LitertRunner(path, b.graph())
    path.write_bytes(path.read_bytes()[:64])
    with pytest.raises(LowbitError, match=r"network\.tflite.*LiteRT"):
        LitertRunner(path, b.graph())


def test_an_altered_weight_is_found(tmp_path) -> None:
    graph, path = _one_convolution(), tmp_path / "network.tflite"
    content = writer.build(graph)
    codes = graph.nodes[1].weight.codes.permute(0, 2, 3, 1).numpy().tobytes()
    assert content.count(codes) == 1
    path.write_bytes(content.replace(codes, codes[:-1] + bytes([(codes[-1] + 5) % 16])))
    report = compare(IntegerNetwork(graph), path, [torch.randn(8, 3, 4, 4)])
    assert not report.ok and report.first_difference == "n1.Convolution"
