"""What the processes of one job tell each other about errors."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch.distributed as dist

from lowbit.errors import LowbitError


def several() -> bool:
    """Whether this is one of several processes that work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process, from 0; also before the processes have met, where a launcher has told it."""
    return dist.get_rank() if several() else int(os.environ.get("RANK", 0))


def end(status: int) -> NoReturn:
    """Exit; at once where processes have worked together.

    There a thread of the exchange that releases a tensor while the interpreter shuts down would abort the process, and
    with it the job.
    """
    if not several():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def agreed() -> Iterator[None]:
    """Within: a LowbitError on any process becomes the same LowbitError on all, at the end of the block.

    All processes must come to it, and none may wait for another within: one that has failed would never come. The
    error has `everywhere` set, and names the process where not all have it.
    """
    mine: LowbitError | None = None
    try:
        yield
    except LowbitError as error:
        mine = error
    if not several():
        if mine is not None:
            raise mine
        return
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, None if mine is None else str(mine))
    failed = {number: message for number, message in enumerate(messages) if message is not None}
    if not failed:
        return
    number, message = next(iter(failed.items()))
    error = LowbitError(message if len(failed) == len(messages) else f"process {number}: {message}")
    error.everywhere = True
    raise error from mine


@contextmanager
def named() -> Iterator[None]:
    """Within: a LowbitError that this process alone has says which process it is, and losing the others is one."""
    try:
        yield
    except LowbitError as error:
        if not several() or error.everywhere:
            raise
        raise LowbitError(f"process {rank()}: {error}") from error
    except RuntimeError as error:
        if not lost(error):
            raise
        reason = re.sub(r"^\[\S+\] ", "", str(error)).split(". ")[0]  # without the line of gloo's source
        raise LowbitError(
            f"process {rank()}: another process has ended or can't be reached ({reason}); the "
            "launcher says which. A run goes on from its last checkpoint with --resume"
        ) from error


def lost(error: Exception) -> bool:
    """Whether an exchange failed because another process did not take part."""
    by_peer = ("Connection reset by peer", "Connection closed by peer", "Broken pipe")  # gloo's errors have no type
    return several() and (isinstance(error, dist.DistError) or any(words in str(error) for words in by_peer))


def says(error: LowbitError) -> bool:
    """Whether this process prints an error. One that all processes have is for the first of them.

    Before the processes have met, those of a machine do the same: they read the command line, and a run's config.
    """
    if several():
        return rank() == 0 or not error.everywhere
    return int(os.environ.get("LOCAL_RANK", rank())) == 0
