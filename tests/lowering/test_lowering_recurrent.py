"""Recurrent layers, from prepare to files: written out over time, one grid for all steps, states of 16 bits."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit.formats import json
from lowbit.integer.graph import TensorType
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import Linear, Lookup, Slice, SumOfProducts
from tests.lowering.networks import agreement, caught

X = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(3))
STATES = {"h": torch.randn(6, 8, generator=torch.Generator().manual_seed(4)) / 2, "c": torch.ones(6, 8)}


class Layers(nn.Module):
    """A recurrent layer whose sequence and last states are both used."""

    def __init__(self, kind, *, given: bool = False, **options) -> None:
        super().__init__()
        self.rnn, self.given = kind(7, 8, **options), given
        size = options.get("proj_size", 8)
        self.head = nn.Linear(size * (2 if options.get("bidirectional") else 1) + size, 3)

    def forward(self, x, h=None, c=None):
        x = x if self.rnn.batch_first else x.transpose(0, 1)
        state = None
        if self.given:
            state = (h[None], c[None]) if isinstance(self.rnn, nn.LSTM) else h[None]
        y, last = self.rnn(x, state)
        h = last[0] if isinstance(self.rnn, nn.LSTM) else last
        y = y if self.rnn.batch_first else y.transpose(0, 1)
        return self.head(torch.cat([y.mean(1), h[-1]], -1))


class Cells(nn.Module):
    """A cell in a loop of the network's own."""

    def __init__(self, kind) -> None:
        super().__init__()
        self.cell, self.head = kind(7, 8), nn.Linear(8, 3)

    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


NETWORKS = {
    "LSTM": lambda: Layers(nn.LSTM, batch_first=True),
    "LSTM, deep": lambda: Layers(nn.LSTM, num_layers=2, bidirectional=True, dropout=0.2),
    "LSTM, given states": lambda: Layers(nn.LSTM, given=True),
    "LSTM, without bias": lambda: Layers(nn.LSTM, batch_first=True, bias=False),
    "LSTM, projected": lambda: Layers(nn.LSTM, batch_first=True, proj_size=4),
    "GRU": lambda: Layers(nn.GRU, batch_first=True),
    "GRU, deep": lambda: Layers(nn.GRU, num_layers=2, bidirectional=True, batch_first=True),
    "GRU, given states": lambda: Layers(nn.GRU, given=True, batch_first=True),
    "RNN": lambda: Layers(nn.RNN),
    "RNN, relu": lambda: Layers(nn.RNN, nonlinearity="relu", batch_first=True, bidirectional=True),
    "LSTMCell": lambda: Cells(nn.LSTMCell),
    "GRUCell": lambda: Cells(nn.GRUCell),
    "RNNCell": lambda: Cells(nn.RNNCell),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", NETWORKS)
def test_recurrent_layers(name, tmp_path):
    torch.manual_seed(0)
    model = NETWORKS[name]()
    names = set(model.state_dict())
    batch = {"x": X} | (STATES if "given" in name else {})
    if "given" in name and not isinstance(model.rnn, nn.LSTM):
        del batch["c"]
    network = lowbit.prepare(model, weights=8, activations=8, integer_only=True, example_input=batch)
    lowbit.calibrate(network, [batch])
    assert names <= set(network.state_dict())
    network.train()
    F.cross_entropy(network(**batch), torch.arange(6) % 3).backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
    weights = [p for p in network.parameters() if p.ndim == 2]
    assert all(bool(p.grad.any()) for p in weights)
    network.eval()
    expected = model.eval()(**batch)
    assert float((network(**batch) - expected).abs().max()) < 0.15 * float(expected.abs().max())
    integer = lowbit.to_integer(network, batch)
    compared, differ = agreement(network, batch)
    assert differ <= 0.01 * compared
    assert lowbit.export(integer, tmp_path / "network.onnx", batches=[batch]).differ == 0
    integer.save(tmp_path / "network.safetensors")
    again = IntegerNetwork.load(tmp_path / "network.safetensors")
    assert torch.equal(again(batch), integer(batch))


def prepared(kind, **options):
    torch.manual_seed(0)
    network = lowbit.prepare(Layers(kind, batch_first=True), integer_only=True, example_input=X, **options)
    return lowbit.calibrate(network, [X]).eval()


def test_one_grid_for_all_steps_and_16_bits_for_what_is_carried_on():
    graph = lowbit.to_integer(prepared(nn.LSTM, weights=4, activations=8), X).graph
    cells = [node for node in graph.nodes if isinstance(node, SumOfProducts)]
    assert len(cells) == X.shape[1]
    assert len({node.type.code_type for node in cells}) == 1 and cells[0].type.bits == 16
    hidden = [node for node in graph.nodes if isinstance(node, Linear) and node.weight.codes.shape == (32, 8)]
    assert len(hidden) == X.shape[1] and all(node.weight is hidden[0].weight for node in hidden)
    tables = [node.table for node in graph.nodes if isinstance(node, Lookup) and len(node.table) == 1 << 16]
    assert len(tables) == X.shape[1] and all(table is tables[0] for table in tables)


def test_fewer_bits_of_states_by_a_rule_and_what_files_hold_then(tmp_path):
    rules = [lowbit.Rule(r"activation_quantizers\..*cell.*", activations=8)]
    for bits, by in ((16, []), (8, rules)):
        integer = lowbit.to_integer(prepared(nn.LSTM, weights=4, activations=8, rules=by), X)
        assert {node.type.bits for node in integer.graph.nodes if isinstance(node, SumOfProducts)} == {bits}
        for form in ("qonnx", "c"):
            path = tmp_path / f"network{bits}.{form}"
            if bits == 16:
                with pytest.raises(lowbit.LowbitError, match="codes of 8 bits"):
                    lowbit.export(integer, path, form, batches=[X])
            else:
                assert lowbit.export(integer, path, form, batches=[X]).ok


def test_equal_tensors_are_stored_once(tmp_path):
    integer = lowbit.to_integer(prepared(nn.LSTM, weights=4, activations=8), X)
    for form in ("lowbit", "onnx", "onnx-packed"):
        lowbit.export(integer, tmp_path / form, form, batches=[X])
        assert (tmp_path / form).stat().st_size < 160_000  # the table of tanh of a cell has 65,536 bytes
    assert lowbit.export(integer, tmp_path / "json", "json", batches=[X]).ok
    text = re.sub(r'"sha256".*\n', "", (tmp_path / "json").read_text())
    place = text.index('"of"')
    (tmp_path / "json").write_text(text[:place] + text[place:].replace('"of": "', '"of": "no ', 1))
    with pytest.raises(lowbit.LowbitError, match=r"no earlier (Lookup|Linear) has the name"):
        json.load(tmp_path / "json")


def test_what_is_refused_is_named():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(7, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.rnn(x[:, 0])[0])

    with pytest.raises(lowbit.LowbitError, match=r"nn\.LSTM of a packed sequence, or without a batch"):
        lowbit.prepare(Network(), integer_only=True, example_input=X)


def test_without_integers_they_are_named():
    with pytest.warns(lowbit.UnquantizedWarning, match=r"rnn \(LSTM\)"):
        lowbit.prepare(Layers(nn.LSTM, batch_first=True), weights=4, activations=8)


def test_a_wide_sum_of_products_is_exact_in_its_range():
    gate, state = TensorType(0.00390625, 0, 8, False), TensorType(0.000030517578125, 0, 16, True)
    node = SumOfProducts(name="y", inputs=("a", "b", "c", "d"), type=state)
    assert node.accumulator_bound([gate, state, gate, gate]) == 255 * 32768 < 1 << 24
    with pytest.raises(lowbit.LowbitError, match="16 bits at most, and a gate 8"):
        node.check([state, state, gate, gate])


def _other_gates(node):
    if not isinstance(node, SumOfProducts):
        return node
    a, b, c, d = node.inputs
    return replace(node, inputs=(c, b, a, d))


FAULTS = {
    "gates": _other_gates,
    "a table": lambda n: replace(n, table=n.table.flip(0)) if isinstance(n, Lookup) and len(n.table) == 1 << 16 else n,
    "a part": lambda n: replace(n, start=n.start - 8, stop=n.stop - 8) if isinstance(n, Slice) and n.start == 24 else n,
}


def test_wrong_steps_are_caught():
    network = prepared(nn.LSTM, weights=8, activations=8)
    assert [what for what, change in FAULTS.items() if not caught(network, {"x": X}, change)] == []
