"""From a trained network to a proved file, through the public functions and the command line."""

from __future__ import annotations

import importlib.util
import shutil
import weakref
from dataclasses import replace

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError, models, train
from lowbit.cli.main import main
from lowbit.formats import FORMATS, qonnx
from lowbit.formats.qonnx.runner import QonnxRunner
from lowbit.integer.ops import Convolution
from lowbit.lowering.convert import convert
from lowbit.recipes import get_recipe
from lowbit.train import run

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    prepared = lowbit.prepare(models.create("digits-cnn"), weights=3, activations=3, integer_only=True)
    return lowbit.calibrate(prepared, [X]).eval()


@pytest.fixture
def network(model):
    return lowbit.to_integer(model, X)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_written_and_proved(network, tmp_path, format):
    if format == "executorch":
        pytest.importorskip("executorch.runtime")
    if format == "hls4ml":
        pytest.skip("holds networks with power-of-two steps alone: tests/formats/test_formats_hls4ml.py")
    if format == "litert":
        pytest.importorskip("ai_edge_litert")
    if format == "c" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler: apt install gcc libc6-dev")
    report = lowbit.export(network, tmp_path / "m.file", format)
    assert {path.name for path in tmp_path.iterdir()} == {"m.file", *(f"m{s}" for s in FORMATS[format].companions)}
    assert report.ok and report.samples == 8
    codes = sum(row.compared for row in report.rows)
    assert report.compared == (80 if format == "executorch" else codes)  # which shows its output alone
    assert lowbit.verify(network, tmp_path / "m.file", [X]).ok


def test_files_get_smaller_with_the_bits(network, tmp_path):
    sizes = {}
    for format in ("lowbit", "onnx-packed", "onnx", "qonnx"):
        lowbit.export(network, tmp_path / format, format)
        sizes[format] = (tmp_path / format).stat().st_size
    assert sizes["lowbit"] < sizes["onnx-packed"] < sizes["onnx"] < sizes["qonnx"]


@pytest.mark.skipif(importlib.util.find_spec("executorch") is not None, reason="executorch is installed")
def test_a_missing_package_is_named(network, tmp_path):
    with pytest.raises(LowbitError, match=r"'executorch.*lowbit\[executorch\]"):
        lowbit.export(network, tmp_path / "m.pte", "executorch")
    assert not list(tmp_path.iterdir())


def test_verify_agrees_on_what_was_exported(model, network, tmp_path):
    lowbit.export(network, tmp_path / "m.onnx")
    report = lowbit.verify(model, tmp_path / "m.onnx", [(X, torch.arange(6))])
    assert report.ok and report.samples == 6 and report.first_difference is None
    assert report.agree == {"file": 6, "trained": 6, "fixed": 6}
    assert set(report.top1) == {"reference", "file", "trained", "fixed"}
    trained = [row for row in report.rows if row.trained_differ is not None and not row.is_float]
    assert len(trained) >= 8  # what differs are ties, summed in another order, and what follows from them
    assert sum(row.trained_differ for row in trained) <= 1e-3 * sum(row.compared for row in trained)


def test_verify_goes_through_its_batches_once(model, network, tmp_path):
    lowbit.export(network, tmp_path / "m.onnx")
    alive = []

    def batches():
        for _ in range(4):
            batch = X.clone().requires_grad_()  # as another's loop may have it
            alive.append(weakref.ref(batch))
            yield [batch]  # as a loader of a dataset without labels gives it
            del batch
            assert sum(each() is not None for each in alive[:-1]) <= 1  # not all at once in memory

    report = lowbit.verify(model, tmp_path / "m.onnx", batches())
    assert report.ok and report.samples == 4 * len(X) and report.top1 is None


def test_verify_sees_a_change_after_the_export(model, network, tmp_path):
    import copy

    lowbit.export(network, tmp_path / "m.onnx")
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_submodule("conv3").weight[:4].mul_(-1)
    report = lowbit.verify(changed, tmp_path / "m.onnx", [X])
    assert not report.ok and report.first_difference == "conv3"


def test_verify_sees_an_altered_file(network, tmp_path):
    path = tmp_path / "m.onnx"
    lowbit.export(network, path)
    file = onnx.load(path)
    weight = next(i for i in file.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 4)
    codes = numpy_helper.to_array(weight).copy()
    codes[0] = -codes[0] + 1
    weight.CopyFrom(numpy_helper.from_array(codes, weight.name))
    onnx.save(file, path)
    assert not lowbit.verify(network, path, [X]).ok


@pytest.mark.parametrize("format", ["qonnx", "lowbit"])
def test_verify_sees_another_networks_file(network, tmp_path, format):
    nodes = list(network.graph.nodes)
    place = next(i for i, node in enumerate(nodes) if isinstance(node, Convolution))
    nodes[place] = replace(nodes[place], bias=nodes[place].bias + 40)
    other = lowbit.IntegerNetwork(replace(network.graph, nodes=tuple(nodes)))
    lowbit.export(other, tmp_path / "m.file", format)
    report = lowbit.verify(network, tmp_path / "m.file", [X])
    assert not report.ok and report.first_difference == nodes[place].name


def test_a_file_that_computes_something_else_is_not_left(network, tmp_path, monkeypatch):
    def wrong(graph, path):
        original(graph, path)
        file = onnx.load(path)
        scale = next(i for i in file.graph.initializer if i.data_type == onnx.TensorProto.FLOAT)
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * 2, scale.name))
        onnx.save(file, path)

    original = FORMATS["onnx"].write
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=wrong))
    (tmp_path / "m.onnx").write_text("the old file")
    with pytest.raises(LowbitError, match="not written, because the file would not compute"):
        lowbit.export(network, tmp_path / "m.onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the old file"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda network, path: lowbit.export(network, path / "m", "tflite"), "unknown format 'tflite'"),
        (lambda network, path: lowbit.export(network, path / "no" / "m.onnx"), "there is no folder"),
        (lambda network, path: lowbit.export(network, path), "is a folder; give the name of a file"),
        (lambda network, path: lowbit.verify(network, path / "m.onnx", [X]), "m.onnx: cannot be read: No such file"),
        (lambda network, path: lowbit.verify(network, path / "m.onnx", []), "at least one batch"),
        (
            lambda network, path: lowbit.export(torch.nn.Linear(2, 2), path / "m.onnx"),
            "not a Linear: make it with lowbit.to_",
        ),
        (lambda network, path: lowbit.verify(torch.nn.Linear(2, 2), path / "m.onnx", [X]), "quantization.integer-only"),
        (lambda network, path: network(torch.zeros(1, 3, 8, 8)), "shape"),
        (lambda network, path: network(X.double()), "float32"),
        (lambda network, path: network(X * float("nan")), "NaN"),
    ],
)
def test_bad_input(network, tmp_path, call, words):
    with pytest.raises(LowbitError, match=words):
        call(network, tmp_path)


@pytest.mark.parametrize("format", ["onnx", "onnx-packed", "lowbit"])
def test_a_network_changed_after_conversion(network, tmp_path, format):
    layer = next(node for node in network.graph.nodes if isinstance(node, Convolution) and node.weight.bits == 3)
    layer.weight.codes[0] = 100
    with pytest.raises(LowbitError, match=f"node '{layer.name}': weight codes .* do not fit 3 bits"):
        lowbit.export(network, tmp_path / "m.file", format)
    with pytest.raises(LowbitError, match="do not fit 3 bits"):
        network.save(tmp_path / "m.file")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    config = get_recipe("digits-cnn")(weights=4, activations=4, method="lsq+")
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(
        replace(
            config,
            model=replace(config.model, from_scratch=True),
            quantization=replace(config.quantization, integer_only=True),
            epochs=2, compile=False, output=str(folder),
        )
    )  # fmt: skip
    return folder


def test_command_line(trained_run, capsys):
    assert main(["export", str(trained_run)]) == 0
    assert "0 of " in capsys.readouterr().out
    assert main(["verify", str(trained_run), str(trained_run / "model.onnx"), "--images", "50"]) == 0
    shown = capsys.readouterr().out
    assert "file: 0 of" in shown and "fixed: top-1" in shown
    assert main(["export", str(trained_run), "--format", "lowbit", "--file", str(trained_run / "m.lowbit")]) == 0
    network = lowbit.IntegerNetwork.load(trained_run / "m.lowbit")
    assert main(["verify", str(trained_run), str(trained_run / "config.json")]) == 2

    # Another network's steps: the file no longer is this run's.
    file = onnx.load(trained_run / "model.onnx")
    scale = next(i for i in file.graph.initializer if i.data_type == onnx.TensorProto.FLOAT and not i.dims)
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * 2, scale.name))
    onnx.save(file, trained_run / "other.onnx")
    assert main(["verify", str(trained_run), str(trained_run / "other.onnx"), "--images", "50"]) == 1
    assert torch.equal(network(X), lowbit.to_integer(train.load(trained_run)[0], X)(X))


def test_a_file_of_codes_on_the_command_line(trained_run, capsys):
    pytest.importorskip("ai_edge_litert")
    file = str(trained_run / "m.tflite")
    given = ["export", str(trained_run), "--format", "litert", "--file", file, "--images", "64"]
    assert main([*given, "--io", "codes", "--weights", "int4"]) == 0
    shown = capsys.readouterr().out
    assert "verified: 0 of" in shown
    packed = (trained_run / "m.tflite").stat().st_size
    assert main(["verify", str(trained_run), file, "--images", "50"]) == 0
    assert "file: 0 of" in capsys.readouterr().out
    assert main([*given, "--io", "codes"]) == 0
    assert packed < 0.8 * (trained_run / "m.tflite").stat().st_size
    assert main([*given, "--weights", "int4"]) == 2 and "for files of codes" in capsys.readouterr().err


def test_a_run_that_was_not_trained_for_integers(tmp_path, capsys):
    config = get_recipe("digits-cnn")(weights=4, activations=4, method="lsq")
    config = replace(config, model=replace(config.model, from_scratch=True))
    run(replace(config, epochs=1, compile=False, output=str(tmp_path / "run")))
    assert main(["export", str(tmp_path / "run")]) == 2
    assert "integer_only=True" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.onnx").exists()


class Offsets(nn.Module):
    """Offsets before a convolution with padding, a sum, a table, a product and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.silu(self.first(x))
        x = F.relu(x + self.second(x))
        return self.head((x * torch.sigmoid(self.gate(x))).mean((2, 3)))


@pytest.fixture
def fractional():
    torch.manual_seed(0)
    prepared = lowbit.prepare(Offsets(), weights=4, activations=4, method="lsq+", integer_only=True)
    prepared = lowbit.calibrate(prepared, [X]).eval()
    with_offset = [q for q in prepared.modules() if isinstance(q, lowbit.Quantizer) and q.uses_offset]
    assert len(with_offset) >= 2
    with torch.no_grad():
        for quantizer in with_offset:  # as training leaves them
            quantizer.offset.copy_(-(quantizer.zero_point.round() + 0.37) * quantizer.step)
    return prepared


def test_qonnx_takes_fractional_offsets(fractional, tmp_path):
    report = lowbit.export(fractional, tmp_path / "q.onnx", "qonnx", batches=[X])
    assert report.differ <= 0.01 * report.compared and report.compared > 6 * 64 * 8 * 3
    assert "codes differ from the trained network" in report.text()
    runner = QonnxRunner(tmp_path / "q.onnx", convert(fractional, X, fractional_zero_points=True)[0])
    fresh = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(4)) * 2 - 1
    with torch.no_grad():
        expected = fractional(fresh)
    torch.testing.assert_close(
        runner({"x": fresh}).outputs["head"], expected, rtol=0, atol=0.05 * float(expected.std())
    )


def test_fractional_offsets_anywhere_else_are_refused(fractional, tmp_path, monkeypatch):
    for call, words in (
        (lambda: lowbit.to_integer(fractional, X), "round_zero_points"),
        (lambda: lowbit.export(fractional, tmp_path / "f.onnx", batches=[X]), "takes the integer network"),
        (lambda: lowbit.export(fractional, tmp_path / "f.onnx", "qonnx"), "give at least one"),
    ):
        with pytest.raises(LowbitError, match=words):
            call()

    def altered(graph, path):
        nodes = [replace(node, bias=-node.bias) if isinstance(node, Convolution) else node for node in graph.nodes]
        qonnx.write(replace(graph, nodes=tuple(nodes)), path)

    monkeypatch.setitem(FORMATS, "qonnx", replace(FORMATS["qonnx"], write=altered))
    with pytest.raises(LowbitError, match="not written, because"):
        lowbit.export(fractional, tmp_path / "f.onnx", "qonnx", batches=[X])
    assert list(tmp_path.iterdir()) == []
