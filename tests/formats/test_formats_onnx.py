"""Exported ONNX against the integer reference, bit for bit: ONNX Runtime, onnx's checker and its reference evaluator."""

from __future__ import annotations

import warnings
from dataclasses import replace

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from tests.format_graphs import (
    broadcasts,
    differences,
    indices,
    matrix_products,
    moves,
    normalizations,
    over_the_range,
    picking,
    pixels,
    reductions,
    resampling,
    sentences,
    softmaxes,
    tables_per_channel,
    transformer,
    two_inputs_and_two_outputs,
    upsampling,
)
from tests.integer_graphs import (
    GraphBuilder,
    all_pairs_of_bytes,
    every_operation,
    f32,
    nearly,
    resnet_like,
)

from lowbit.errors import LowbitError
from lowbit.formats import onnx as plain
from lowbit.formats.onnx.runner import OnnxRunner
from lowbit.formats.onnx.writer import build
from lowbit.integer.graph import Graph, TensorType
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import (
    Add,
    AveragePool,
    ChannelShuffle,
    Concatenate,
    GlobalAveragePool,
    LinearResize,
    Lookup,
    MaxPool,
    Multiply,
    Normalize,
    PadChannels,
    Quantize,
    Requantize,
    Reshape,
    Slice,
    Subtract,
)
from lowbit.integer.ops.lookup import lookup_table
from lowbit.verification.compare import compare

SETTINGS = settings(max_examples=20, deadline=None, derandomize=True)


def check(builder: GraphBuilder, path, *, batch: int = 2, packed=False):
    """Write, run in ONNX Runtime, and demand that no code differs."""
    network = IntegerNetwork(builder.graph())
    plain.write(network.graph, path, packed=packed)
    report = compare(network, path, [builder.input(batch)])
    assert report.ok, report.text()
    return report


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx") / "network.onnx"


@st.composite
def convolutions(draw):
    """A network of one convolution of any kind there is, and its input's grid."""
    bits = st.integers(2, 8)
    signed = draw(st.booleans())
    space = draw(st.sampled_from([1, 2, 2, 2, 3]))
    b = GraphBuilder((4, *[7] * space), draw(st.integers(0, 2**16)))
    width, output = draw(bits), draw(bits)
    low = -(1 << (width - 1)) if signed else 0
    q = b.quantize(width, signed, draw(st.integers(low, low + (1 << width) - 1)), narrow=signed and draw(st.booleans()))
    out_signed = draw(st.booleans())
    b.conv(
        q,
        4 * draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 2, 3])),
        bits=output,
        weight_bits=draw(st.integers(1, 8)),
        signed=out_signed,
        zero=draw(st.integers(0, (1 << (output - 1)) - 1)),
        narrow=out_signed and draw(st.booleans()),
        per_channel=draw(st.booleans()),
        negative=draw(st.booleans()),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dilation=draw(st.integers(1, 2)),
        groups=draw(st.sampled_from([1, 2, 4])),
        bias=draw(st.booleans()),
        float_output=draw(st.integers(0, 4)) == 0,
    )
    return b


@settings(SETTINGS, max_examples=60)
@given(convolutions())
def test_convolutions(path, b):
    check(b, path)


@SETTINGS
@given(st.integers(0, 2**16), st.integers(1, 8), st.integers(2, 8), st.booleans(), st.booleans())
def test_linear(path, seed, weight_bits, bits, per_channel, float_output):
    b = GraphBuilder((37,), seed)
    q = b.quantize(bits, signed=bool(seed % 2))
    b.linear(q, 11, bits=bits, weight_bits=weight_bits, per_channel=per_channel, float_output=float_output)
    check(b, path)


@settings(SETTINGS, max_examples=30)
@given(st.integers(0, 2**16), st.booleans(), st.booleans(), st.integers(0, 3), st.booleans(), st.integers(2, 8))
def test_add_and_multiply(path, seed, signed, output_signed, zero, channelwise, bits):
    """Two tensors of all byte values on grids of their own."""
    b = GraphBuilder((2, 24, 24), seed)
    q = b.quantize(8, signed=False, zero=zero * 40)
    one = b.conv(q, 8, 1, bits=8, signed=signed, zero=zero, padding=(0, 0))
    other = b.conv(q, 8, 1, bits=bits, zero=zero, padding=(0, 0))
    if channelwise:
        other = b.same_range(GlobalAveragePool, other, shrink=3, zero=zero, signed=signed)
    total = b.add(one, other, signed=output_signed, zero=zero)
    b.multiply(total, other, signed=output_signed, zero=zero, bits=bits)
    check(b, path, batch=4)


@settings(SETTINGS, max_examples=150)
@given(st.one_of(differences(), moves(), broadcasts(), matrix_products(), reductions(), normalizations(), softmaxes()))
def test_operations_alone(path, b):
    network = IntegerNetwork(b.graph())
    plain.write(network.graph, path)
    report = compare(network, path, [over_the_range(b)])
    assert report.ok, report.text()


@settings(SETTINGS, max_examples=40)
@given(st.one_of(moves(), reductions(), normalizations(), softmaxes()))
def test_what_is_written_out_needs_no_optimizations(path, b):
    """No kernel is fused from several operators: each of them rounds as ONNX says."""
    network = IntegerNetwork(b.graph())
    plain.write(network.graph, path)
    report = compare(network, OnnxRunner(path, network.graph, optimize=False), [over_the_range(b)])
    assert report.ok, report.text()


@pytest.mark.parametrize("factors", [(3,), (2, 3), (1, 1), (2, 1, 3)])
def test_upsampling(path, factors):
    check(upsampling(factors), path)


@pytest.mark.parametrize(("space", "wide"), [(1, False), (2, False), (3, False), (2, True)])
def test_resampling(path, space, wide):
    """Sums beyond 24 bits are made in float64."""
    check(resampling(space, wide), path, batch=4)


def test_a_matrix_that_no_file_should_hold_is_refused(path):
    """A minute of sound has samples by the million; the integer network itself keeps two weights a sample."""
    b = GraphBuilder((1, 6000))
    points = tuple((2, place, 1, 1) for place in range(5999))
    b.same_range(LinearResize, b.quantize(), points=points)
    network = IntegerNetwork(b.graph())
    assert network(b.input()).shape == (2, 1, 5999)
    with pytest.raises(LowbitError, match=r"node 'n1.LinearResize': from 6,000 to 5,999 positions .* matrix"):
        plain.write(network.graph, path)


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("make", [picking, tables_per_channel, pixels])
def test_picking_and_tables_per_channel(path, make, space):
    check(make(space), path)


def test_indices(path):
    b = sentences()
    network = IntegerNetwork(b.graph())
    plain.write(network.graph, path)
    report = compare(network, path, [indices(b)])
    assert report.ok and len(report.rows) == len(b.nodes), report.text()


@pytest.mark.parametrize("seed", range(3))
def test_transformers(path, seed):
    check(transformer(seed), path, batch=4)


def test_two_inputs_and_two_outputs(path):
    b = two_inputs_and_two_outputs()
    report = check(b, path, batch=3)
    assert [row.name for row in report.rows if row.is_float] == [b.outputs[0]] and report.samples == 3
    changed = IntegerNetwork(replace(b.graph(), outputs=b.outputs[::-1]))
    with pytest.raises(LowbitError, match="not exported from this network"):
        compare(changed, path, [b.input(1)])


@pytest.mark.parametrize("seed", range(12))
def test_add_and_multiply_at_ties(path, seed):
    """Scales a few units in the last place from simple fractions of each other: sums lie on halves, and every rounding shows."""
    b = GraphBuilder((512,), seed)
    zeros = b.codes(0, 255, 3).tolist() if seed % 2 else [0, 128, 0]
    scales = [nearly(0.02 * 2.0 ** -int(b.codes(0, 3)) * k, b.random) for k in (1, 3)]
    q = b.append(Quantize, "image", type=TensorType(1.0, 128, 8, False))
    one, other = (b.append(Slice, q, axis=1, start=k, stop=k + 256) for k in (0, 256))
    one, other = (
        b.append(Lookup, each, type=TensorType(scale, zero, 8, False), table=torch.arange(256, dtype=torch.int16))
        for each, scale, zero in zip((one, other), scales, zeros)
    )
    b.append(Add, one, other, type=TensorType(nearly(0.02, b.random), zeros[2], 8, False))
    product = TensorType(nearly(scales[0] * scales[1] * 64, b.random), zeros[2], 8, False)
    b.append(Multiply, one, other, type=product)
    b.append(Subtract, one, other, type=TensorType(nearly(0.04, b.random), zeros[2], 8, False))
    network = IntegerNetwork(b.graph())
    plain.write(network.graph, path)
    report = compare(network, path, [all_pairs_of_bytes()])
    assert report.ok, report.text()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("first", [(256, 1), (1, 256)])
def test_repeated_operands_at_ties(path, first, seed):
    """As above, every pair of bytes by repeating one along rows and the other along columns, in either order."""
    b = GraphBuilder(first, seed)
    b.inputs = {"image": first, "other": first[::-1]}
    zeros = b.codes(0, 255, 3).tolist()
    scales = [nearly(0.02 * 2.0 ** -int(b.codes(0, 3)) * k, b.random) for k in (1, 3)]
    kinds = [TensorType(scale, zero, 8, False) for scale, zero in zip(scales, zeros)]
    operands = [b.append(Quantize, name, type=kind) for name, kind in zip(b.inputs, kinds)]
    b.append(Add, *operands, type=TensorType(nearly(0.02, b.random), zeros[2], 8, False))
    network = IntegerNetwork(b.graph())
    plain.write(network.graph, path)
    codes = torch.arange(256.0)
    x = {
        name: ((codes - kind.zero_point) * kind.scale).reshape(1, *b.inputs[name])
        for name, kind in zip(b.inputs, kinds)
    }
    report = compare(network, path, [x])
    assert report.ok, report.text()


@SETTINGS
@given(st.integers(0, 2**16), st.booleans(), st.integers(0, 9), st.integers(2, 8), st.sampled_from([1, 2, 3]))
def test_pools_and_requantize(path, seed, signed, zero, bits, space):
    b = GraphBuilder((3, *[9] * space), seed)
    q = b.quantize(8, signed=signed, zero=zero)
    m = b.append(MaxPool, q, kernel=(3,) * space, stride=(2,) * space, padding=((1, 1),) * space, dilation=(1,) * space)
    r = b.same_range(Requantize, m, bits=bits, signed=True)
    geometry = {"kernel": (2,) * space, "stride": (1,) * space, "padding": ((1, 0),) * space}
    a = b.same_range(AveragePool, q, bits=bits, signed=not signed, zero=zero % 2, **geometry)
    b.same_range(GlobalAveragePool, a, zero=zero, shrink=3)
    b.append(Reshape, b.last, shape=(-1,))
    b.same_range(Requantize, b.last, bits=4)
    assert r
    check(b, path)


@SETTINGS
@given(st.integers(0, 2**16), st.integers(1, 3), st.booleans())
def test_moving_codes(path, seed, step, signed):
    b = GraphBuilder((4, 8, 6), seed)
    q = b.quantize(5, signed=signed, zero=3)
    s = b.append(Slice, q, axis=1 + seed % 3, start=1, stop=4, step=step)
    kind = b.type_of(s)
    p = b.append(PadChannels, s, before=2, after=8 - 2 - kind.shape[0] % 2)
    if b.type_of(p).shape[0] % 2 == 0:
        p = b.append(ChannelShuffle, p, groups=2)
    b.append(Concatenate, p, s, p)
    b.lookup(b.last, torch.nn.functional.gelu, bits=4, signed=True)
    check(b, path)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("network", [resnet_like, every_operation])
def test_networks(path, network, packed, bits):
    check(network(bits, bits), path, packed=packed)


def optimized(graph: Graph, path, packed=False) -> list[str]:
    """Operators of the graph that ONNX Runtime executes."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        build(graph, packed=packed).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("network", [resnet_like, every_operation])
def test_integer_kernels_throughout(path, network, packed):
    """After the input's quantizer no float operator is left: no Conv, Gemm, Add, Mul or average in floats."""
    operators = optimized(network(0).graph(), path, packed)
    integer = {"QLinearConv", "QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool", "QGemm", "NhwcMaxPool", "MaxPool"}
    moves = {"Transpose", "Clip", "Slice", "Pad", "Reshape", "Concat", "Split", "Cast", "Gather", "GatherElements"}
    assert operators.count("QuantizeLinear") == 1
    assert set(operators) <= integer | moves | {"QuantizeLinear"}


@pytest.mark.parametrize(
    ("low", "high", "operator"), [(-16, 15, None), (-16, 9, "Clip"), (-3, 15, "Clip"), (2, 2, "Clip")]
)
@pytest.mark.parametrize("shift", [0, 1])
def test_tables_that_only_cut_off_need_no_table(path, low, high, operator, shift):
    """What a product with a number, a ReLU or a change of grid often is: bytes stay, or are cut off."""
    b = GraphBuilder((3, 40), 0)
    x = b.append(Quantize, "image", type=TensorType(f32(0.1), 0, 5, True))
    table = (torch.arange(-16, 16, dtype=torch.int16) + shift).clamp(low, high)
    y = TensorType(f32(0.2), 0, 5, True)
    b.append(Lookup, x, type=y, table=table)
    check(b, path)
    operators = optimized(b.graph(), path)
    table_made = "GatherElements" in operators
    assert table_made == (shift == 1 and low < high)
    assert table_made or operators == ["QuantizeLinear", *["Clip"] * (1 + (operator is not None)), "DequantizeLinear"]


@pytest.mark.parametrize("shape", [(256,), (4, 64, 1), (8, 8, 4)])
@pytest.mark.parametrize(("bits", "factor", "sums"), [(8, 0.176, 2), (8, 1.004, 2), (3, 0.13, 2), (8, -0.3, 1)])
def test_products_with_numbers_and_changes_of_grid_are_sums(path, shape, bits, factor, sums):
    """Every byte once. A product with a negative number takes its table."""
    b = GraphBuilder(shape, 0)
    x = b.append(Quantize, "image", type=TensorType(1.0, 19, 8, True))
    y = TensorType(f32(abs(factor) * 2 ** (8 - bits) * 1.003), -1, bits, True)
    y = b.append(Lookup, x, type=y, table=lookup_table(lambda v: v * factor, b.type_of(x), y))
    b.append(Requantize, y, type=TensorType(b.type_of(y).scale * 2, 2, 8, False))
    network = IntegerNetwork(b.graph())
    plain.write(network.graph, path)
    image = torch.arange(-147.0, 109.0).reshape(1, *shape)
    for optimize in (True, False):
        report = compare(network, OnnxRunner(path, network.graph, optimize=optimize), [image])
        assert report.ok, report.text()
    operators = optimized(b.graph(), path)
    assert [operators.count(each) for each in ("QLinearAdd", "GatherElements", "QLinearConv")] == [sums, 2 - sums, 0]


@pytest.mark.parametrize(("count", "centered"), [(192, True), (384, True), (1009, True), (192, False)])
def test_norms_make_their_numbers_once(path, count, centered):
    """ONNX Runtime copies a DequantizeLinear for everything that takes it, and repeats constants of fewer dimensions slowly."""
    b = GraphBuilder((4, count), 0)
    x = b.append(Quantize, "image", type=TensorType(f32(0.05), 17, 8, True))
    b.append(Normalize, x, type=TensorType(f32(0.02), 0, 8, True), count=count, centered=centered, eps=1e-5)
    check(b, path)
    operators = optimized(b.graph(), path)
    assert operators.count("DequantizeLinear") == 1  # the output's
    assert operators.count("Cast") <= 5
    wide = [t for t in build(b.graph()).graph.initializer if t.data_type == onnx.TensorProto.DOUBLE]
    assert wide and all(len(tensor.dims) == 3 for tensor in wide)


def test_float_convolution_at_the_end_is_an_integer_kernel(path):
    b = GraphBuilder((3, 8, 8), 0)
    b.conv(b.quantize(8), 5, float_output=True)
    assert "ConvInteger" in optimized(b.graph(), path)


@pytest.mark.parametrize(("weight_bits", "unsigned"), [(8, True), (7, False), (4, False)])
def test_weights_that_would_saturate_are_unsigned_bytes(weight_bits, unsigned):
    """Two products of 8-bit codes and int8 weights pass the 16 bits that AVX2 adds them in; of 7-bit weights they don't."""
    b = GraphBuilder((4, 6, 6), 0)
    b.conv(b.quantize(8), 4, weight_bits=weight_bits)
    kinds = {tensor.name: tensor.data_type for tensor in build(b.graph()).graph.initializer}
    assert kinds["n1.Convolution:weight"] == (onnx.TensorProto.UINT8 if unsigned else onnx.TensorProto.INT8)


def test_extreme_bytes_are_exact(path):
    """Largest codes times largest weights, in long sums: where int8 weights are wrong on processors without VNNI."""
    b = GraphBuilder((16, 8, 8), 0)
    q = b.append(Quantize, "image", type=TensorType(f32(0.0157), 128, 8, False))
    b.conv(q, 16, 3, weight_bits=8, bits=8, signed=True)
    codes = b.nodes[-1].weight.codes
    codes[:] = torch.where(torch.rand(codes.shape, generator=b.random) < 0.5, -128, 127).to(torch.int8)
    network = IntegerNetwork(b.graph())
    plain.write(network.graph, path)
    report = compare(network, path, [torch.full((2, 16, 8, 8), 5.0) * torch.rand(2, 16, 8, 8, generator=b.random)])
    assert report.ok, report.text()


def test_halves_at_odd_zero_points(path):
    """The zero point is added after rounding, in the input's quantizer and behind a layer alike."""
    b = GraphBuilder((64, 1), 0)
    q = b.append(Quantize, "image", type=TensorType(1.0, 33, 7, False))
    b.append(Requantize, q, type=TensorType(2.0, 15, 5, False))
    network = IntegerNetwork(b.graph())
    plain.write(network.graph, path)
    report = compare(network, path, [torch.arange(-32.0, 32.0).add(0.5).reshape(1, 64, 1)])
    assert report.ok, report.text()


@pytest.mark.parametrize("float_output", [False, True])
def test_sums_beyond_float32(path, float_output):
    """Accumulators above 2^24 are rounded to float32 once, by both."""
    b = GraphBuilder((6000,), 3)
    b.linear(b.append(Quantize, "image", type=TensorType(1.0, 0, 8, False)), 32, float_output=float_output)
    codes = b.nodes[-1].weight.codes
    codes[:] = codes // 4 + torch.linspace(-90, 90, 32)[:, None].to(torch.int8)
    if not float_output:
        b.nodes[-1] = replace(b.nodes[-1], type=replace(b.nodes[-1].type, scale=b.nodes[-1].type.scale * 64))
    network = IntegerNetwork(b.graph())
    plain.write(network.graph, path)
    report = compare(network, path, [b.codes(150, 255, 40, 6000).float()])
    assert report.ok, report.text()


def test_versions():
    """The lowest opset and file version that hold what is in the file."""
    two, four = every_operation(0, 2).graph(), resnet_like(0, 4).graph()
    versions = {
        name: (model.opset_import[0].version, model.ir_version)
        for name, model in {
            "plain": build(two), "int4": build(four, packed=True), "int2": build(two, packed=True)
        }.items()
    }  # fmt: skip
    assert versions == {"plain": (21, 10), "int4": (21, 10), "int2": (25, 13)}


def test_packed_weights_take_their_bits(path):
    """4-bit weights half a byte, 2-bit ones a quarter; 3-bit ones take four bits."""
    for bits, stored in ((2, 2), (3, 4), (4, 4)):
        graph = resnet_like(0, bits).graph()
        raw = {tensor.name: len(tensor.raw_data) for tensor in build(graph, packed=True).graph.initializer}
        for node in graph.nodes:
            if hasattr(node, "weight") and node.weight.bits == bits:
                assert raw[f"{node.name}:weight.packed"] == -(-node.weight.codes.numel() * stored // 8)


@pytest.mark.parametrize(
    "make",
    [lambda: transformer(0), lambda: resampling(2, False), lambda: every_operation(0), two_inputs_and_two_outputs],
)
def test_operands_have_equal_ranks(make):
    """ONNX Runtime repeats a scalar element by element where the other tensor's last dimension is 1: 40 times as slowly."""
    model = onnx.shape_inference.infer_shapes(build(make().graph()), data_prop=True)
    known = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in known}
    ranks |= {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("Add", "Sub", "Mul", "Div", "Max", "Where")]
    assert nodes and [node.name for node in nodes if len({ranks[name] for name in node.input}) > 1] == []


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("network", [resnet_like, every_operation])
def test_without_optimizations(path, network, packed):
    """Layers in floats then: codes may part where a float sum lands beside a tie, by one at first, on few of them."""
    b = network(1)
    integer = IntegerNetwork(b.graph())
    plain.write(integer.graph, path, packed=packed)
    rows = compare(integer, OnnxRunner(path, integer.graph, optimize=False), [b.input(3)]).rows[:-1]
    assert sum(row.file_differ for row in rows) <= 0.002 * sum(row.compared for row in rows)


class GatherElements(OpRun):
    """Of one dimension; onnx's own takes tables of at most 32 entries."""

    op_domain = ""

    def _run(self, table, places, axis=0):
        return (table[places],)


@pytest.mark.parametrize("packed", [False, True])
def test_onnx_reference_evaluator(packed):
    """onnx's own evaluator, in floats throughout."""
    b = every_operation(2)
    graph, x = b.graph(), b.input(1)
    network = IntegerNetwork(graph)
    model = build(graph, packed=packed)
    names = [node.name for node in graph.nodes if isinstance(node.type, TensorType)]
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of casts inside the evaluator
        values = ReferenceEvaluator(model, new_ops=[GatherElements]).run(None, {"image": x.numpy()})
    codes = network.codes(x)
    differ = compared = 0
    for name, value in zip(names, values[1:]):
        expected = codes[name].to(torch.int16) + graph.by_name[name].type.carrier_offset
        differ += int((expected != torch.from_numpy(value).to(torch.int16)).sum())
        compared += expected.numel()
    assert differ <= 0.002 * compared


def test_any_batch_size(path):
    b = resnet_like(0)
    plain.write(b.graph(), path)
    runner = OnnxRunner(path, b.graph())
    assert [len(runner({"image": b.input(n)}).outputs[b.last]) for n in (1, 5)] == [1, 5]


def test_openvino(path):
    """The same file in OpenVINO, to a tolerance: most codes, and the same classes."""
    openvino = pytest.importorskip("openvino")
    b = resnet_like(0)
    plain.write(b.graph(), path)
    x = b.input(4)
    result = torch.from_numpy(openvino.compile_model(path, "CPU")(x.numpy())[0])
    expected = IntegerNetwork(b.graph())(x)
    assert float((result - expected).abs().max()) < 0.2 * float(expected.abs().max())
