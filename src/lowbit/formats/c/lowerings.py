"""Every operation's form in C: the modules that register them, in one place."""

from __future__ import annotations

from lowbit.formats.c import layers, moves, operations, sums

LOWERINGS = operations.LOWERINGS

__all__ = ["LOWERINGS", "layers", "moves", "sums"]
