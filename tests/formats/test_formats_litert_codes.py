"""LiteRT's files of codes: in LiteRT's reference kernels, and in TensorFlow Lite Micro where it is installed, every code is the integer
reference's in "double-rounding".
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
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
    tables_per_channel,
    two_inputs_and_two_outputs,
    upsampling,
)
from tests.integer_graphs import GraphBuilder, all_pairs_of_bytes, every_operation, f32, resnet_like

import lowbit
from lowbit.errors import LowbitError
from lowbit.integer.graph import Graph, TensorType
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import Add, Multiply, Quantize, Reduce, Requantize, Reshape, Subtract
from lowbit.integer.ops.layer import Layer
from lowbit.integer.outputs import output_grids, with_output_grids
from lowbit.integer.validate import validate
from lowbit.verification.compare import compare

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

from lowbit.formats import litert  # noqa: E402
from lowbit.formats.litert import integers, runner  # noqa: E402


def with_codes(b: GraphBuilder, x) -> Graph:
    """The graph whose outputs are codes."""
    graph = b.graph()
    return with_output_grids(graph, output_grids(graph, [x]))


def assert_equal(graph: Graph, x, folder, **options: str) -> runner.CodesRunner:
    litert.write(graph, folder / "network.tflite", io="codes", **options)
    found = runner.open_runner(folder / "network.tflite", graph)
    report = compare(IntegerNetwork(graph), found, [x])
    assert report.ok, report.text()
    assert report.compared == sum(row.compared for row in report.rows)
    assert isinstance(found, runner.CodesRunner)
    return found


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_codes_equal_for_every_operation(bits, weights, tmp_path) -> None:
    b = every_operation(seed=bits, bits=bits)
    x = b.input(3)
    assert_equal(with_codes(b, x), x, tmp_path, weights=weights)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_equal_on_a_residual_network(bits, per_channel, tmp_path) -> None:
    b = resnet_like(seed=3, bits=bits, size=8, per_channel=per_channel)
    x = b.input(4)
    assert_equal(with_codes(b, x), x, tmp_path, weights="int4")


def layers(weight_bits: int) -> GraphBuilder:
    """Layers of every kind, with scales of either sign and ties."""
    b = GraphBuilder((3, 10, 10), seed=11)
    x = b.conv(b.quantize(8, signed=False, zero=117), 16, weight_bits=8, bits=8, zero=30, per_channel=True)
    b.conv(x, 16, 5, bits=8, weight_bits=weight_bits, per_channel=True, groups=16, padding=(1, 2), signed=True, zero=-9)
    b.conv(x, 32, 3, bits=8, weight_bits=weight_bits, groups=16, signed=True, narrow=True)
    b.conv(x, 8, bits=3, weight_bits=3, per_channel=True, negative=True, stride=2, groups=2, signed=True, dilation=2)
    x = b.conv(x, 7, 3, bits=8, weight_bits=weight_bits, stride=2)  # of an odd number of weights
    b.linear(b.append(Reshape, x, shape=(-1,)), 16, float_output=False, weight_bits=weight_bits)
    b.linear(b.nodes[-2].name, 16, float_output=False, per_channel=True, weight_bits=weight_bits)
    b.outputs = tuple(node.name for node in b.nodes[2:])
    return b


@pytest.mark.parametrize("weight_bits", [1, 4, 8])
def test_layers_of_every_kind(weight_bits, tmp_path) -> None:
    b = layers(weight_bits)
    assert_equal(b.graph(), b.input(8), tmp_path, weights="int4")


def test_four_bits_are_stored_in_four(tmp_path) -> None:
    """But not the codes of a layer of more bits, nor −8 under a negative scale."""
    graph = layers(4).graph()
    assert [int(node.weight.codes.min()) for node in graph.nodes if isinstance(node, Layer)] == [
        -128,
        -8,
        -8,
        -4,
        -8,
        -8,
        -8,
    ]
    model = schema.ModelT.InitFromPackedBuf(integers.build(graph, int4=True))
    (part,) = model.subgraphs
    stored = {}
    for operator in part.operators:
        if len(operator.inputs) == 3:
            weight = part.tensors[operator.inputs[1]]
            kind = {schema.TensorType.INT4: 4, schema.TensorType.INT8: 8}[weight.type]
            size = len(model.buffers[weight.buffer].data)
            assert size == -(-int(np.prod(weight.shape)) * kind // 8)
            stored[part.tensors[operator.outputs[0]].name.decode().split(":")[0]] = kind
    assert stored == {
        "n1.Convolution": 8, "n2.Convolution": 4, "n3.Convolution": 4, "n4.Convolution": 4, "n5.Convolution": 4, "n7.Linear": 4,
        "n8.Linear": 4,
    }  # fmt: skip


def pairs(kind: type, scales: tuple[float, float, float]) -> tuple[Graph, dict[str, torch.Tensor]]:
    """An operation on every pair of codes."""
    b = GraphBuilder((256, 256))
    b.inputs = {"image": b.shape, "other": b.shape}
    types = [TensorType(f32(s), z, 8, signed) for s, z, signed in ((scales[0], 17, False), (scales[1], -3, True))]
    operands = [b.append(Quantize, name, type=each) for name, each in zip(b.inputs, types)]
    b.append(kind, *operands, type=TensorType(f32(scales[2]), 9, 8, False))
    table = all_pairs_of_bytes()
    a, c = table[:, :256], table[:, 256:]
    return b.graph(), {"image": ((a + 128 - 17) * types[0].scale)[None], "other": ((c + 3) * types[1].scale)[None]}


SCALES = [(0.031, 0.0522, 0.071), (0.25, 0.5, 0.5), (0.9, 0.0011, 1.0), (0.0123, 0.0371, 0.0017)]


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("kind", [Add, Subtract])
def test_every_pair_of_codes_of_sums(kind, scales, tmp_path) -> None:
    assert_equal(*pairs(kind, scales), tmp_path)


@pytest.mark.parametrize("scales", [(0.031, 0.0522, 0.12), (0.25, 0.5, 8.0)])
def test_every_pair_of_codes_of_products(scales, tmp_path) -> None:
    assert_equal(*pairs(Multiply, scales), tmp_path)


def test_what_the_kernels_compute_otherwise_is_refused_by_name(tmp_path) -> None:
    a, b = f32(0.1), f32(0.3)
    graph, _ = pairs(Multiply, (a, b, f32(a * b) * 64))  # halves, in float32 alone
    with pytest.raises(LowbitError, match=r"node 'n2.Multiply': LiteRT multiplies the scales of a product in float32"):
        integers.build(graph)
    builder = GraphBuilder((5, 4, 3))
    builder.same_range(Reduce, builder.quantize(), axes=(2,), keepdim=False, function="sum")
    with pytest.raises(LowbitError, match=r"node 'n1.Reduce': LiteRT's reference kernel of SUM"):
        integers.build(builder.graph())
    graph, _ = pairs(Add, (2.0**13, 2.0**13, 2.0**-7))
    with pytest.raises(LowbitError, match=r"node 'n2.Add': .* takes less than 2\^19"):
        integers.build(graph)
    builder = GraphBuilder((3000,))
    x = builder.quantize(8)
    fine = replace(builder.type_of(x), shape=None, scale=f32(builder.type_of(x).scale / 2**24))
    builder.append(Requantize, x, type=fine)
    with pytest.raises(LowbitError, match=r"node 'n1.Requantize': .* pass 32 bits"):
        integers.build(builder.graph())
    builder = GraphBuilder((4,))
    builder.linear(builder.quantize(), 3)
    with pytest.raises(LowbitError, match=r"node 'n1.Linear': a file of codes has no float output"):
        integers.build(builder.graph())


REFUSED = "two spatial dimensions|repeat the constant|flat features|half-way|SUM|less than 2.19|pass 32 bits|no form of|cannot run it"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("litert")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.one_of(
        differences(),
        *(each(ranks) for each in (moves, broadcasts, matrix_products, reductions) for ranks in ((2, 3), (2, 3, 4))),
    )
)
def test_operations_alone(folder, b) -> None:
    """The same codes, or refused in words."""
    x = over_the_range(b)
    try:
        assert_equal(with_codes(b, x), x, folder)
    except LowbitError as error:
        assert re.search(REFUSED, str(error)), error


@pytest.mark.parametrize("make", [picking, tables_per_channel, pixels])
@pytest.mark.parametrize("space", [1, 2])
def test_moves_and_tables(make, space, tmp_path) -> None:
    b = make(space)
    assert_equal(b.graph(), b.input(3), tmp_path)


def test_upsampling(tmp_path) -> None:
    b = upsampling((2, 3))
    assert_equal(b.graph(), over_the_range(b), tmp_path)


def test_two_inputs_and_two_outputs_are_codes(tmp_path) -> None:
    b = two_inputs_and_two_outputs()
    x = over_the_range(b)
    graph = with_codes(b, x)
    found = assert_equal(graph, x, tmp_path)
    outputs, expected = found(x).outputs, IntegerNetwork(graph).outputs(x, "double-rounding")
    assert list(outputs) == list(graph.outputs)
    assert all(torch.equal(outputs[name], expected[name]) for name in outputs)


def test_the_file_has_bytes_alone_and_real_scales() -> None:
    b = resnet_like(seed=1, bits=8, size=8)
    x = b.input(4)
    graph = with_codes(b, x)
    (part,) = schema.ModelT.InitFromPackedBuf(integers.build(graph)).subgraphs
    assert {tensor.type for tensor in part.tensors} <= {schema.TensorType.INT8, schema.TensorType.INT32}
    named = {tensor.name.decode(): tensor for tensor in part.tensors}
    for node in graph.nodes:
        codes = named[node.name].quantization
        assert codes.scale[0] == node.type.scale
        assert codes.zeroPoint[0] == node.type.zero_point + node.type.carrier_offset - 128
    assert [named[graph.nodes[0].name].shape[-1], named[graph.outputs[0]].shape[-1]] == [3, 10]


def test_export_and_verify(tmp_path) -> None:
    """Outputs that are floats get a grid over their values on the batches, which verify reads from the file."""
    b = resnet_like(seed=2, bits=4, size=8)
    network, x = IntegerNetwork(b.graph()), b.input(16)
    path = tmp_path / "network.tflite"
    report = lowbit.export(network, path, "litert", io="codes", weights="int4", batches=[x[:8], x[8:]])
    assert report.ok and report.rows[-1].is_float is False
    assert lowbit.verify(network, path, [x]).ok
    (part,) = schema.ModelT.InitFromPackedBuf(path.read_bytes()).subgraphs
    last = part.tensors[part.outputs[0]].quantization
    floats = network(x)
    span = (min(0.0, float(floats.min())), max(0.0, float(floats.max())))
    assert last.scale[0] == pytest.approx((span[1] - span[0]) / 255, rel=1e-6)
    whole = IntegerNetwork(with_output_grids(network.graph, output_grids(network.graph, [x])))(x)
    assert float((whole - floats).abs().max()) <= last.scale[0] * 0.51
    with pytest.raises(LowbitError, match="was not exported from this network"):
        lowbit.verify(IntegerNetwork(every_operation().graph()), path, [torch.randn(1, 3, 14, 14)])


def test_bad_options(tmp_path) -> None:
    network = IntegerNetwork(resnet_like(bits=4, size=8).graph())
    path = tmp_path / "network.tflite"
    for options, message in (
        ({"io": "bytes"}, "io='bytes': the format litert has floats, codes"),
        ({"rounding": "fixed"}, "rounding='fixed' is no option of the format litert: its options are io, weights"),
        ({"weights": "int4"}, "for files of codes"),
    ):
        with pytest.raises(LowbitError, match=message):
            lowbit.export(network, path, "litert", **options)
    with pytest.raises(LowbitError, match="io='codes' is no option of the format onnx: it has none"):
        lowbit.export(network, tmp_path / "network.onnx", io="codes")
    assert not list(tmp_path.iterdir())


def test_an_output_of_zeros_has_a_grid(tmp_path) -> None:
    b = GraphBuilder((4,))
    b.linear(b.quantize(), 3)
    layer = b.nodes[1]
    nothing = replace(layer.weight, codes=torch.zeros_like(layer.weight.codes))
    graph = validate(replace(b.graph(), nodes=(b.nodes[0], replace(layer, weight=nothing, bias=None))))
    x = torch.randn(2, 4)
    found = assert_equal(with_output_grids(graph, output_grids(graph, [x])), x, tmp_path)
    assert not found({"image": x}).outputs[graph.outputs[0]].any()


def test_tensorflow_lite_micro(tmp_path) -> None:
    """The reference's codes, of every tensor, in the interpreter of microcontrollers."""
    pytest.importorskip("tflite_micro", reason="pip install tflite-micro (Linux wheels alone)")
    from campaigns.tflm import TflmRunner

    for bits, weights in ((8, "int8"), (8, "int4"), (4, "int4"), (2, "int8")):
        b = every_operation(seed=bits, bits=bits)
        x = b.input(3)
        graph = with_codes(b, x)
        litert.write(graph, tmp_path / "network.tflite", io="codes", weights=weights)
        report = compare(IntegerNetwork(graph), TflmRunner(tmp_path / "network.tflite", graph), [x])
        assert report.ok and all(row.file_differ == 0 for row in report.rows), report.text()
    for kind in (Add, Subtract, Multiply):
        graph, x = pairs(kind, (0.031, 0.0522, 0.12))
        litert.write(graph, tmp_path / "network.tflite", io="codes")
        assert compare(IntegerNetwork(graph), TflmRunner(tmp_path / "network.tflite", graph), [x]).ok


def test_ties_of_linear_layers(tmp_path) -> None:
    """LiteRT's FULLY_CONNECTED would round them in floats; the file has convolutions over one position."""
    seen = 0
    for seed in range(4):
        b = GraphBuilder((64,), seed=seed)
        kind = b.type_of(b.quantize(8, signed=False, zero=3))
        node = b.linear(b.last, 5, float_output=False)
        product = f32(kind.scale * float(b.nodes[1].weight.scale))
        b.nodes[1] = replace(b.nodes[1], type=TensorType(f32(product * 64), 0, 8, True))
        inputs, graph = b.input(400), b.graph()
        found = assert_equal(graph, inputs, tmp_path)({"image": inputs}).codes[node]
        seen += int((found.int() != IntegerNetwork(graph).codes(inputs, "fixed")[node].int()).sum())
    assert seen > 10
