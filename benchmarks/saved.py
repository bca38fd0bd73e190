"""How many bytes a step holds: for the backward pass, and at its highest."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


class _Kept:
    """The memory of a tensor that the graph holds. It dies with the node that saved it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # with its history, a node that saves its own output would keep itself alive


def saved_bytes(forward: Callable[[], Tensor], given: Iterable[Tensor]) -> int:
    """Bytes of what autograd saved in `forward` and still holds when it returns.

    Counted are storages, whole, each once: a tensor that several operations save, that one saves and another changed
    in place, or of which a view is saved, is one piece of memory. Storages of `given` (parameters, buffers, the batch)
    are there anyway and not counted. What a compiled function saves is seen as well: AOT autograd makes one autograd
    function of it. What a function hides from autograd, as an attribute of its context, is not: `held_bytes` sees that.
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


def held_bytes(forward: Callable[[], Tensor], device: str) -> tuple[int, int]:
    """(bytes that `forward` allocated and that are still allocated when it returns, the highest count up to the end of the backward pass).

    By the allocator, so whoever asked for the memory: on a GPU torch.cuda's counters, on a CPU the profiler's record of
    every allocation. The first is what `saved_bytes` counts, with the loss and what is hidden from autograd. The
    second has also the gradients, and on a GPU the libraries' work space. Run `forward` and its backward pass before,
    so that nothing is compiled or allocated once and for all in here.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss = forward()
        held = torch.cuda.memory_allocated() - before
        loss.backward()
        return held, torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as first:
        loss = forward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as second:
        loss.backward()
    counts = list(accumulate(_allocations(first)))
    held = counts[-1] if counts else 0
    return held, max([*counts, *(held + count for count in accumulate(_allocations(second)))])


def _allocations(profiler: profile) -> list[int]:
    """Bytes of every allocation (positive) and release (negative), in order of time."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
