"""Writing files so that a killed process leaves the old file or the new one, never half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowbit.errors import LowbitError


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, remove it on failure.

    The folder must exist. The yielded file is created empty, with the suffix of `path` (some writers look at it).

    Raises LowbitError where `path` is a folder, or no file can be made beside it.
    """
    path = Path(path)
    if path.is_dir():
        raise LowbitError(f"{path} is a folder; give the name of a file")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    except OSError as error:
        raise LowbitError(f"{path} cannot be written: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes it private; a result file is an ordinary file
        # On disk before it takes the old file's place: a power cut must not leave an empty file under the final name.
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
