"""One process, or one job of several, in a run folder at a time.

The lock is the operating system's (`flock`) on the file `.lock` in the folder, so that a process that dies lets go of
it. The file says who holds it. It is removed at the end; one that a killed process left behind locks nothing.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lowbit.errors import LowbitError
from lowbit.files import is_open_as, lock

LOCK = ".lock"
_held: set[int] = set()


def _close_in_child() -> None:
    """Worker processes inherit open files; one that outlives a killed run must not hold its lock."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within: no other process can enter this for the folder, which must exist.

    Where the system or the file system has no such locks, nothing is locked.

    Raises:
        LowbitError: another process is in it; the message says which, and since when.
        OSError: the folder cannot be written.
    """
    path = folder / LOCK
    handle = _lock(path)
    _held.add(handle)
    try:
        yield
    finally:
        with suppress(OSError):
            if is_open_as(handle, path):
                path.unlink()
        _held.discard(handle)
        os.close(handle)


def _lock(path: Path) -> int:
    """A handle of the file, which says who this is; locked where files can be."""
    while True:
        # Neither a link to elsewhere is followed nor a pipe waited for.
        handle = os.open(
            path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o644
        )
        if lock(handle, wait=False) is False:
            holder = _holder(handle)
            os.close(handle)
            raise LowbitError(
                f"{path.parent}: another process trains in this folder ({holder}): wait until it has ended, stop it, "
                "or choose another --output"
            )
        if is_open_as(handle, path):
            break
        os.close(handle)  # its holder has removed the file meanwhile: the lock is on a file that nobody else finds
    who = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    with suppress(OSError):  # on a full disk it is locked all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(who) + "\n").encode(), 0)
    return handle


def _holder(handle: int) -> str:
    try:
        who = json.loads(os.pread(handle, 4096, 0))
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written it yet
        return "it has just begun"
