"""SIGTERM as Ctrl-C: what is open is closed, and what is unfinished is removed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminable() -> Iterator[None]:
    """Within: SIGTERM, which `kill` and schedulers send, raises KeyboardInterrupt; a second one is ignored.

    Not in one of several processes of a launcher, which sends it where another has failed: this one may wait for that
    other one in an exchange, and would not come to an end.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is being removed must not be interrupted
        raise KeyboardInterrupt

    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if not alone or threading.current_thread() is not threading.main_thread():  # other threads can't set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
