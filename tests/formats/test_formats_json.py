"""The network as text: what is written is read back, and says what the network is."""

from __future__ import annotations

import json

import pytest
import torch
from tests.format_graphs import two_inputs_and_two_outputs
from tests.integer_graphs import every_operation

import lowbit
from lowbit import LowbitError
from lowbit.formats import json as format_json
from lowbit.formats import open_file
from lowbit.integer.network import IntegerNetwork


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_round_trip(bits, tmp_path):
    b = every_operation(bits, bits)
    network, path = IntegerNetwork(b.graph()), tmp_path / "network.json"
    assert lowbit.export(network, path, "json", batches=[b.input(2)]).ok
    again = IntegerNetwork(format_json.load(path))
    network.save(tmp_path / "one"), again.save(tmp_path / "other")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_the_text_has_the_numbers(tmp_path):
    b = two_inputs_and_two_outputs()
    graph = b.graph()
    path = tmp_path / "network.json"
    format_json.write(graph, path)
    content = json.loads(path.read_text())
    assert content["lowbit"] == 2 and content["graph"]["inputs"] == {"second": [3, 6, 5], "first": [3, 6, 5]}
    layer = next(node for node in graph.nodes if hasattr(node, "weight"))
    stored = content["tensors"][f"{layer.name}:weight"]
    codes = torch.tensor(stored["values"]).reshape(stored["shape"] or -1) - 2 ** (layer.weight.bits - 1)
    assert torch.equal(codes.reshape(layer.weight.codes.shape), layer.weight.codes.long())
    assert content["tensors"][f"{layer.name}:bias"]["values"] == layer.bias.tolist()
    lines = path.read_text().splitlines()
    assert sum('"operation"' in line for line in lines) == len(
        graph.nodes
    )  # a line per node: `diff` shows what changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["tensors"]["n1.Convolution:bias"]["values"].pop(), "must have 16 values"),
        (lambda c: c["tensors"]["n1.Convolution:bias"]["values"].__setitem__(0, 0.5), "0.5 is not one of its values"),
        (lambda c: c["tensors"]["n1.Convolution:weight"]["values"].__setitem__(0, 256), "do not fit 8 bits"),
        (lambda c: c["tensors"]["n1.Convolution:scale"].update(shape=[3]), r"must have shape \(16,\)"),
        (lambda c: c["tensors"].pop("n1.Convolution:scale"), "must have the fields shape, values"),
        (lambda c: c["tensors"].update(stray={}), "belong to no node: .stray"),
        (lambda c: c.update(tensors=[]), "are no object"),
        (lambda c: c.update(lowbit=5), "version 5, this lowbit reads up to 4"),
        (lambda c: c.pop("graph"), "must have the fields graph, lowbit, tensors"),
    ],
)
def test_changed_text_is_refused(change, words, tmp_path):
    path = tmp_path / "network.json"
    format_json.write(every_operation(0).graph(), path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(
        LowbitError, match=words if isinstance(content["tensors"], list) else "checksum does not fit|lowbit"
    ):
        format_json.load(path)
    del content["sha256"]  # by someone who means it
    path.write_text(json.dumps(content))
    with pytest.raises(LowbitError, match=words):
        format_json.load(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "3", '{"lowbit": NaN}'])
def test_other_text_is_refused(text, tmp_path):
    (tmp_path / "network.json").write_text(text)
    with pytest.raises(LowbitError, match=r"network\.json"):
        format_json.load(tmp_path / "network.json")


def test_a_changed_number_shows(tmp_path):
    b = every_operation(0)
    graph, path = b.graph(), tmp_path / "network.json"
    format_json.write(graph, path)
    content = json.loads(path.read_text())
    content["tensors"]["n1.Convolution:bias"]["values"][0] += 5000
    del content["sha256"]
    path.write_text(json.dumps(content))
    report = lowbit.verify(IntegerNetwork(graph), path, [b.input(2)])
    assert not report.ok and report.first_difference == "n1.Convolution"
    assert open_file(path, graph)({"image": b.input(1)}).outputs[graph.outputs[0]].shape == (1, 10)
