"""How many bytes a step holds: for the backward pass, and at its highest."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


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
