"""QONNX: the file's values are the integer reference's, in qonnx's executor where it is installed, else in a stand-in for it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
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
from tests.lowering.test_lowering_powers import block
from torch import nn

import lowbit
from lowbit.errors import LowbitError
from lowbit.formats import qonnx
from lowbit.formats.qonnx.writer import build
from lowbit.integer.graph import Graph, TensorType
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import Add, AveragePool, Lookup, Multiply, Quantize, Requantize, Slice, Subtract
from lowbit.integer.run import run
from lowbit.integer.validate import validate


class Quant(OpRun):
    """The operator's specification: rint(clip(x / scale + zero_point)), then back."""

    op_domain = qonnx.DOMAIN

    def _run(self, x, scale, zero_point, bits, signed=None, narrow=None, rounding_mode=None):
        assert rounding_mode == "ROUND"
        low = -(2 ** (bits - 1)) + narrow if signed else 0
        high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
        q = np.rint(np.clip(x / scale + zero_point, low, high))
        return (((q - zero_point) * scale).astype(np.float32),)


class BipolarQuant(OpRun):
    op_domain = qonnx.DOMAIN

    def _run(self, x, scale):
        return (np.where(x >= 0, scale, -scale).astype(np.float32),)


def values(graph: Graph, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Every node's value in the exported file."""
    model = build(graph)
    if onnx.__version__ < "1.23" and any(node.op_type == "Gather" for node in model.graph.node):
        pytest.skip("the Gather of onnx 1.22's ReferenceEvaluator raises an AttributeError of its own")
    names = [node.name for node in graph.nodes]
    for name in names:
        if name not in {output.name for output in model.graph.output}:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    found = ReferenceEvaluator(model, new_ops=[Quant, BipolarQuant]).run(None, {next(iter(graph.inputs)): x.numpy()})
    return dict(zip([output.name for output in model.graph.output], found))


def assert_equal(graph: Graph, x: torch.Tensor, found: dict[str, np.ndarray]) -> None:
    for name, codes in run(graph, x):
        kind = graph.by_name[name].type
        expected = codes.numpy().astype(np.float32)
        if isinstance(kind, TensorType):
            expected = expected - kind.zero_point
        differ = int((found[name] != expected).sum())
        assert differ == 0, f"{name}: {differ} of {expected.size}"


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_every_operation_equals_the_reference(bits):
    b = every_operation(bits, bits)
    graph, x = b.graph(), b.input(2)
    assert_equal(graph, x, values(graph, x))


@pytest.mark.parametrize("seed", range(3))
def test_residual_networks_equal_the_reference(seed):
    b = resnet_like(seed, 2 + seed, per_channel=True)
    graph, x = b.graph(), b.input(2)
    assert_equal(graph, x, values(graph, x))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.one_of(differences(), moves(), broadcasts(), matrix_products(), reductions(), normalizations(), softmaxes()))
def test_operations_alone(tmp_path_factory, b):
    folder = tmp_path_factory.mktemp("alone", numbered=True)
    assert lowbit.export(IntegerNetwork(b.graph()), folder / "d.onnx", "qonnx", batches=[over_the_range(b)]).ok


@pytest.mark.parametrize("factors", [(3,), (2, 3), (2, 1, 3)])
def test_upsampling_equals_the_reference(factors):
    b = upsampling(factors)
    graph, x = b.graph(), b.input(2)
    assert_equal(graph, x, values(graph, x))


@pytest.mark.parametrize("make", [resampling, picking, tables_per_channel, pixels])
@pytest.mark.parametrize("space", [1, 2, 3])
def test_resampling_picking_and_tables_per_channel_equal_the_reference(make, space):
    b = make(space)
    graph, x = b.graph(), b.input(2)
    assert_equal(graph, x, values(graph, x))


def test_indices(tmp_path):
    b = sentences()
    assert lowbit.export(IntegerNetwork(b.graph()), tmp_path / "words.onnx", "qonnx", batches=[indices(b)]).ok


def test_transformers(tmp_path):
    b = transformer()
    assert lowbit.export(IntegerNetwork(b.graph()), tmp_path / "network.onnx", "qonnx", batches=[b.input(4)]).ok


def test_two_inputs_and_two_outputs(tmp_path):
    b = two_inputs_and_two_outputs()
    report = lowbit.export(IntegerNetwork(b.graph()), tmp_path / "two.onnx", "qonnx", batches=[b.input(3)])
    assert report.ok and report.compared == sum(row.compared for row in report.rows)


@pytest.mark.parametrize("seed", range(10))
def test_two_tensors_at_ties(seed):
    """Every pair of bytes, at scales beside simple fractions of each other: factors must be moved, or a table take over."""
    b = GraphBuilder((512,), seed)
    q = b.append(Quantize, "image", type=TensorType(1.0, 128, 8, False))
    one, other = (b.append(Slice, q, axis=1, start=k, stop=k + 256) for k in (0, 256))
    zeros = b.codes(0, 255, 3).tolist() if seed % 2 else [0, 0, 0]
    scales = [nearly(0.01 * 2.0 ** -(seed % 3), b.random), nearly(0.03, b.random)]
    table = torch.arange(256, dtype=torch.int16)
    one = b.append(Lookup, one, type=TensorType(scales[0], zeros[0], 8, False), table=table)
    other = b.append(Lookup, other, type=TensorType(scales[1], zeros[1], 8, False), table=table)
    b.append(Add, one, other, type=TensorType(nearly(0.04, b.random), zeros[2] - 128, 8, True))
    b.append(Multiply, one, other, type=TensorType(nearly(0.0003 * 64, b.random), zeros[2], 8, False))
    b.append(Subtract, one, other, type=TensorType(nearly(0.02, b.random), zeros[2], 8, False))
    graph, x = b.graph(), all_pairs_of_bytes()
    assert_equal(graph, x, values(graph, x))


def halves() -> tuple[Graph, torch.Tensor]:
    """Every step lies on a half, on grids with odd zero points: which code is even depends on when the zero point is added."""
    b = GraphBuilder((64, 1), 0)
    q = b.append(Quantize, "image", type=TensorType(1.0, 33, 7, False))
    b.append(Requantize, q, type=TensorType(2.0, 15, 5, False))
    return b.graph(), torch.arange(-32.0, 32.0).add(0.5).reshape(1, 64, 1)


def test_halves_at_odd_zero_points():
    graph, x = halves()
    assert_equal(graph, x, values(graph, x))
    codes = dict(run(graph, x))
    assert codes["n0.Quantize"].flatten()[:4].tolist() == [1, 3, 3, 5]  # −32, −30, −30, −28 and 33


def test_fractional_zero_point():
    """An LSQ+ offset before snapping: Quant takes it as it is."""
    b = GraphBuilder((2, 6, 6), 0)
    b.quantize(4, signed=False)
    b.nodes[0] = replace(b.nodes[0], type=TensorType(f32(0.3), 2.625, 4, False))
    graph = Graph(inputs={"image": (2, 6, 6)}, nodes=tuple(b.nodes), outputs=(b.last,))
    with pytest.raises(LowbitError, match="round it before conversion"):
        validate(graph)
    graph = validate(graph, fractional_zero_points=True)
    x = b.input(2)
    steps = np.rint(np.clip(x.numpy() / np.float32(0.3) + np.float32(2.625), 0, 15)) - np.float32(2.625)
    assert (values(graph, x)[b.last] == steps.astype(np.float32)).all()


@pytest.mark.parametrize("zero", [-3.98, -3.92, -3.84, -2.4])
def test_a_table_behind_a_fractional_zero_point(zero):
    kind = TensorType(1.0, f32(zero), 4, True)
    table = torch.arange(16, dtype=torch.int16)
    nodes = (
        Quantize(name="codes", inputs=("x",), type=kind),
        Lookup(name="looked", inputs=("codes",), type=TensorType(1.0, 0, 4, False), table=table),
    )
    graph = validate(Graph({"x": (16,)}, nodes, ("looked",)), fractional_zero_points=True)
    x = (torch.arange(-8.0, 8.0) - f32(zero)).reshape(1, 16)
    assert values(graph, x)["looked"].flatten().tolist() == table.tolist()


def test_output_codes_are_dequantized():
    b = GraphBuilder((2, 6, 6), 0)
    name = b.conv(b.quantize(8), 4, bits=5, zero=3)
    graph, x = b.graph(), b.input(2)
    result = values(graph, x)[f"{name}:real"]
    codes = dict(run(graph, x))[name].numpy().astype(np.float32)
    assert (result == (codes - 3) * np.float32(graph.by_name[name].type.scale)).all()


@pytest.mark.parametrize("network", [resnet_like, every_operation])
def test_qonnx_executor(network, tmp_path):
    """QONNX's own executor (needs onnx 1.22), and its QuantToQCDQ run by ONNX Runtime, where no zero point is in the way."""
    pytest.importorskip("qonnx")
    import onnxruntime
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes
    from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ
    from qonnx.util.inference_cost import inference_cost

    b = network(0, 3)
    graph, x = b.graph(), b.input(2)
    qonnx.write(graph, tmp_path / "network.onnx")
    model = onnx.load(tmp_path / "network.onnx")
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = len(x)
    wrapper = ModelWrapper(model).transform(InferShapes())
    assert_equal(graph, x, execute_onnx(wrapper, {"image": x.numpy()}, return_full_exec_context=True))
    cost = inference_cost(wrapper, discount_sparsity=False)["total_cost"]
    rows = IntegerNetwork(graph).costs()
    # Their tool counts the window sums of an average pool as multiplications by ones too.
    pools = sum(math.prod(n.type.shape) * math.prod(n.kernel) for n in graph.nodes if isinstance(n, AveragePool))
    assert cost["total_macs"] == len(x) * (sum(row.macs for row in rows) + pools)
    if network is every_operation:
        return  # QuantToQCDQ's files with other zero points do not load
    assert cost["total_bops"] == len(x) * sum(row.bit_operations for row in rows)
    codes = [node.weight for node in graph.nodes if hasattr(node, "weight")]
    assert cost["total_mem_w_bits"] == sum(weight.codes.numel() * weight.bits for weight in codes)
    converted = wrapper.transform(QuantToQCDQ()).model
    session = onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"image": x.numpy()})
    assert (result == dict(run(graph, x))[graph.outputs[0]].numpy()).all()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_qonnx_transformations_keep_what_power_of_two_networks_compute(tmp_path):
    """Those that FINN's and hls4ml's own conversions begin with; integers are found to be integers."""
    reason = "qonnx is not installed: pip install qonnx"
    core = pytest.importorskip("qonnx.core.modelwrapper", reason=reason)
    from qonnx.core import onnx_exec
    from qonnx.transformation.change_batchsize import ChangeBatchSize
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.transformation.extract_conv_bias import ExtractBiasFromConv
    from qonnx.transformation.gemm_to_matmul import GemmToMatMul
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.transformation.infer_shapes import InferShapes
    from qonnx.util.cleanup import cleanup_model

    torch.manual_seed(0)
    network, x = (
        nn.Sequential(block(1, 8), nn.MaxPool2d(2), block(8, 8, 2), nn.Flatten(), nn.Linear(32, 5)),
        torch.rand(16, 1, 8, 8),
    )
    network(x)
    prepared = lowbit.prepare(network, integer_only=True, scales="power-of-two")
    integer = lowbit.to_integer(lowbit.calibrate(prepared, [x]).eval(), x[:1])
    lowbit.export(integer, tmp_path / "net.onnx", "qonnx")
    expected = integer(x[:2])

    def same(model) -> bool:
        name, given = model.graph.output[0].name, model.graph.input[0].name
        found = [onnx_exec.execute_onnx(model, {given: sample[None].numpy()})[name] for sample in x[:2]]
        return torch.equal(torch.from_numpy(np.concatenate(found)), expected)

    model = core.ModelWrapper(str(tmp_path / "net.onnx")).transform(ChangeBatchSize(1)).transform(InferShapes())
    assert same(model)
    cleaned = cleanup_model(model)
    assert same(cleaned)
    assert same(cleaned.transform(ConvertToChannelsLastAndClean(make_input_channels_last=False)))
    for each in (ExtractBiasFromConv(), GemmToMatMul(), InferShapes(), InferDataTypes()):
        cleaned = cleaned.transform(each)
        assert same(cleaned), type(each).__name__
    kinds = {node.op_type: cleaned.get_tensor_datatype(node.output[0]).name for node in cleaned.graph.node}
    assert kinds["Conv"] == kinds["MatMul"] == "INT32" and kinds["Quant"].startswith(("INT", "UINT"))
