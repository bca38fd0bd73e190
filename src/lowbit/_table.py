"""Text in columns: how every table of this library is printed."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(lines: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Lines of equally many cells in columns two spaces apart; those in `left` (from 0) are flush left."""
    return "\n".join("  ".join(line).rstrip() for line in padded(lines, left))


def padded(lines: Sequence[Sequence[str]], left: Collection[int]) -> list[list[str]]:
    """The cells, each filled up with spaces to the width of its column."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return [[c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))] for line in lines]
