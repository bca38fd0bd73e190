"""Functions of torch that are several operations: written out while the network is recorded."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from lowbit.layers.saturating import reciprocal, root
from lowbit.lowering import recurrent
from lowbit.lowering.einsum import einsum
from lowbit.lowering.windows import (
    col2im,
    fold_layer,
    im2col,
    padded_by,
    pads_by_number,
    unfold,
    unfold_layer,
)


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(scale · q·kᵀ + mask)·v, as F.scaled_dot_product_attention defines it."""
    scale = 1 / math.sqrt(query.size(-1)) if scale is None else scale
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    if is_causal:  # without a mask beside it
        attn_mask = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # what is to be seen
        attn_mask = attn_mask.logical_not()
    return torch.matmul(F.dropout(_weights(query, key, scale, attn_mask), dropout_p), value)


def _weights(query: Any, key: Any, scale: float, *masks: Any) -> Any:
    """softmax(scale · q·kᵀ + masks); of a boolean mask, what is hidden."""
    scores = torch.matmul(query, key.transpose(-2, -1)) * scale
    for mask in [each for each in masks if each is not None]:
        scores = scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """input + value · tensor1 · tensor2."""
    product = tensor1 * tensor2
    return input + (product if value == 1 else product * value)


def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """input + value · tensor1 / tensor2."""
    return addcmul(input, tensor1, _recorded(reciprocal, tensor2), value=value)


def lerp(input: Any, end: Any, weight: Any) -> Any:
    """input + weight · (end − input)."""
    return input + weight * (end - input)


def glu(input: Any, dim: int = -1) -> Any:
    """a · σ(b) of the two halves a and b."""
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


def addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """β · input + α · mat1·mat2."""
    product = torch.matmul(mat1, mat2)
    product = product if alpha == 1 else product * alpha
    return product if beta == 0 else product + (input if beta == 1 else input * beta)


def multihead_attention(
    layer: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """nn.MultiheadAttention, of batches: (result, weights or None)."""
    if layer.bias_k is not None or layer.add_zero_attn or query.dim() != 3:
        raise fx.proxy.TraceError(
            "nn.MultiheadAttention with add_bias_kv or add_zero_attn, or without a batch, has no integer form"
        )
    if not layer.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    q, k, v = _projected(layer, query, key, value)
    q, k, v = (x.unflatten(-1, (layer.num_heads, layer.head_dim)).transpose(1, 2) for x in (q, k, v))
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.unflatten(0, (-1, layer.num_heads))
    if key_padding_mask is not None:
        key_padding_mask = key_padding_mask[:, None, None, :]
    weights = _weights(q, k, layer.head_dim**-0.5, attn_mask, key_padding_mask)
    y = torch.matmul(F.dropout(weights, layer.dropout), v).transpose(1, 2).flatten(2)
    y = layer.out_proj(y)
    if need_weights and average_attn_weights:
        weights = weights.mean(1)
    return y if layer.batch_first else y.transpose(0, 1), weights if need_weights else None


def _projected(layer: nn.MultiheadAttention, query: Any, key: Any, value: Any) -> Sequence[Any]:
    """Queries, keys and values: one product where all are made of one tensor."""
    bias = layer.in_proj_bias
    biases = [None] * 3 if bias is None else bias.chunk(3)
    if layer.in_proj_weight is None:
        weights: Any = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    elif query is key and key is value:
        return F.linear(query, layer.in_proj_weight, bias).chunk(3, -1)
    else:
        weights = layer.in_proj_weight.chunk(3)
    return [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases)]


def encoder_layer(
    layer: nn.TransformerEncoderLayer,
    src: Any,
    src_mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool = False,
) -> Any:
    """nn.TransformerEncoderLayer, as it computes in training."""

    def attended(x: Any) -> Any:
        return layer._sa_block(x, src_mask, src_key_padding_mask, is_causal=is_causal)

    if layer.norm_first:
        x = src + attended(layer.norm1(src))
        return x + layer._ff_block(layer.norm2(x))
    x = layer.norm1(src + attended(src))
    return layer.norm2(x + layer._ff_block(x))


def encoder(
    layer: nn.TransformerEncoder,
    src: Any,
    mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Any:
    """nn.TransformerEncoder: its layers one after the other."""
    for each in layer.layers:
        src = each(src, mask, src_key_padding_mask)
    return src if layer.norm is None else layer.norm(src)


MODULES: dict[type[nn.Module], Callable] = {
    **recurrent.MODULES,
    nn.MultiheadAttention: multihead_attention,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerEncoder: encoder,
    nn.Unfold: unfold_layer,
    nn.Fold: fold_layer,
}
"""By class of module: what a call of it is written out as."""


def where(*args: Any) -> Any:
    """A tensor with a number in the places where a condition, or its negation, holds."""
    condition, x, other = args if _is_bool(args[0]) else (args[1], args[0], args[2])
    if _number(other) is not None:
        return x.masked_fill(~condition, _number(other))
    return other.masked_fill(condition, _number(x))


def _chooses_a_number(target: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    numbers = [_number(each) is not None for each in args]
    return not kwargs and len(args) == 3 and sum(numbers) == 1 and any(map(_is_bool, args[:2]))


def _is_bool(x: Any) -> bool:
    value = getattr(x, "_value", x)
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool


def _number(x: Any) -> float | None:
    """A number, or the one in a tensor of numbers that forward writes; None for anything else."""
    if isinstance(x, torch.Tensor) and x.ndim == 0 and not isinstance(x, FakeTensor):
        return float(x)
    return float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else None


def zeroed(input: Any, mask: Any, value: float) -> Any:
    """0 where a mask says so: the product with its negation."""
    return input * mask.logical_not()


def quotient(input: Any, other: Any) -> Any:
    """input · (1 / other) of two tensors."""
    return input * _recorded(reciprocal, other)


def norm(input: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, out: Any = None, dtype: Any = None) -> Any:
    """√Σ x² along dimensions."""
    return _recorded(root, torch.square(input).sum(dim, keepdim))


def vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """√Σ x² along dimensions, as torch.linalg has it."""
    return norm(x, ord, dim, keepdim)


def _recorded(function: Callable, x: Any) -> Any:
    """The call of a function that torch.fx does not know."""
    return x.tracer.create_proxy("call_function", function, (x,), {})


class Extreme(NamedTuple):
    """Of a dimension: the largest or smallest elements, and where they are."""

    values: Any
    indices: Any


def largest(input: Any, dim: Any, keepdim: bool = False) -> Any:
    """max along a dimension, or of two tensors."""
    if isinstance(dim, fx.Proxy):
        return _stacked(input, dim).amax(-1)
    return Extreme(torch.amax(input, dim, keepdim), torch.argmax(input, dim, keepdim))


def smallest(input: Any, dim: Any, keepdim: bool = False) -> Any:
    """min along a dimension, or of two tensors."""
    if isinstance(dim, fx.Proxy):
        return _stacked(input, dim).amin(-1)
    return Extreme(torch.amin(input, dim, keepdim), torch.argmin(input, dim, keepdim))


def _stacked(*tensors: Any) -> Any:
    return torch.stack(tensors, -1)


def _is_of_tensors(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a call of a maximum is along a dimension, or of two tensors of one shape."""
    given = inspect.signature(largest)
    if set(kwargs) - set(given.parameters) or not 2 <= len(args) + len(kwargs) <= 3:
        return False
    second = given.bind(*args, **kwargs).arguments["dim"]
    if isinstance(second, int):
        return True
    shapes = [getattr(getattr(each, "_value", None), "shape", None) for each in args[:2]]
    return len(shapes) == 2 and shapes[0] is not None and shapes[0] == shapes[1]


def _is_euclidean(function: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    try:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        return False
    plain = given.get("out") is None and given.get("dtype") is None
    return plain and given.get("p", given.get("ord", 2)) in (2, 2.0, "fro", None) and given.get("dim") is not None


def written_out(target: Any, args: tuple, kwargs: dict[str, Any]) -> Callable | None:
    """What a call is written out as, with the same arguments; None where it is recorded as it is."""
    if target in (torch.where, "where"):
        return where if _chooses_a_number(target, args, kwargs) else None
    if target in MASKED_FILLS:
        return zeroed if not kwargs and len(args) == 3 and args[2] == 0 else None
    if target in QUOTIENTS:
        tensors = [isinstance(getattr(each, "_value", None), torch.Tensor) for each in args]
        return quotient if tensors == [True, True] and not kwargs else None
    if target in NORMS:
        return NORMS[target] if _is_euclidean(NORMS[target], args, kwargs) else None
    if target in EXTREMA:
        return EXTREMA[target] if _is_of_tensors(args, kwargs) else None
    if target is F.pad:
        return padded_by if pads_by_number(args, kwargs) else None
    return DECOMPOSED.get(target)


QUOTIENTS = (operator.truediv, torch.div, torch.true_divide, "div", "true_divide", "divide")
NORMS: dict[Any, Callable] = {torch.norm: norm, "norm": norm, torch.linalg.vector_norm: vector_norm}
MASKED_FILLS = (torch.masked_fill, "masked_fill", "masked_fill_")

EXTREMA: dict[Any, Callable] = {
    **dict.fromkeys((torch.max, torch.maximum, "max", "maximum"), largest),
    **dict.fromkeys((torch.min, torch.minimum, "min", "minimum"), smallest),
}

DECOMPOSED: dict[Any, Callable] = {
    F.scaled_dot_product_attention: attention,
    torch.addcmul: addcmul,
    "addcmul": addcmul,
    torch.addcdiv: addcdiv,
    "addcdiv": addcdiv,
    torch.lerp: lerp,
    "lerp": lerp,
    F.glu: glu,
    torch.addmm: addmm,
    torch.baddbmm: addmm,
    torch.einsum: einsum,
    F.unfold: im2col,
    F.fold: col2im,
    "unfold": unfold,
}
"""By function, or by a method's name: what it is written out as."""
