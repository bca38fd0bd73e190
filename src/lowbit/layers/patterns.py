"""Regular expressions that are matched in bounded time, whatever they are.

Python's `re` goes back and tries again: `(a+)+b` takes twice as long for each further "a". Patterns with few choices,
none of them repeated, are left to it. Of all others the set of places where a match may end is computed, part by part;
each part is looked at once for each place of the name, so that time grows with a power of the name's length, and not
exponentially.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from lowbit.errors import LowbitError

_LONGEST = 1000
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)
_UNSUPPORTED = {
    _constants.GROUPREF: "a reference to a group",
    _constants.GROUPREF_EXISTS: "a reference to a group",
    _constants.ATOMIC_GROUP: "an atomic group",
    _constants.POSSESSIVE_REPEAT: "a possessive repetition",
}

Part = Callable[[str, int], frozenset[int]]
"""Where a part of a pattern may end in a text, if it begins at a place."""


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether the whole of a name matches the pattern, as `re.fullmatch` says it.

    Raises:
        LowbitError: no regular expression; one of more than 1000 characters, or one that repeats what it repeats and
            has in it what can only be matched by trying: references to groups, atomic groups, lookaround with such
            repetitions.
    """
    if len(pattern) > _LONGEST:
        raise LowbitError(
            f"the pattern of a rule has {len(pattern)} characters, more than {_LONGEST}: use several rules"
        )
    try:
        compiled, parsed = re.compile(pattern), _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise LowbitError(f"the pattern of rule {pattern!r} is not a regular expression: {error}") from error
    if _is_simple(parsed):
        return lambda name: compiled.fullmatch(name) is not None
    whole = _sequence(parsed, parsed.state.flags, pattern)
    return lambda name: len(name) in whole(name, 0)


def _inside(op: Any, argument: Any) -> Iterator[Any]:
    """The sequences of which a part of a parsed pattern is made."""
    if op is _constants.BRANCH:
        yield from argument[1]
    elif isinstance(argument, (tuple, list)):
        yield from (each for each in argument if isinstance(each, _parser.SubPattern))


def _choices(sequence: Any) -> float:
    """How many parts of a sequence can match in several ways; infinitely many if one of them is repeated."""
    count = 0.0
    for op, argument in sequence:
        inside = sum(map(_choices, _inside(op, argument)))
        if op in _REPEATS:
            least, most, _ = argument
            count += math.inf if inside and most > 1 else inside + (least != most)
        else:
            count += inside + (op is _constants.BRANCH)
    return count


def _is_simple(sequence: Any) -> bool:
    """Whether going back and trying again, as `re` does, takes little time: few choices, none of them repeated."""
    return _choices(sequence) <= 3


def _sequence(sequence: Any, flags: int, pattern: str) -> Part:
    parts = [_part(op, argument, sequence.state, flags, pattern) for op, argument in sequence]

    def ends(text: str, start: int) -> frozenset[int]:
        places = frozenset([start])
        for part in parts:
            places = _all(part, text, places)
        return places

    return _once(ends)


def _part(op: Any, argument: Any, state: Any, flags: int, pattern: str) -> Part:
    if op in _UNSUPPORTED:
        raise LowbitError(
            f"the pattern of rule {pattern!r} has {_UNSUPPORTED[op]} among nested repetitions: write it without"
        )
    if op is _constants.BRANCH:
        choices = [_sequence(each, flags, pattern) for each in argument[1]]
        return lambda text, start: frozenset().union(*(choice(text, start) for choice in choices))
    if op is _constants.SUBPATTERN:
        _, added, removed, inner = argument
        return _sequence(inner, (flags | added) & ~removed, pattern)
    if op in _REPEATS:
        least, most, inner = argument
        return _repeated(_sequence(inner, flags, pattern), least, most)
    inner = _parser.SubPattern(state, [(op, argument)])
    if not all(_is_simple(each) for each in _inside(op, argument)):
        raise LowbitError(f"the pattern of rule {pattern!r} looks around for nested repetitions: write it without")
    compiled = _compiler.compile(inner, flags)

    def ends(text: str, start: int) -> frozenset[int]:
        found = compiled.match(text, start)
        return frozenset() if found is None else frozenset([found.end()])

    return ends


def _repeated(part: Part, least: int, most: int) -> Part:
    def ends(text: str, start: int) -> frozenset[int]:
        places = frozenset([start])
        # In more repetitions than places some are empty, and one more or less of these changes nothing.
        for _ in range(min(least, len(text) + 1)):
            places = _all(part, text, places)
        found, count = places, 0
        while places and count < most - least:
            places, count = _all(part, text, places) - found, count + 1
            found |= places
        return found

    return _once(ends)


def _all(part: Part, text: str, places: frozenset[int]) -> frozenset[int]:
    return frozenset().union(*(part(text, place) for place in places))


def _once(part: Part) -> Part:
    """The same, computed once for each place of a text."""
    known: dict[int, frozenset[int]] = {}
    last: str | None = None

    def ends(text: str, start: int) -> frozenset[int]:
        nonlocal last
        if last is not text:
            known.clear()
            last = text
        if start not in known:
            known[start] = part(text, start)
        return known[start]

    return ends
