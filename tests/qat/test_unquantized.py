"""What computes with weights and is not quantized: said at `prepare`, in the table of layers, in sizes."""

from __future__ import annotations

import inspect
import tokenize
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit.layers.unquantized import unquantized


class Own(nn.Module):
    """Multiplies with parameters of its own, in several spellings, and adds others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_weight = nn.Parameter(torch.randn(8, 8))
        self.masked = nn.Parameter(torch.randn(8, 8))
        self.product = nn.Parameter(torch.randn(8, 8))
        self.helped = nn.Parameter(torch.randn(8, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.table = nn.Parameter(torch.randn(5, 5))
        self.register_buffer("mask", torch.ones(8, 8))

    def weight(self):
        return self.helped * 2

    def forward(self, x):
        x = F.linear(x + self.position, self.linear_weight)
        w = self.masked * self.mask
        x = torch.einsum("bni,oi->bno", x, w) @ self.product.T
        scores = (x @ x.transpose(1, 2) + self.table).softmax(-1)
        return F.linear(scores @ x, self.weight())


class OwnConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 2, 3))

    def forward(self, x):
        return F.conv1d(x, self.weight)


OTHERS = [
    (nn.LSTM(8, 8), 2 * 32 * 8),
    (nn.GRU(8, 8, num_layers=2, bidirectional=True), 2 * 24 * (8 + 8) + 2 * 24 * (16 + 8)),
    (nn.RNN(8, 8), 2 * 8 * 8),
    (nn.LSTMCell(8, 8), 2 * 32 * 8),
    (nn.Embedding(10, 8), 80),
    (nn.EmbeddingBag(10, 8), 80),
    (nn.Bilinear(8, 8, 3), 192),
    (Own(), 4 * 64),
    (OwnConvolution(), 24),
]


@pytest.mark.parametrize(("module", "weights"), OTHERS, ids=lambda value: type(value).__name__)
def test_what_stays_in_full_precision_is_named_and_listed(module: nn.Module, weights: int) -> None:
    model = nn.ModuleDict({"other": module, "layer": nn.Linear(8, 8)})
    share = 100 * weights / sum(parameter.numel() for parameter in model.parameters())
    words = rf"prepare leaves other \({type(module).__name__}\) in full precision: {share:.1f} %"
    with pytest.warns(lowbit.UnquantizedWarning, match=words) as said:
        prepared = lowbit.prepare(model)
    assert len(said) == 1 and said[0].filename == __file__
    for each in (model, prepared):
        [row] = [row for row in lowbit.layer_table(each) if row.name == "other"]
        assert (row.kind, row.parameters, row.size_bits) == (type(module).__name__, weights, 32 * weights)
        assert (row.weight_bits, row.activation_bits, row.weight_grid, row.method) == (None, None, "float", "-")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lowbit.prepare(model, rules=[lowbit.Rule("other", skip=True)])


def test_a_rule_that_gives_bits_to_what_cannot_have_them_decides_nothing() -> None:
    model = nn.ModuleDict({"other": nn.LSTM(8, 8), "layer": nn.Linear(8, 8)})
    with pytest.raises(lowbit.LowbitError, match="rule 'other' matches no layer"):
        lowbit.prepare(model, rules=[lowbit.Rule("other", weights=4)])


def test_own_parameters_that_only_add_hold_no_products() -> None:
    [found] = unquantized(Own())
    assert list(found.weights) == ["linear_weight", "masked", "product", "helped"]


def test_multi_head_attention_reads_its_own_projection() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "layer": nn.Linear(8, 8)})
    with pytest.warns(lowbit.UnquantizedWarning, match=r"attention \(MultiheadAttention\)"):
        prepared = lowbit.prepare(model, rules=[lowbit.Rule("attention.out_proj", skip=True)])
    rows = {row.name: row.parameters for row in lowbit.layer_table(prepared)}
    assert rows == {"attention": 3 * 8 * 8, "attention.out_proj": 64, "layer": 64}


def test_many_are_one_warning_that_names_some() -> None:
    model = nn.Sequential(*(nn.Embedding(4, 4) for _ in range(6)), nn.Linear(4, 4))
    with pytest.warns(lowbit.UnquantizedWarning, match=r"3 \(Embedding\) and 2 more in full precision") as said:
        lowbit.prepare(model)
    assert len(said) == 1


class ReadsAnEmbedding(nn.Module):
    """Its head is the embedding's weight: the embedding's row, not one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(self.layer(self.embedding(x)), self.embedding.weight)


def test_a_parameter_is_listed_once() -> None:
    assert [each.name for each in unquantized(ReadsAnEmbedding())] == ["embedding"]


@pytest.mark.parametrize(
    "source", [OSError("no file"), tokenize.TokenError("EOF in multi-line statement"), "def other(self, x): self.w @ x"]
)
def test_a_class_whose_source_cannot_be_read_is_prepared(source, monkeypatch) -> None:
    """Code that was run from text under a file's name has no source, or lines of that file that are not its own."""

    class FromText(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    def getsource(function):
        if isinstance(source, Exception):
            raise source
        return source

    monkeypatch.setattr(inspect, "getsource", getsource)
    network = FromText(nn.Linear(4, 4))
    network.w = nn.Parameter(torch.ones(4, 4))
    assert not list(unquantized(network))
    lowbit.prepare(network)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "beit_base_patch16_224", "cait_xxs24_224"])
def test_transformers_of_linear_layers_raise_no_false_alarm(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        assert not list(unquantized(timm.create_model(name)))
