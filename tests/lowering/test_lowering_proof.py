"""The proof: it passes what is converted right, and sees what is not, whatever the fault."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from campaigns import mutations
from lowbit import LowbitError
from lowbit.integer.ops import Convolution, Lookup
from lowbit.integer.result import Result
from lowbit.layers.quantized import QuantizedLayer
from lowbit.lowering import convert as conversion
from lowbit.lowering import kinds as k
from lowbit.lowering import proof as proofs
from lowbit.lowering.codes import type_of
from lowbit.lowering.convert import Converter, convert
from lowbit.lowering.exact import ExactNetwork
from lowbit.lowering.handlers import HANDLERS
from lowbit.lowering.proof import Proof, random_inputs, trial, trial_inputs
from lowbit.verification.compare import compare


@pytest.fixture(scope="module")
def various():
    model, x = mutations.prepared("various", 4)
    return model, x, *convert(model, x[:1])


@pytest.fixture
def tokens():
    model, x = mutations.prepared("tokens", 4)
    return model, x, *convert(model, x[:1])


def test_a_right_conversion_is_proved_on_any_batch(various):
    model, x, graph, places = various
    proof = Proof(model, graph, places)
    for inputs in ({"x": x}, {"x": x[:1]}, {"x": 50 * x}, random_inputs(graph, 5)):
        assert proof(inputs) == {}


def test_wrong_conversions_of_every_operation_are_caught(various, tokens):
    """One mutation of each kind of each operation; `python -m campaigns.mutations` tries them all on seven networks."""
    tried, survivors = set(), []
    for model, x, graph, places in (various, tokens):
        inputs = trial_inputs(graph, dict.fromkeys(graph.inputs, x))
        for node in graph.nodes:
            for what, change in mutations.changes(node, graph):
                key = type(node).__name__, what
                other = mutations.mutated(graph, node, change)
                if key in tried or other is None or (change is None and node.name in places.values()):
                    continue
                tried.add(key)
                if not Proof(model, other, places)(inputs) and not mutations.same_function(graph, other, {"x": x}):
                    survivors.append(key)
    assert survivors == [] and len(tried) > 70


def small(*layers: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 9)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), *layers, nn.Flatten(), nn.LazyLinear(3))
    model(x)
    return lowbit.calibrate(lowbit.prepare(model, integer_only=True, weights=4, activations=4), [x]).eval(), x


def test_a_fault_of_a_handler_is_refused_by_the_nodes_name(monkeypatch):
    """Faults in the converter itself: a pool dropped, a clamp forgotten, batch-norm left out."""
    pooled, x = small(nn.ReLU(), nn.MaxPool2d(3, 1, 1))
    clamped, _ = small(nn.ReLU6())
    with torch.no_grad():  # so that the grid reaches beyond the clamp
        clamped.get_submodule("4").input_quantizer.raw_step.mul_(8)
        clamped.get_submodule("1").weight.mul_(20)
    for model in (pooled, clamped):
        lowbit.to_integer(model, x)
    words = (
        r"node '\w+' \(\w+\) would not compute what the trained network does: [\d,]+ of its values differ, the first is"
    )
    with monkeypatch.context() as patch, pytest.raises(LowbitError, match=words):
        patch.setitem(HANDLERS, k.MAX_POOL, HANDLERS[k.UNCHANGED])
        lowbit.to_integer(pooled, x)
    with monkeypatch.context() as patch, pytest.raises(LowbitError, match=words):
        patch.setattr(Converter, "_clamped", lambda self, codes, clamp: codes)
        lowbit.to_integer(clamped, x)
    with monkeypatch.context() as patch, pytest.raises(LowbitError, match=words):
        patch.setattr(conversion, "type_of", lambda quantizer: replace(type_of(quantizer), zero_point=1))
        lowbit.to_integer(pooled, x)


def test_verify_reports_what_differs_from_the_trained_network(various, tmp_path):
    model, x, graph, places = various
    nodes = list(graph.nodes)
    at = next(i for i, node in enumerate(nodes) if isinstance(node, Convolution) and node.bias is not None)
    nodes[at] = replace(nodes[at], bias=nodes[at].bias.roll(1))
    wrong = replace(graph, nodes=tuple(nodes))
    network = lowbit.IntegerNetwork(wrong, Proof(model, wrong, places))
    with pytest.raises(
        LowbitError, match=r"would not compute what the trained network does \(it first differs at 'pool'\)"
    ):
        lowbit.export(network, tmp_path / "wrong.onnx", batches=[x])
    assert list(tmp_path.iterdir()) == []
    lowbit.export(lowbit.IntegerNetwork(wrong), tmp_path / "unproved.onnx", batches=[x])  # a network without its origin
    right = lowbit.verify(model, tmp_path / "unproved.onnx", [x])
    assert not right.ok and right.conversion_differ == 0 and right.proved
    assert "conversion: 0 values differ" in right.text()
    report = lowbit.verify(network, tmp_path / "unproved.onnx", [x])
    assert not report.ok and report.differ == 0 and report.conversion_differ > 0


def test_ties_are_no_faults():
    """An input on every half of the grid: float32 and integers may round it either way, and neither is wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    x = torch.arange(-32.0, 32.0).reshape(1, 1, 8, 8) / 32
    prepared = lowbit.calibrate(lowbit.prepare(model, weights=2, activations=4, integer_only=True), [x]).eval()
    with torch.no_grad():
        for quantizer in dict(lowbit.quantizers(prepared)).values():
            quantizer.raw_step.fill_(2.0 ** round(float(quantizer.raw_step.log2())))  # sums lie on halves exactly
    network = lowbit.to_integer(prepared, x)
    assert network.proof(dict.fromkeys(network.graph.inputs, x)) == {}


def test_a_tie_of_what_two_layers_take_in_two_layouts_is_no_fault():
    """Thirds of sums, with a step of two thirds: what float32 rounds, the quantizer behind a transposition rounds too."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.image, self.head = nn.Linear(4, 4), nn.Conv2d(16, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            x = F.avg_pool2d(x, (1, 3))
            y = self.image(x.transpose(1, 2))
            return self.head(self.tokens(x).mean((1, 2)) + y.mean((2, 3)))

    torch.manual_seed(0)
    x = 0.01 * torch.randint(0, 10, (4, 4, 16, 12))
    prepared = lowbit.calibrate(lowbit.prepare(Two(), integer_only=True, first_last=4), [x]).eval()
    first, behind = next(prepared.activation_quantizers.children()), prepared.tokens.input_quantizer
    assert behind is prepared.image.input_quantizer
    with torch.no_grad():
        first.raw_step.mul_(0.01 / first.step)
        behind.raw_step.mul_(0.02 / 3 / behind.step)
    proof = lowbit.to_integer(prepared, x).proof
    codes, values = proof.expected({"x": x}, None, scrambled=False)
    exact = dict(values)
    away = (codes["avg_pool2d"] - exact["avg_pool2d"] / behind.step.double()).abs()
    assert 0.5 + 1e-7 < away.max() < 0.5 + 1e-5  # float32 has rounded to the code that is farther off
    assert proof({"x": x}) == {}


def test_the_trained_network_stays_as_it_is(various):
    model, x, _, _ = various
    before = copy.deepcopy(model.state_dict())
    expected = model(x)
    lowbit.to_integer(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x), expected) and not any(m._forward_hooks for m in model.modules())


def test_one_sample_and_many_chunks(various, monkeypatch):
    model, x, graph, places = various
    monkeypatch.setattr("lowbit.lowering.proof._ELEMENTS_AT_ONCE", 1)
    nodes = [replace(n, table=n.table.flip(0)) if isinstance(n, Lookup) else n for n in graph.nodes]
    proof = Proof(model, replace(graph, nodes=tuple(nodes)), places)
    assert proof._samples == 2
    alone, several = proof({"x": x[:1]}), proof({"x": x[:3]})
    assert alone and set(alone) == set(several) and all(several[name].count > alone[name].count for name in alone)


def test_weights_are_kept_in_float64_once(various):
    """The quantized ones, which the exact network computes with; not those that they are made from."""
    model, _, graph, places = various
    exact = ExactNetwork(model, graph, places)
    layers = [each for each in exact.model.modules() if isinstance(each, QuantizedLayer)]
    assert layers and all(layer.weight.dtype == torch.float32 for layer in layers)
    assert all(layer.weight_quantizer(layer.weight).dtype == torch.float64 for layer in layers)


def test_both_networks_run_side_by_side(various, monkeypatch):
    """Of the exact values, eight bytes an element, a few are there at once, not those of the whole network."""
    model, x, graph, places = various
    proof = Proof(model, graph, places)
    exact, mismatch, made, most, done = ExactNetwork.__call__, proofs._mismatch, 0, 0, 0

    def values(*arguments):
        nonlocal made, most
        for each in exact(*arguments):
            made, most = made + 1, max(most, made + 1 - done)
            yield each

    def compared(*arguments):
        nonlocal done
        done += 1
        return mismatch(*arguments)

    monkeypatch.setattr(proofs, "_mismatch", compared)
    monkeypatch.setattr(ExactNetwork, "__call__", values)
    assert proof({"x": x}) == {}
    assert done == made == len(proof._exact.names) > 10 and most <= 3


def test_codes_that_differ_from_the_same_codes_before_them_are_counted_apart(various):
    """One code of the trained network is moved: there it differs by itself, and whatever else does is behind it."""
    model, x, graph, places = various
    proof = Proof(model, graph, places)
    codes, plain, moved = dict(proof.trained({"x": x}).codes), Counter(), Counter()
    assert proof({"x": x}, codes, local_differ=plain) == {}
    at = [node.name for node in graph.nodes if node.name in codes][1]  # behind the input
    codes[at] = codes[at].clone()
    codes[at].view(-1)[:1] ^= 1
    assert proof({"x": x}, codes, local_differ=moved) == {}
    behind = {at}
    for node in graph.nodes:
        behind |= {node.name} if behind & set(node.inputs) else set()
    differ = {name for name in plain | moved if plain[name] != moved[name]}
    assert moved[at] - plain[at] == 1 and len(differ) > 1 and differ <= behind

    outputs = proof.trained({"x": x}).outputs
    report = compare(
        lowbit.IntegerNetwork(graph), proof.trained, [x], trained=lambda _: Result(codes, outputs), proof=proof
    )
    (row,) = (row for row in report.rows if row.name == at)
    assert row.local_differ == row.trained_differ == moved[at] and report.local_differ == moved.total()
    assert f"trained: {moved.total()} differ from the same codes before them" in report.text()


def test_a_layer_that_shares_the_quantizer_before_it():
    """One tensor goes to layers of other widths: the inserted quantizer is the first layer's too, at a place of its own."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(F.relu(self.first(x) + self.second(x)).mean((2, 3)))

    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    prepared = lowbit.calibrate(lowbit.prepare(Two(), method="lsq", integer_only=True), [x]).eval()
    assert prepared.first.input_quantizer is next(prepared.activation_quantizers.children())
    assert lowbit.to_integer(prepared, x).proof({"x": x}) == {}


def test_what_data_do_not_reach_is_tried_with_random_codes(various):
    """A table that is wrong at its last code alone, which neither the example nor the random inputs give."""
    model, x, graph, places = various
    inputs = trial_inputs(graph, dict.fromkeys(graph.inputs, x))
    node = next(node for node in graph.nodes if isinstance(node, Lookup))
    codes, kind = lowbit.IntegerNetwork(graph).codes(inputs)[node.inputs[0]], graph.input_types(node)[0]
    unreached = next(code for code in range(kind.qp, kind.qn, -1) if not bool((codes == code).any()))
    table = node.table.clone()
    table[unreached - kind.qn] ^= 1
    wrong = replace(graph, nodes=tuple(replace(n, table=table) if n is node else n for n in graph.nodes))
    proof = Proof(model, wrong, places)
    assert proof(inputs) == {}
    assert list(trial(proof, inputs)) == [node.name]
    assert trial(Proof(model, graph, places), inputs) == {}
