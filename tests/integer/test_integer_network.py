"""IntegerNetwork: its calls, and what it says of its costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.integer_graphs import GraphBuilder, resnet_like

from lowbit.errors import LowbitError
from lowbit.integer.graph import FloatType
from lowbit.integer.network import IntegerNetwork


def test_call_gives_the_float_output_and_codes_every_tensor():
    b = resnet_like(0)
    network, x = IntegerNetwork(b.graph()), b.input(3)
    codes = network.codes(x)
    assert list(codes) == [node.name for node in network.graph.nodes]
    assert torch.equal(network(x), codes["n15.Linear"])
    assert network(x).dtype == torch.float32
    for node in network.graph.nodes:
        assert tuple(codes[node.name].shape) == (3, *node.type.shape)
        if not isinstance(node.type, FloatType):
            assert codes[node.name].dtype == (torch.int8 if node.type.signed else torch.uint8)
            assert node.type.qn <= int(codes[node.name].min()) <= int(codes[node.name].max()) <= node.type.qp


def test_quantized_output_is_dequantized():
    b = GraphBuilder((2, 6, 6), 0)
    name = b.conv(b.quantize(8), 4, bits=5, zero=3)
    network, x = IntegerNetwork(b.graph()), b.input(2)
    kind = network.graph.by_name[name].type
    assert torch.equal(network(x), (network.codes(x)[name].float() - 3) * kind.scale)
    assert torch.equal(network(x, "fixed"), (network.codes(x, "fixed")[name].float() - 3) * kind.scale)


def test_results_do_not_depend_on_the_batch():
    b = resnet_like(1)
    network, x = IntegerNetwork(b.graph()), b.input(5)
    assert torch.equal(network(x), torch.cat([network(each[None]) for each in x]))


def test_save_and_load(tmp_path):
    b = resnet_like(0)
    network, x = IntegerNetwork(b.graph()), b.input(1)
    network.save(tmp_path / "n.safetensors")
    assert torch.equal(IntegerNetwork.load(tmp_path / "n.safetensors")(x), network(x))


def test_costs():
    network = IntegerNetwork(resnet_like(0, 2).graph())
    rows = {row.name: row for row in network.costs()}
    conv = rows["n7.Convolution"]  # 16 → 32 channels, 3 × 3, stride 2, 12 × 12 → 6 × 6
    assert conv.macs == 32 * 36 * 16 * 9
    assert conv.bit_operations == conv.macs * 2 * 2
    assert conv.weight_bytes == 32 * 16 * 9 * 2 // 8 + 4 * (32 + 1)
    assert conv.output_bytes == 32 * 36 * 2 // 8
    assert conv.parameters == 32 * 16 * 9 + 32
    assert (rows["n15.Linear"].weight_bits, rows["n15.Linear"].output_bits) == (8, 32)
    assert rows["n0.Quantize"].macs == rows["n5.Add"].macs == 0
    text = network.summary().splitlines()
    assert len(text) == len(rows) + 2
    assert f"{sum(row.macs for row in rows.values()):,}" in text[-1]


def test_a_wrong_graph_is_refused():
    b = resnet_like(0)
    graph = b.graph()
    with pytest.raises(LowbitError):
        IntegerNetwork(replace(graph, inputs={"image": (4, 12, 12)}))
