"""The product of quantized input and weight, holding for the backward pass what the float layer would hold.

Autograd keeps the operands of a convolution or matrix product. Here these are x̂ and ŵ, tensors beside x and w, which
the quantizers' own nodes keep: twice the memory. So hooks for saved tensors take x̂ and ŵ from what the product saves,
and compute them again in its backward pass, from what those nodes have saved. A compiled network gets the same from the
compiler (see `Quantizer.forward`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lowbit.quantizer.functional import QuantizerNode, node_of, recomputed


def product(compute: Callable[..., Tensor], x_hat: Tensor, w_hat: Tensor, *others: Any) -> Tensor:
    """compute(x̂, ŵ, *others); what comes out of a quantizer is not saved but computed again."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or torch.jit.is_tracing():
        return compute(x_hat, w_hat, *others)
    # Others may have switched such hooks off.
    # pyrefly: ignore[missing-attribute]  # torch has it and its stubs do not
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():
        return compute(x_hat, w_hat, *others)
    sources: dict[int, _Operand] = {}
    operands = []
    for operand in (x_hat, w_hat):
        node = node_of(operand) if type(operand) is Tensor else None
        operand = _autocast(operand)
        if node is not None and operand.numel():
            sources[operand.untyped_storage().data_ptr()] = _Operand(node, operand.dtype, operand.stride())
        operands.append(operand)
    with _recomputing(sources):
        return compute(*operands, *others)


class _Operand(NamedTuple):
    """Where an operand comes from, and how it lies in memory."""

    node: QuantizerNode
    dtype: torch.dtype
    stride: tuple[int, ...]


class _Saved(NamedTuple):
    """What is saved in place of an operand or of a view of it."""

    operand: _Operand
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt

    @torch.no_grad()
    def again(self) -> Tensor:
        node, dtype, stride = self.operand
        whole = recomputed(node).to(dtype)
        if whole.stride() != stride:  # because the hooks of others brought x back in another order
            whole = torch.empty_strided(whole.shape, stride, dtype=dtype, device=whole.device).copy_(whole)
        return whole.as_strided(self.size, self.stride, self.offset)


def _recomputing(sources: dict[int, _Operand]) -> saved_tensors_hooks:
    """Hooks that replace the tensors whose memory is a key of `sources`; all others go to the hooks around these."""
    pack_other, unpack_other = torch._C._autograd._top_saved_tensors_default_hooks(False) or (_same, _same)

    def pack(tensor: Tensor) -> Any:
        operand = sources.get(tensor.untyped_storage().data_ptr())
        if operand is None or tensor.dtype != operand.dtype:
            return pack_other(tensor)
        return _Saved(operand, tensor.size(), tensor.stride(), tensor.storage_offset())

    def unpack(packed: Any) -> Tensor:
        return packed.again() if isinstance(packed, _Saved) else unpack_other(packed)

    return saved_tensors_hooks(pack, unpack)


def _same(packed: Any) -> Any:
    return packed


def _autocast(x: Tensor) -> Tensor:
    """x in the type in which autocast computes products: its own cast would make a copy that the hooks don't know."""
    device = x.device.type
    if x.dtype == torch.float64 or not x.is_floating_point() or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))
