"""Self-attention with its two matrix products quantized: timm's `Attention`, that of its vision transformers.

    A = softmax(scale · q̂·k̂ᵀ + mask)        y = â·v̂

q, k and v are signed; the probabilities a are never negative, so that their grid is unsigned. Each of the four has one
step for all heads. The class is swapped as in `layers`: the projections before and behind stay ordinary prepared
layers, and names stay as they are. The fused kernel is not used, since it has no place for quantizers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn

from lowbit.layers.rules import Setting
from lowbit.quantizer.module import Quantizer

# By name, because timm need not be installed. Its other attentions compute something else and stay as they are.
_TIMM_ATTENTION = ("timm.layers.attention.Attention", "timm.models.vision_transformer.Attention")

_OPERANDS = {
    "q_quantizer": "the queries",
    "k_quantizer": "the keys",
    "probability_quantizer": "the probabilities",
    "v_quantizer": "the values",
}


class QuantizedAttention(nn.Module):
    """timm's self-attention with quantizers at the operands of its matrix products: [B, N, C] to [B, N, C]."""

    qkv: nn.Linear
    q_norm: nn.Module
    k_norm: nn.Module
    num_heads: int
    scale: float
    attn_drop: nn.Module
    norm: nn.Module
    proj: nn.Module
    proj_drop: nn.Module
    q_quantizer: nn.Module
    k_quantizer: nn.Module
    probability_quantizer: nn.Module
    v_quantizer: nn.Module

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        batch, tokens, _ = x.shape
        gate = getattr(self, "gate", None)
        gate = None if gate is None else gate(x).sigmoid()
        heads = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)  # [B, heads, N, C/heads] each
        q, k = self.q_quantizer(self.q_norm(q)), self.k_quantizer(self.k_norm(k))
        scores = _masked(q * self.scale @ k.transpose(-2, -1), attn_mask, is_causal)
        probabilities = self.attn_drop(self.probability_quantizer(scores.softmax(dim=-1)))
        y = probabilities @ self.v_quantizer(v)
        y = self.norm(y.transpose(1, 2).reshape(batch, tokens, -1))
        return self.proj_drop(self.proj(y if gate is None else y * gate))

    def __reduce__(self):
        # The class is made when needed, so that pickle finds it under no name.
        return _empty, (type(self).__mro__[2],), self.__dict__


def _masked(scores: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Scores with −∞ where a query must not look (a mask's False, or what comes later), or with the mask added."""
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        return scores.masked_fill(~allowed, float("-inf"))
    if mask is None:
        return scores
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask


@cache
def _quantized_class(kind: type[nn.Module]) -> type[QuantizedAttention]:
    return type("QuantizedAttention", (QuantizedAttention, kind), {"__module__": __name__})


def _empty(kind: type[nn.Module]) -> QuantizedAttention:
    return _quantized_class(kind).__new__(_quantized_class(kind))


def is_attention(module: nn.Module) -> bool:
    """Whether it is an attention whose matrix products can be quantized."""
    return f"{type(module).__module__}.{type(module).__name__}" in _TIMM_ATTENTION


def quantize_attention(name: str, attention: nn.Module, setting: Setting) -> None:
    """Put quantizers at the operands of the matrix products, in place; nothing if activations are in full precision."""
    if setting.activations is None:
        return
    attention.__class__ = _quantized_class(type(attention))
    assert isinstance(attention, QuantizedAttention)
    device = attention.qkv.weight.device
    for attribute, operand in _OPERANDS.items():
        quantizer = Quantizer(
            setting.activations,
            method=setting.method.for_activations,
            signed=None if attribute == "probability_quantizer" else True,
            narrow=setting.narrow,
            batch_dim=0,
            name=f"{operand} of attention {name!r}",
        )
        setattr(attention, attribute, quantizer.to(device))


def quantized_attentions(model: nn.Module) -> Iterator[tuple[str, QuantizedAttention]]:
    """Every attention with quantized matrix products once, with its name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedAttention))
