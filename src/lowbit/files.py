"""Writing files so that a killed process leaves the old file or the new one, never half of one, and reading only files.

A file is written under a temporary name beside its place and renamed. While that lasts, the process holds a lock on the
temporary file, which the system lets go of when the process ends, however it ends: so a later write in the same folder
can tell what a killed process has left from what another one is writing, also on a disk that several machines or
containers share, and removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowbit.errors import LowbitError

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays there
    fcntl = None

_MARK = ".lowbit-"
_TEMPORARY = re.compile(r"\..*\.lowbit-[0-9a-z_]{8}(\.[^.]*)?", re.DOTALL)
_NAME_MAX = 255  # bytes of a file's name, on nearly every system
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_open_now: set[Path] = set()  # temporary files that this process is writing


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, remove it on failure.

    The folder must exist. The yielded file is created empty, with the suffix of `path` (some writers look at it). What
    processes that no longer live have left in the folder is removed. Within such a write, one to the yielded path
    writes it directly.

    Raises:
        LowbitError: `path` is anything but a file or a free name, no file can be made beside it, or the disk is full.
    """
    path = Path(path)
    if path in _open_now:
        yield path
        return
    check_writable(path)
    remove_leftovers(path.parent)
    try:
        handle, temporary = _create(path)
    except OSError as error:
        raise _cannot(path, error) from error
    _open_now.add(temporary)
    try:
        try:
            yield temporary
        except OSError as error:
            named = error.filename is not None and Path(os.fsdecode(error.filename)) == temporary
            if named or error.errno in _DISK:  # anything else is of what was read meanwhile
                raise _cannot(path, error) from error
            raise
        try:
            temporary.chmod(0o644)  # a temporary file is private; a result file is an ordinary file
            # On disk before it takes the old file's place: a power cut must not leave an empty file in its place.
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise _cannot(path, error) from error
    finally:
        _open_now.discard(temporary)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(handle)


def check_writable(path: str | os.PathLike) -> None:
    """Raise LowbitError where a file can't be put at `path`.

    What is there is a folder, a link, a device or a pipe, there is no such folder, or the system takes no such name.
    """
    path = Path(path)
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise LowbitError(f"{path}: there is no folder {path.parent}; make it first") from None
        return
    except (OSError, ValueError) as error:
        raise _cannot(path, error) from error
    if not stat.S_ISREG(mode):
        raise LowbitError(f"{path} is a {_kind(mode)}; give the name of a file")


def check_readable(path: str | os.PathLike) -> None:
    """Raise LowbitError, without opening it, for what is not a file.

    A pipe would be waited for, a device never ends.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise LowbitError(f"{_shown(path)}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise LowbitError(f"{path}: cannot be read: it is a {_kind(mode)}, not a file")


def check_place(path: str | os.PathLike) -> None:
    """Raise LowbitError for a name that the system cannot look up.

    Too long, a folder that may not be entered, a loop.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise LowbitError(f"{_shown(path)}: {getattr(error, 'strerror', None) or error}; give another name") from error


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds.

    Raises:
        LowbitError: there is no such file, it cannot be read, or it is not JSON.
    """
    check_readable(path)
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise LowbitError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise LowbitError(f"{path}: not JSON ({error})") from error


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kind(mode: int) -> str:
    kinds = {"folder": stat.S_ISDIR, "link": stat.S_ISLNK, "pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    return next((kind for kind, test in kinds.items() if test(mode)), "device")


def _shown(path: str | os.PathLike) -> str:
    """A path for a message: at most 100 characters of it, on one line."""
    text = os.fspath(path)
    text = text if len(text) <= 100 else f"{text[:60]}…{text[-30:]}"
    return text if text.isprintable() else ascii(text)


def _cannot(path: Path, error: OSError | ValueError) -> LowbitError:
    return LowbitError(f"{_shown(path)} cannot be written: {getattr(error, 'strerror', None) or error}")


def _create(path: Path) -> tuple[int, Path]:
    """A new, empty, locked file beside `path`: its open handle and its name."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= 32 else ""
    room = _NAME_MAX - len(os.fsencode(f".{_MARK}{suffix}")) - 8
    stem = os.fsencode(path.stem)[:room].decode(errors="ignore")
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{stem}{_MARK}", suffix=suffix)
        # Between the two, another process may have taken it for a leftover.
        if not lock(handle, wait=True) or is_open_as(handle, name):
            return handle, Path(name)
        os.close(handle)


def lock(handle: int, *, wait: bool) -> bool | None:
    """Whether this process now holds the lock on an open file; None where the disk or the system knows no locks.

    Without `wait` it is False where another holds it. The lock is let go of when every copy of the handle is closed.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_open_as(handle: int, name: str | os.PathLike) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(name))
    except FileNotFoundError:
        return False


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder whose process has ended; never raises for one that can't be removed."""
    left = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        left = [entry.path for entry in entries if _MARK in entry.name and _TEMPORARY.fullmatch(entry.name)]
    for name in left:
        with contextlib.suppress(OSError):
            handle = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if stat.S_ISREG(os.fstat(handle).st_mode) and lock(handle, wait=False) and is_open_as(handle, name):
                    os.unlink(name)
            finally:
                os.close(handle)
