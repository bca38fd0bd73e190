"""The one exception that bad input raises, and what its messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LowbitError(ValueError):
    """Input that lowbit cannot work with: the message says what was wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """

    everywhere = False
    """Whether all processes of a job raise it, so that one of them is enough to print it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean a or b?` for what `known` has close to `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
