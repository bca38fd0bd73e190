"""How many bytes autograd keeps for the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class _Kept:
    """The memory of a tensor that the graph holds. It dies with the node that saved it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # with its history, a node that saves its own output would keep itself alive


def saved_bytes(forward: Callable[[], Tensor], given: Iterable[Tensor]) -> int:
    """Bytes of what autograd saved in `forward` and still holds when it returns.

    Counted are storages, whole, each once: a tensor that several operations save, that one saves and another changed
    in place, or of which a view is saved, is one piece of memory. Storages of `given` (parameters, buffers, the batch)
    are there anyway and not counted. What a compiled function saves is seen as well: AOT autograd makes one autograd
    function of it. What a function hides from autograd, as an attribute of its context, is not: only an allocator sees
    that.
    """
    there = {_place(tensor) for tensor in given}
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        box = _Kept(tensor)
        kept.add(box)
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        loss = forward()
    held = {_place(box.tensor): box.tensor.untyped_storage().nbytes() for box in kept}
    del loss
    return sum(size for place, size in held.items() if place not in there)


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()
