"""Masks of attention, embeddings and whole numbers as inputs, from prepare to files."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit.integer.ops import Add, Embedding, MaskedSoftmax, Softmax
from tests.lowering.networks import agreement, caught

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(6, 9, 12, generator=GENERATOR)
PADDING = torch.arange(9) >= torch.tensor([9, 4, 7, 1, 9, 0])[:, None]  # of the last sample everything
CAUSAL = torch.ones(9, 9, dtype=torch.bool).tril()


class Attention(nn.Module):
    """One block whose mixing of queries, keys and values a function says."""

    def __init__(self, mix) -> None:
        super().__init__()
        self.embed, self.norm, self.qkv, self.head = (
            nn.Linear(12, 16),
            nn.LayerNorm(16),
            nn.Linear(16, 48),
            nn.Linear(16, 5),
        )
        self.table, self.mix = nn.Parameter(torch.randn(9, 9)), mix

    def forward(self, x):
        x = self.embed(x)
        q, k, v = self.qkv(self.norm(x)).reshape(x.shape[0], 9, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return self.head((x + self.mix(self, q, k, v).transpose(1, 2).flatten(2)).mean(1))


def scores(q, k):
    return q @ k.transpose(-2, -1) * 0.35


def added(low):
    return torch.zeros(9, 9).masked_fill(~CAUSAL, low)


def in_windows(net, q, k, v):
    """As Swin has it: −100 is added to windows, which are a dimension of their own meanwhile."""
    batch = q.shape[0]
    s = scores(q, k).view(batch, 1, 2, 9, 9) + added(-100.0)[None, None]
    return s.view(-1, 2, 9, 9).softmax(-1) @ v


CONSTANTS = {
    "masked_fill": lambda net, q, k, v: scores(q, k).masked_fill(~CAUSAL, -math.inf).softmax(-1) @ v,
    "masked_fill of -1e4": lambda net, q, k, v: F.softmax(scores(q, k).masked_fill(~CAUSAL, -1e4), -1) @ v,
    "added": lambda net, q, k, v: (scores(q, k) + added(-math.inf)).softmax(-1) @ v,
    "added, lowest float": lambda net, q, k, v: (added(torch.finfo(q.dtype).min) + scores(q, k)).softmax(-1) @ v,
    "windows": in_windows,
    "with a table": lambda net, q, k, v: (scores(q, k) + (net.table + added(-100.0))).softmax(-1) @ v,
    "where": lambda net, q, k, v: torch.where(CAUSAL, scores(q, k), torch.full([], -math.inf)).softmax(-1) @ v,
    "is_causal": lambda net, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "sdpa": lambda net, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=CAUSAL),
    "sdpa, added": lambda net, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=added(-math.inf)),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_masks_that_are_constants(name, tmp_path):
    torch.manual_seed(0)
    model = Attention(CONSTANTS[name])
    network = lowbit.prepare(model, weights=8, activations=8, integer_only=True, example_input=X)
    lowbit.calibrate(network, [X])
    assert float((network(X) - model(X)).abs().max()) < 0.1 * float(model(X).abs().max())
    network(X).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
    integer = lowbit.to_integer(network.eval(), X)
    kinds = [type(node) for node in integer.graph.nodes]
    assert MaskedSoftmax in kinds and Softmax not in kinds
    assert kinds.count(Add) == (2 if name == "with a table" else 1)  # a mask that only hides is added to nothing
    (mask,) = (node for node in integer.graph.nodes if isinstance(node, MaskedSoftmax))
    hidden = integer.codes(X)[mask.name][..., ~CAUSAL]
    assert bool((hidden == mask.type.zero_point).all())
    compared, differ = agreement(network, X)
    assert differ <= 0.01 * compared
    for form in ("onnx", "qonnx", "lowbit", "json", "c") if name == "masked_fill" else ("onnx",):
        assert lowbit.export(integer, tmp_path / f"network.{form}", form, batches=[X]).ok
    with pytest.raises(lowbit.LowbitError, match="LiteRT"):
        lowbit.export(integer, tmp_path / "network.tflite", "litert", batches=[X])


class Encoder(nn.Module):
    """torch's encoder with masks that it is given."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.head, self.how = nn.Linear(12, 16), nn.Linear(16, 5), how
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=how != "sequence first", dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x, padding):
        x = self.embed(x)
        if self.how == "sequence first":
            return self.head(self.layers(x.transpose(0, 1), src_key_padding_mask=padding)[0])
        mask = ~CAUSAL.T if self.how == "and a constant" else None
        if self.how in ("joined", "joined by or"):
            shown = CAUSAL & ~padding[:, None, None, :]
            hidden = ~CAUSAL | padding[:, None, None, :]
            layer = self.layers.layers[0]
            q, k, v = layer.self_attn.in_proj_weight.chunk(3)
            q, k, v = (F.linear(x, w).unflatten(-1, (2, 8)).transpose(1, 2) for w in (q, k, v))
            if self.how == "joined":
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=shown)
            else:
                y = (q @ k.transpose(-2, -1)).masked_fill(hidden, -math.inf).softmax(-1) @ v
            return self.head(y.transpose(1, 2).flatten(2).mean(1))
        if self.how == "and floats":
            mask = torch.zeros(9, 9).masked_fill(~CAUSAL.T, -math.inf)
        return self.head(self.layers(x, mask, padding)[:, 0])


@pytest.mark.parametrize("how", ["padding", "sequence first", "and a constant", "and floats", "joined", "joined by or"])
def test_padding_that_is_an_input(how, tmp_path):
    """Samples of any length: none of a padded position is in the result, and of one without any position there is one all the same."""
    torch.manual_seed(0)
    model, batch = Encoder(how), {"x": X, "padding": PADDING}
    network = lowbit.prepare(model, weights=8, activations=8, integer_only=True, example_input=batch)
    lowbit.calibrate(network, [batch])
    network(**batch).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
    network.eval()
    if how in ("padding", "sequence first"):
        expected = model.eval()(X[:-1], PADDING[:-1])
        assert float((network(**batch)[:-1] - expected).abs().max()) < 0.15 * float(expected.abs().max())
    integer = lowbit.to_integer(network, batch)
    compared, differ = agreement(network, batch)
    assert differ <= 0.01 * compared
    report = lowbit.export(integer, tmp_path / "network.onnx", batches=[batch])
    assert report.differ == 0 and lowbit.verify(network, tmp_path / "network.onnx", [batch]).ok
    if how.startswith("joined"):  # what is hidden as a key is a query all the same
        return
    changed = X + torch.randn(X.shape, generator=GENERATOR) * PADDING[..., None]
    assert torch.equal(
        integer({"x": X, "padding": PADDING})[1:5], integer({"x": changed, "padding": PADDING.long()})[1:5]
    )


class Bert(nn.Module):
    """A small BERT as libraries write it: three embeddings, an extended mask that is added, control flow on what is given."""

    def __init__(self, *, fused: bool, vocabulary: int = 50) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, 16, padding_idx=0)
        self.places, self.types = nn.Embedding(12, 16), nn.Embedding(2, 16)
        self.register_buffer("position_ids", torch.arange(12)[None], persistent=False)
        self.norm, self.fused = nn.LayerNorm(16, eps=1e-12), fused
        self.layers = nn.ModuleList([BertLayer(fused) for _ in range(2)])
        self.pooler, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        batch, length = input_ids.size()
        if token_type_ids is None:
            token_type_ids = torch.zeros((batch, length), dtype=torch.long)
        x = self.words(input_ids) + self.types(token_type_ids) + self.places(self.position_ids[:, :length])
        if attention_mask is None:
            attention_mask = input_ids.ne(0).long()
        if self.fused:
            mask = attention_mask[:, None, None, :].to(torch.bool)
        else:
            mask = (1.0 - attention_mask[:, None, None, :].to(dtype=x.dtype)) * torch.finfo(x.dtype).min
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        return {"logits": self.head(torch.tanh(self.pooler(x[:, 0]))), "states": x}


class BertLayer(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down, self.first, self.second = (
            nn.Linear(16, 32),
            nn.Linear(32, 16),
            nn.LayerNorm(16),
            nn.LayerNorm(16),
        )
        self.fused, self.dropout = fused, nn.Dropout(0.1)

    def heads(self, x):
        return x.view(*x.size()[:-1], 2, 8).permute(0, 2, 1, 3)

    def forward(self, x, mask):
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            s = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(8)
            y = torch.matmul(self.dropout(nn.functional.softmax(s + mask, dim=-1)), v)
        y = y.permute(0, 2, 1, 3).contiguous()
        x = self.first(x + self.dropout(self.dense(y.view(*y.size()[:-2], 16))))
        return self.second(x + self.down(F.gelu(self.up(x))))


IDS = torch.randint(1, 50, (6, 12), generator=GENERATOR) * (
    torch.arange(12) < torch.tensor([12, 5, 9, 1, 12, 7])[:, None]
)
SENTENCES = {
    "ids alone": {"input_ids": IDS},
    "with a mask": {"input_ids": IDS, "attention_mask": (IDS != 0).long()},
    "with all": {
        "input_ids": IDS,
        "attention_mask": (IDS != 0).long(),
        "token_type_ids": (torch.arange(12) > 4).long().expand(6, 12),
    },
}


@pytest.mark.parametrize(("name", "fused"), [("ids alone", False), ("with a mask", False), ("with all", True)])
def test_bert(name, fused, tmp_path):
    torch.manual_seed(0)
    model, batch = Bert(fused=fused), SENTENCES[name]
    names = set(model.state_dict())
    network = lowbit.prepare(model, weights=8, activations=8, integer_only=True, example_input=batch)
    lowbit.calibrate(network, [batch])
    assert names <= set(network.state_dict())
    network.train()
    F.cross_entropy(network(**batch)["logits"], torch.arange(6) % 3).backward()
    assert bool(network.words.weight.grad[1:].any()) and not bool(network.words.weight.grad[0].any())
    network.eval()
    expected = model.eval()(**batch)["logits"]
    assert float((network(**batch)["logits"] - expected).abs().max()) < 0.3 * float(expected.abs().max())
    integer = lowbit.to_integer(network, batch)
    compared, differ = agreement(network, batch)
    assert differ <= 0.01 * compared
    report = lowbit.export(integer, tmp_path / "network.onnx")  # random indices of the whole range
    assert report.differ == 0 and report.compared > 1000
    for form in ("onnx-packed", "qonnx", "lowbit", "json") if name == "with all" else ():
        assert lowbit.export(integer, tmp_path / f"network.{form}", form, batches=[batch]).ok
    with pytest.raises(lowbit.LowbitError, match="C has no form of Embedding"):
        lowbit.export(integer, tmp_path / "network.c", "c", batches=[batch])
    with pytest.raises(lowbit.LowbitError, match=r"holds the indices .*; there are 0 .. 49"):
        integer({**batch, "input_ids": IDS + 40})


class Pooled(nn.Module):
    """The mean over what a mask shows, as sentence embeddings have it, and features set to 0 by one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 3)

    def forward(self, ids, mask):
        x, shown = self.embed(ids), mask.unsqueeze(-1).float()
        x = x.masked_fill(ids.eq(7).unsqueeze(-1), 0.0)
        return self.head((x * shown).sum(1) / (shown.sum(1) + 1e-3))


def test_means_over_what_a_mask_shows(tmp_path):
    torch.manual_seed(0)
    model, batch = Pooled(), {"ids": IDS.clamp(min=1), "mask": IDS != 0}
    network = lowbit.prepare(model, weights=8, activations=8, integer_only=True, example_input=batch)
    lowbit.calibrate(network, [batch]).eval()
    expected = model(**batch)
    assert float((network(**batch) - expected).detach().abs().max()) < 0.2 * float(expected.detach().abs().max())
    integer = lowbit.to_integer(network, batch)
    assert lowbit.export(integer, tmp_path / "network.onnx", batches=[batch]).differ == 0


class Forward(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.embed, self.head, self.function = nn.Embedding(50, 16), nn.Linear(16, 3), function

    def forward(self, ids):
        return self.head(self.function(self, ids))


REFUSED = {
    "masked_fill .*: it has one with −∞": lambda net, ids: net.embed(ids).masked_fill(ids[..., None] == 0, 1.0),
    "scores behind a mask": lambda net, ids: F.gelu(net.embed(ids).masked_fill(ids[..., None] == 0, -math.inf)),
    "'embed' .* stand in another order": lambda net, ids: net.embed(ids.flip(1)),
    "masks alone have it, joined by & and": lambda net, ids: net.embed(ids) * (torch.arange(12) < ids)[..., None],
    "more values than 0 and another": lambda net, ids: net.embed(ids) * ids[..., None].float(),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_has_no_integer_form_is_named_before_training(why):
    with pytest.raises(lowbit.LowbitError, match=why):
        lowbit.prepare(Forward(REFUSED[why]), integer_only=True, example_input=IDS)


FAULTS = {
    "rows of a table": lambda n: (
        replace(n, codes=n.codes.roll(1, 0)) if isinstance(n, Embedding) and n.codes.shape[1] > 1 else n
    ),
    "what is hidden": lambda n: (
        replace(n, codes=1 - n.codes) if isinstance(n, Embedding) and n.codes.shape[1] == 1 else n
    ),
    "the dimension": lambda n: replace(n, axis=n.axis - 1) if isinstance(n, MaskedSoftmax) else n,
}


def test_wrong_masks_and_tables_are_caught():
    torch.manual_seed(0)
    batch = SENTENCES["with a mask"]
    network = lowbit.prepare(Bert(fused=True), weights=8, activations=8, integer_only=True, example_input=batch)
    lowbit.calibrate(network, [batch]).eval()
    assert [what for what, change in FAULTS.items() if not caught(network, batch, change)] == []
