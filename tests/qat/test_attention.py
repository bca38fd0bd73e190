"""Attention with its matrix products quantized, against timm's own forward and a closed form."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit.layers.attention import QuantizedAttention, quantized_attentions
from lowbit.quantizer.module import Quantizer

timm = pytest.importorskip("timm")
QUANTIZERS = ("q_quantizer", "k_quantizer", "probability_quantizer", "v_quantizer")


class Net(nn.Module):
    """An attention between two linear layers: [B, 5, 8] to [B, 5, 8]."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.attn = timm.layers.Attention(8, num_heads=2, **options)
        self.head = nn.Linear(8, 8)

    def forward(self, x, **options):
        return self.head(self.attn(self.embed(x), **options))


def data(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 5, 8, generator=torch.Generator().manual_seed(0))


def prepared(**options) -> nn.Module:
    torch.manual_seed(0)
    return lowbit.calibrate(lowbit.prepare(Net(qkv_bias=True), **options), [data()])


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, {}),
        ({"qkv_bias": True, "qk_norm": True, "norm_layer": nn.LayerNorm}, {}),
        ({"scale_norm": True, "norm_layer": nn.LayerNorm, "proj_bias": False}, {}),
        ({"gated": True}, {}),
        ({}, {"is_causal": True}),
        ({}, {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(-1)}),
        ({}, {"attn_mask": torch.linspace(-2, 2, 25).reshape(5, 5)}),
    ],
)
def test_without_rounding_it_is_timms_attention(options, call):
    torch.manual_seed(0)
    attention = timm.layers.Attention(8, num_heads=2, **options).eval()
    x = data()
    with torch.no_grad():
        expected = attention(x, **call)
        prepared = lowbit.prepare(nn.Sequential(attention), first_last=4)[0]
        assert isinstance(prepared, QuantizedAttention) and isinstance(prepared, timm.layers.Attention)
        for module in prepared.modules():
            for name, child in list(module.named_children()):
                if isinstance(child, Quantizer):
                    setattr(module, name, nn.Identity())
        torch.testing.assert_close(prepared(x, **call), expected)


def test_closed_form():
    left = lowbit.Rule("embed|head|attn.qkv|attn.proj", skip=True)
    model = prepared(weights=None, activations=3, method="lsq", rules=[left])
    attention, x = model.attn, model.embed(data())
    assert attention.q_quantizer.grid.signed and attention.k_quantizer.grid.signed and attention.v_quantizer.grid.signed
    assert not attention.probability_quantizer.grid.signed

    def rounded(quantizer, values):
        grid, step = quantizer.grid, quantizer.step
        return (values / step).round().clamp(grid.qn, grid.qp) * step

    with torch.no_grad():
        q, k, v = (part.reshape(3, 5, 2, 4).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
        scores = rounded(attention.q_quantizer, q) @ rounded(attention.k_quantizer, k).mT / 4**0.5
        probabilities = rounded(attention.probability_quantizer, F.softmax(scores, -1))
        y = (probabilities @ rounded(attention.v_quantizer, v)).transpose(1, 2).reshape(3, 5, 8)
        torch.testing.assert_close(attention(x), attention.proj(y))
    # What was seen of each operand in full precision, by LSQ's rule.
    torch.testing.assert_close(attention.v_quantizer.step, 2 * v.abs().mean() / 3**0.5)


@pytest.mark.parametrize("method", lowbit.METHODS)
def test_every_method_quantizes_both_signs(method):
    model = prepared(weights=4, activations=4, method=method)
    for name in ("q_quantizer", "k_quantizer", "v_quantizer"):
        assert getattr(model.attn, name).grid.signed  # also where the method's activations are unsigned
    assert bool(model(data()).isfinite().all())


def test_steps_get_gradients_and_are_not_decayed():
    model = prepared(weights=4, activations=4)
    model(data()).square().sum().backward()
    _, steps = lowbit.parameter_groups(model, weight_decay=1e-4)
    decayless = {id(parameter) for parameter in steps["params"]}
    for name in QUANTIZERS:
        step = getattr(model.attn, name).raw_step
        assert bool(step.grad.isfinite()) and bool(step.grad != 0)
        assert id(step) in decayless
    assert {f"attn.{name}" for name in QUANTIZERS} < {name for name, _ in lowbit.quantizers(model)}


def test_rules_and_widths():
    bits = {name: quantizer.bits for name, quantizer in lowbit.quantizers(lowbit.prepare(Net(), activations=3))}
    assert all(bits[f"attn.{name}"] == 3 for name in QUANTIZERS)
    model = lowbit.prepare(Net(), rules=[lowbit.Rule("attn", activations=8, narrow=True)])
    assert model.attn.q_quantizer.bits == 8 and model.attn.q_quantizer.narrow
    assert model.attn.qkv.input_quantizer.bits == 4
    for options in ({"rules": [lowbit.Rule("attn", skip=True)]}, {"activations": None}):
        model = lowbit.prepare(Net(), **options)
        assert type(model.attn) is timm.layers.Attention
    with pytest.raises(lowbit.LowbitError, match="matches no layer"):
        lowbit.prepare(Net(), rules=[lowbit.Rule(r"blocks\.0\.attn", skip=True)])


def test_copies_pickles_and_checkpoints():
    model = prepared(weights=4, activations=4)
    x = data()
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other.attn, QuantizedAttention) and isinstance(other.attn, timm.layers.Attention)
        assert torch.equal(other(x), expected)
    fresh = lowbit.prepare(Net(qkv_bias=True), weights=4, activations=4)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), expected)
    lowbit.prepare(Net(qkv_bias=True)).load_state_dict(Net(qkv_bias=True).state_dict(), strict=False)
    with pytest.raises(lowbit.LowbitError, match="prepared already"):
        lowbit.prepare(model)


def test_compiles_without_graph_break():
    model = prepared(weights=4, activations=4)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(data()), model(data()))


def test_table_has_the_two_products():
    model = prepared(weights=2, activations=3)
    rows = {row.name: row for row in lowbit.layer_table(model, data(1))}
    for name, left, right in (("attn q·k", "signed", "signed"), ("attn p·v", "unsigned", "signed")):
        row = rows[name]
        assert (row.kind, row.parameters, row.macs, row.bit_operations) == ("MatMul", 0, 5 * 5 * 8, 5 * 5 * 8 * 9)
        assert row.activation_grid.startswith(f"3-bit {left}") and row.weight_grid.startswith(f"3-bit {right}")
    assert [name for name, _ in quantized_attentions(model)] == ["attn"]


def test_messages_name_the_operand():
    model = lowbit.prepare(Net())
    with pytest.raises(lowbit.LowbitError, match="the queries of attention 'attn' has no step yet"):
        for _, layer in model.named_modules():
            if hasattr(layer, "weight_quantizer"):
                layer.weight_quantizer, layer.input_quantizer = nn.Identity(), nn.Identity()
        model(data())
