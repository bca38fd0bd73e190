"""ExecuTorch: the codes of the file, in ExecuTorch's own runtime, are the integer reference's."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from tests.format_graphs import (
    differences,
    over_the_range,
    picking,
    pixels,
    resampling,
    tables_per_channel,
    two_inputs_and_two_outputs,
    upsampling,
)
from tests.integer_graphs import GraphBuilder, all_pairs_of_bytes, every_operation, f32, resnet_like

from lowbit.errors import LowbitError
from lowbit.integer.graph import Graph, TensorType, Weight
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import (
    Add,
    Convolution,
    Lookup,
    MaxPool,
    Multiply,
    Quantize,
    Reshape,
    Slice,
    Subtract,
    Upsample,
)
from lowbit.integer.validate import validate
from lowbit.verification.compare import compare

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ExecuTorch's own imports warn
    pytest.importorskip("executorch.exir")
    from executorch.runtime import Runtime

    from lowbit.formats.executorch.runner import ExecutorchRunner

from lowbit.formats.executorch import writer

pytestmark = pytest.mark.filterwarnings("ignore")


def assert_equal(graph: Graph, x: torch.Tensor | dict[str, torch.Tensor]) -> None:
    """Every code of every node, and the outputs, sample by sample."""
    kinds = {node.name: node.type for node in graph.nodes if isinstance(node.type, TensorType)}
    program = writer.build(graph, shown=tuple(kinds))
    method = Runtime.get().load_program(program.buffer).load_method("forward")
    network = IntegerNetwork(graph)
    x = dict.fromkeys(graph.inputs, x) if isinstance(x, torch.Tensor) else x
    for parts in zip(*(x[name].split(1) for name in graph.inputs)):
        sample = dict(zip(graph.inputs, parts))
        found = method.execute([part.contiguous() for part in parts])
        results, carriers = found[: len(graph.outputs)], found[len(graph.outputs) :]
        for result, expected in zip(results, network.outputs(sample).items(), strict=True):
            assert torch.equal(result, expected[1]), expected[0]
        reference = network.codes(sample)
        for (name, kind), carrier in zip(kinds.items(), carriers, strict=True):
            differ = int((carrier.int() + 128 - kind.carrier_offset != reference[name].int()).sum())
            assert differ == 0, f"{name}: {differ} of {carrier.numel()}"


def test_codes_equal_on_a_residual_network() -> None:
    b = resnet_like(seed=3, bits=2, size=8, per_channel=True)
    assert_equal(b.graph(), b.input(3))


def test_codes_equal_for_every_operation() -> None:
    b = every_operation(seed=0, bits=4)
    assert_equal(b.graph(), b.input(3))


def test_layers_of_every_kind() -> None:
    b = GraphBuilder((3, 10, 10), seed=11)
    x = b.conv(b.quantize(8, signed=False, zero=117), 16, weight_bits=8, bits=8, zero=30, per_channel=True)
    b.conv(x, 16, 5, bits=8, weight_bits=8, per_channel=True, groups=16, padding=(1, 2), signed=True, zero=-9)
    b.conv(x, 8, bits=3, weight_bits=3, per_channel=True, negative=True, stride=2, groups=2, signed=True, dilation=2)
    x = b.conv(x, 32, 1, bits=8, weight_bits=1, bias=False, padding=(0, 0))
    # A multiplier of 1/8: one output in eight is a tie.
    scale = b.type_of(x).scale
    weight = Weight(b.codes(-8, 7, 4, 32, 1, 1).to(torch.int8), torch.tensor(0.125), 4)
    pad = ((0, 0), (0, 0))
    where = {"stride": (1, 1), "padding": pad, "dilation": (1, 1)}
    x = b.append(Convolution, x, type=TensorType(scale, 5, 8, True), weight=weight, **where)
    b.linear(b.linear(b.append(Reshape, x, shape=(-1,)), 16, float_output=False, per_channel=True), 10)
    assert_equal(b.graph(), b.input(3))


@pytest.mark.parametrize("scales", [(0.031, 0.0522, 0.071), (0.25, 0.5, 0.5)], ids=["generic", "ties"])
def test_every_pair_of_codes_of_additions_and_products(scales: tuple[float, float, float]) -> None:
    b = GraphBuilder((2, 256, 256))
    x = b.append(Quantize, "image", type=TensorType(1.0, 0, 8, True))
    codes = torch.arange(256, dtype=torch.int16)
    operands = []
    for channel, (scale, zero, signed) in enumerate([(scales[0], 17, False), (scales[1], -3, True)]):
        part = b.append(Slice, x, axis=1, start=channel, stop=channel + 1)
        kind = TensorType(f32(scale), zero, 8, signed)
        operands.append(b.append(Lookup, part, type=kind, table=codes + kind.qn))
    b.append(Add, *operands, type=TensorType(f32(scales[2]), 9, 8, False))
    b.append(Multiply, *operands, type=TensorType(f32(scales[2] * 4), -7, 8, True))
    pairs = all_pairs_of_bytes()
    assert_equal(b.graph(), torch.stack([pairs[:, :256], pairs[:, 256:]])[None])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(differences())
def test_differences(b) -> None:
    assert_equal(b.graph(), over_the_range(b, 20))


def test_every_pair_of_codes_of_a_difference() -> None:
    b = GraphBuilder((256, 256))
    b.inputs = {"image": b.shape, "other": b.shape}
    kinds = (TensorType(f32(0.031), 17, 8, False), TensorType(f32(0.0155), -3, 8, True))
    operands = [b.append(Quantize, name, type=kind) for name, kind in zip(b.inputs, kinds)]
    b.append(Subtract, *operands, type=TensorType(f32(0.062), 9, 8, False))
    codes = torch.arange(256.0)
    a, c = ((codes + kind.qn - kind.zero_point) * kind.scale for kind in kinds)
    assert_equal(b.graph(), {"image": a.expand(1, 256, 256), "other": c[:, None].expand(1, 256, 256)})


@pytest.mark.parametrize("factors", [(3,), (2, 3), (1, 1)])
def test_upsampling(factors) -> None:
    b = upsampling(factors)
    assert_equal(b.graph(), over_the_range(b))


def test_upsampling_in_three_dimensions() -> None:
    b = GraphBuilder((2, 3, 2, 2))
    b.append(Upsample, b.quantize(5), factors=(2, 1, 3))
    assert_equal(b.graph(), over_the_range(b))


@pytest.mark.parametrize("make", [resampling, picking, tables_per_channel, pixels])
@pytest.mark.parametrize("space", [1, 2])
def test_resampling_picking_and_tables_per_channel(make, space) -> None:
    b = make(space)
    assert_equal(b.graph(), b.input(3))


def test_two_inputs_and_two_outputs(tmp_path) -> None:
    b = two_inputs_and_two_outputs()
    graph, x = b.graph(), over_the_range(b)
    assert_equal(graph, x)
    writer.write(graph, tmp_path / "network.pte")
    report = compare(IntegerNetwork(graph), tmp_path / "network.pte", [x])
    assert report.ok, report.text()
    runner, expected = ExecutorchRunner(tmp_path / "network.pte", graph), IntegerNetwork(graph).outputs(x)
    for given_in in (x, dict(reversed(x.items()))):
        found = runner(given_in).outputs
        assert list(found) == list(graph.outputs)
        assert all(torch.equal(found[name], expected[name]) for name in graph.outputs)
    with pytest.raises(LowbitError, match=r"it has 2 outputs, not 1"):
        ExecutorchRunner(tmp_path / "network.pte", replace(graph, outputs=graph.outputs[:1]))(x)


@pytest.mark.parametrize("float_output", [False, True])
def test_a_linear_layer_over_leading_dimensions(float_output) -> None:
    b = GraphBuilder((6, 6))
    b.linear(b.quantize(8), 5, float_output=float_output)
    assert_equal(b.graph(), b.input(3))


@pytest.mark.parametrize("zero", [0, 30])
def test_maximum_pooling_with_padding(zero) -> None:
    b = GraphBuilder((3, 9, 9))
    x = b.conv(b.quantize(8), 8, bits=8, zero=zero)
    b.append(MaxPool, x, kernel=(3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), dilation=(1, 1))
    assert_equal(b.graph(), b.input(2))


def test_writes_a_file_that_the_runtime_loads(tmp_path) -> None:
    b = GraphBuilder((3, 4, 4))
    b.conv(b.quantize(8), 4)
    graph, x = b.graph(), b.input(3)
    writer.write(graph, tmp_path / "network.pte")
    assert [path.name for path in tmp_path.iterdir()] == ["network.pte"]
    # A loader's images may lie in memory with the channels last.
    report = compare(IntegerNetwork(graph), tmp_path / "network.pte", [x, x.to(memory_format=torch.channels_last)])
    assert report.ok and report.compared == 6 * 4 * 4 * 4, report.text()
    assert [row.file_differ for row in report.rows] == [None, 0]
    assert "does not show 1 of 2 tensors" in report.text()
    (tmp_path / "network.pte").write_bytes((tmp_path / "network.pte").read_bytes()[:200])
    with pytest.raises(LowbitError, match=r"network\.pte: ExecuTorch cannot load it"):
        compare(IntegerNetwork(graph), tmp_path / "network.pte", [x])


def _one_convolution(**changes) -> Graph:
    b = GraphBuilder((3, 4, 4))
    b.conv(b.quantize(8), 4)
    graph = b.graph()
    nodes = (graph.nodes[0], replace(graph.nodes[1], **changes))
    return validate(replace(graph, nodes=nodes))


def test_refuses_what_it_cannot_write_exactly() -> None:
    lowest = Weight(torch.full((4, 3, 3, 3), -128, dtype=torch.int8), -torch.full((4,), 0.01), 8)
    with pytest.raises(LowbitError, match=r"n1.Convolution.*narrow"):
        writer.build(_one_convolution(weight=lowest))
    with pytest.raises(LowbitError, match=r"n1.Convolution.*bias"):
        writer.build(_one_convolution(bias=torch.tensor([1 << 25 | 1, 0, 0, 0], dtype=torch.int32)))
    with pytest.raises(LowbitError, match=r"n1.Convolution.*256"):
        writer.build(_one_convolution(type=TensorType(f32(1e-7), 0, 4, False)))
    b = GraphBuilder((20_000,))  # beyond what two sums hold
    b.linear(b.quantize(8), 2)
    with pytest.raises(LowbitError, match=r"n1.Linear.*float32"):
        writer.build(validate(replace(b.graph(), nodes=(b.nodes[0], _heavy(b.nodes[1])))))


def _heavy(node):
    return replace(node, weight=Weight(torch.full_like(node.weight.codes, 127), node.weight.scale, 8))
