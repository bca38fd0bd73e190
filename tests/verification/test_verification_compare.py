"""compare(): it finds what differs, where, and says so."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.integer_graphs import resnet_like

from lowbit.deployment import export
from lowbit.errors import LowbitError
from lowbit.formats import onnx as plain
from lowbit.formats.onnx.runner import OnnxRunner
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.result import Result
from lowbit.lowering.proof import random_inputs
from lowbit.verification.compare import _count, compare
from lowbit.verification.report import Row


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    b = resnet_like(0)
    path = tmp_path_factory.mktemp("compare") / "network.onnx"
    network = IntegerNetwork(b.graph())
    plain.write(network.graph, path)
    return network, path, b.input(4)


def test_equal(exported):
    network, path, x = exported
    labels = network(x).argmax(1)
    labels[0] += 1
    report = compare(network, path, [(x[:1], labels[:1]), [x[1:], labels[1:]]], fixed=True)
    assert report.ok
    assert report.first_difference is None
    assert report.samples == 4
    assert report.top1 == {"reference": 3, "file": 3, "fixed": 3}
    assert report.agree == {"file": 4, "fixed": 4}
    assert [row.compared for row in report.rows[:2]] == [4 * 3 * 144, 4 * 16 * 144]
    text = report.text()
    assert "0 of" in text
    assert "top-1 75.00 %" in text


def change_bias(path, folder, name: str, value: int):
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == f"{name}:bias":
            bias = numpy_helper.to_array(tensor).copy()
            bias[0] += value
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def test_first_layer_that_parts_is_named(exported, tmp_path):
    network, path, x = exported
    changed = change_bias(path, tmp_path, "n4.Convolution", 100_000)
    report = compare(network, changed, [x])
    assert not report.ok
    assert report.first_difference == "n4.Convolution"
    rows = {row.name: row for row in report.rows}
    assert rows["n3.Convolution"].file_differ == 0
    assert rows["n4.Convolution"].file_differ > 0
    assert rows["n4.Convolution"].file_largest >= 1
    assert "first differs at n4.Convolution" in report.text()


def test_a_difference_in_the_output_alone_counts(exported, tmp_path):
    network, path, x = exported
    report = compare(network, change_bias(path, tmp_path, "n15.Linear", 1), [x])
    assert report.first_difference == "n15.Linear"


def test_trained_column(exported):
    """The trained model's codes where it has them; in floats, one of them off by two."""
    network, path, x = exported

    def trained(batch):
        codes = network.codes(batch)
        wrong = codes["n5.Add"].double()
        wrong[0, 0, 0, 0] += 2
        return Result({"n0.Quantize": codes["n0.Quantize"], "n5.Add": wrong}, {"n15.Linear": -codes["n15.Linear"]})

    report = compare(network, path, [x], trained=trained)
    rows = {row.name: row for row in report.rows}
    assert report.ok
    assert (
        rows["n0.Quantize"].trained_differ,
        rows["n5.Add"].trained_differ,
        rows["n1.Convolution"].trained_differ,
    ) == (0, 1, None)
    assert rows["n5.Add"].trained_largest == 2
    assert report.first_trained_difference == "n5.Add"
    assert report.agree["trained"] == int((-network(x)).argmax(1).eq(network(x).argmax(1)).sum())
    assert "trained: first differs at n5.Add" in report.text()


def test_nan_differs(exported):
    network, path, x = exported
    report = compare(network, path, [x], trained=lambda b: Result({}, {"n15.Linear": network(b) * float("nan")}))
    assert report.rows[-1].trained_differ == 40
    assert report.rows[-1].trained_largest == float("inf")


@pytest.mark.parametrize("elements", [7, 1000])
def test_differences_are_counted_block_by_block(monkeypatch, elements):
    monkeypatch.setattr("lowbit.verification.compare._ELEMENTS_OF_A_BLOCK", elements)
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 255, (5, 4, 3), dtype=np.uint8)
    found = codes.astype(np.int16)
    found[4, 3, 1:] -= (300, 2)
    found[0, 2, 2] += 255
    row = Row("tensor")
    for _ in range(2):  # two batches
        _count(
            row, "file", torch.from_numpy(codes), torch.from_numpy(found).transpose(0, 2).contiguous().transpose(0, 2)
        )
    apart = codes.astype(int) - found
    assert (row.file_differ, row.file_largest) == (2 * np.count_nonzero(apart), abs(apart).max()) == (6, 300)


def test_wrong_shape_of_trained_codes(exported):
    network, path, x = exported
    with pytest.raises(LowbitError, match=r"n5\.Add: the trained's tensor has shape"):
        compare(network, path, [x], trained=lambda b: Result({"n5.Add": torch.zeros(1)}, {"n15.Linear": network(b)}))


def test_no_data(exported):
    with pytest.raises(LowbitError, match="no data"):
        compare(exported[0], exported[1], [])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({}, "not a dict"),
        ({"image": [0.0]}, "not a dict"),
        ({"picture": torch.zeros(2, 3, 12, 12)}, "inputs are image, but tensors are given for picture"),
        ((), "not a tuple of "),
        ((torch.zeros(2, 3, 12, 12), [1, 2]), "not a tuple of Tensor, list"),
        ((torch.zeros(2, 3, 12, 12), torch.zeros(2, 10)), r"one per input: 2, but they have shape \(2, 10\)"),
        ((torch.zeros(2, 3, 12, 12), torch.zeros(3)), r"one per input: 2, but they have shape \(3,\)"),
    ],
)
def test_batches_that_are_none(exported, batch, words):
    with pytest.raises(LowbitError, match=words):
        compare(exported[0], exported[1], [batch])


def test_file_of_another_network(exported):
    network, path, _ = exported
    nodes = tuple(
        replace(n, name="other", inputs=n.inputs) if n is network.graph.nodes[-2] else n for n in network.graph.nodes
    )
    nodes = (*nodes[:-1], replace(nodes[-1], inputs=("other",)))
    other = IntegerNetwork(replace(network.graph, nodes=nodes))
    with pytest.raises(LowbitError, match="no tensor 'other'; export it again"):
        compare(other, path, [torch.zeros(1, 3, 12, 12)])


def test_no_onnx_file(exported, tmp_path):
    with pytest.raises(LowbitError, match="cannot be read as ONNX"):
        OnnxRunner(tmp_path / "none.onnx", exported[0].graph)
    (tmp_path / "bad.onnx").write_bytes(exported[1].read_bytes()[:1000])
    with pytest.raises(LowbitError, match=r"bad\.onnx"):
        OnnxRunner(tmp_path / "bad.onnx", exported[0].graph)


def test_without_onnxruntime(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "lowbit.formats.onnx.runner", raising=False)
    with pytest.raises(LowbitError, match="onnxruntime is not installed"):
        compare(exported[0], exported[1], [exported[2]])


def test_a_few_samples_at_a_time_where_tensors_are_large(exported, monkeypatch):
    """The same report, of every tensor of two samples at once."""
    network, path, x = exported
    labels, runner, seen = torch.arange(len(x)), OnnxRunner(path, network.graph), []

    def run(inputs):
        seen.append(len(inputs["image"]))
        return runner(inputs)

    whole = compare(network, run, [(x, labels)])
    monkeypatch.setattr("lowbit.verification.compare._ELEMENTS_AT_ONCE", 2 * network.graph.elements() + 1)
    parts = compare(network, run, [(x, labels)])
    assert parts == whole and whole.samples == len(x)
    assert seen == [len(x), *[2] * (len(x) // 2), *[1] * (len(x) % 2)]


def test_fewer_random_samples_where_tensors_are_large(exported, tmp_path, monkeypatch):
    network, _, _ = exported
    elements = sum(math.prod(node.type.shape) for node in network.graph.nodes)
    monkeypatch.setattr("lowbit.deployment._ELEMENTS_OF_RANDOM_INPUTS", 4 * elements - 1)
    assert export(network, tmp_path / "network.onnx").samples == 3
    assert export(network, tmp_path / "network.onnx", batches=[random_inputs(network.graph, 5)]).samples == 5
