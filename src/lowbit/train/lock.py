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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from lowbit.errors import LowbitError

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
    handle = None if fcntl is None else _lock(path)
    if handle is None:
        yield
        return
    _held.add(handle)
    try:
        yield
    finally:
        with suppress(OSError):
            if _same(handle, path):
                path.unlink()
        _held.discard(handle)
        os.close(handle)


def _lock(path: Path) -> int | None:
    """A handle of the locked file; None where files cannot be locked."""
    assert fcntl is not None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(handle)
            os.close(handle)
            raise LowbitError(
                f"{path.parent}: another process trains in this folder ({holder}): wait until it has ended, stop it, "
                "or choose another --output"
            ) from None
        except OSError:  # a network file system without locks
            os.close(handle)
            return None
        if _same(handle, path):
            break
        os.close(handle)  # its holder has removed the file meanwhile: the lock is on a file that nobody else finds
    who = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    with suppress(OSError):  # on a full disk it is locked all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(who) + "\n").encode(), 0)
    return handle


def _same(handle: int, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _holder(handle: int) -> str:
    try:
        who = json.loads(os.pread(handle, 4096, 0))
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written it yet
        return "it has just begun"
