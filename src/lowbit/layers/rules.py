"""Which layer gets which quantizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowbit._deprecated import warn_renamed
from lowbit.errors import LowbitError
from lowbit.grid import check_bits as check_number
from lowbit.layers.patterns import matcher
from lowbit.quantizer.methods import Method, get_method

INSERTED = "activation_quantizers"
"""The submodule that holds an integer-only network's quantizers between layers; their names begin with it."""
INSERTED_IN_0_1_0 = "streams"

_KEEP: Any = object()  # a rule's field that leaves the setting as it was


@dataclass(frozen=True)
class Setting:
    """How one layer is quantized. Bits of None leave that side in full precision.

    `granularity` is that of the weights: "tensor", "channel" (per output channel), "group:N" (N consecutive inputs of
    an output channel share a step) or "channels:N" (N consecutive output channels do).
    """

    weights: int | None
    activations: int | None
    method: Method
    granularity: str
    narrow: bool
    skip: bool = False
    accumulator_bits: int | None = None


@dataclass(frozen=True)
class Rule:
    """An exception for the layers whose name a pattern matches.

    Args:
        pattern: a regular expression that must match the whole layer name, as in `model.named_modules()`; matched in
            bounded time.
        weights: bits of weights, or None for full precision.
        activations: bits of activations, likewise.
        method: a name in `lowbit.METHODS` or a `Method`.
        granularity: "tensor", "channel", "group:N" or "channels:N".
        narrow: symmetric signed grids.
        scales: which steps are powers of two, as `lowbit.prepare` takes it.
        accumulator_bits: the width that every sum of the layer is to fit, or None for no bound but 32 bits.
        skip: leave the layer in full precision altogether.
    """

    pattern: str
    weights: int | None = _KEEP
    activations: int | None = _KEEP
    method: str | Method = _KEEP
    granularity: str = _KEEP
    narrow: bool = _KEEP
    scales: str = _KEEP
    accumulator_bits: int | None = _KEEP
    skip: bool = False

    def apply(self, setting: Setting) -> Setting:
        """`setting` with this rule's fields in place of its own."""
        names = ("weights", "activations", "method", "granularity", "narrow", "accumulator_bits")
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not _KEEP}
        if "method" in changes:
            changes["method"] = get_method(changes["method"])
        if self.scales is not _KEEP:
            changes["method"] = changes.get("method", setting.method).varied(scales=self.scales)
        return replace(setting, **changes, skip=self.skip)


def check_bits(bits: object, where: str) -> None:
    """Refuse what is neither a bit-width nor None. Raises LowbitError, beginning with `where`."""
    if bits is not None:
        try:
            check_number(bits)
        except LowbitError as error:
            raise LowbitError(f"{where}: {error}, or None for full precision") from error


class Rules:
    """A list of rules, compiled, that remembers which of them had an effect.

    Raises:
        LowbitError: something that is not a rule, or a pattern that is not a regular expression.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules: list[tuple[Rule, Callable[[str], bool]]] = []
        self._used: set[int] = set()
        self._names: list[str] = []
        for rule in rules:
            if not isinstance(rule, Rule):
                raise LowbitError(f"rules must be lowbit.Rule objects, got {rule!r}")
            self._rules.append((rule, matcher(rule.pattern)))

    def setting(self, name: str, default: Setting) -> Setting:
        """The default, changed by the first rule whose pattern matches the name.

        Raises:
            LowbitError: bits out of range.
        """
        self._names.append(name)
        setting = default
        for number, (rule, matches) in enumerate(self._rules):
            if matches(name) or _matches_old_name(rule, matches, name):
                setting = rule.apply(default)
                self._used.add(number)
                break
        for side in ("weights", "activations"):
            check_bits(getattr(setting, side), f"{side} of {name!r}")
        return setting

    def skips(self, name: str) -> bool:
        """Whether the first rule that matches says that this module, which has no quantizers, is meant to have none.

        A rule that gives it bits has no effect.
        """
        number = next((number for number, (_, matches) in enumerate(self._rules) if matches(name)), None)
        if number is None or not self._rules[number][0].skip:
            return False
        self._used.add(number)
        return True

    def check_used(self) -> None:
        """Refuse rules that had no effect: a typing error in a pattern must not go unnoticed.

        Raises:
            LowbitError: naming the first such rule and why it had no effect.
        """
        for number, (rule, matches) in enumerate(self._rules):
            if number in self._used:
                continue
            decided = [name for name in self._names if matches(name)]
            if decided:
                raise LowbitError(
                    f"rule {rule.pattern!r} has no effect: an earlier rule already matches {', '.join(decided)}; put "
                    "the more specific rule first"
                )
            raise LowbitError(
                f"rule {rule.pattern!r} matches no layer: the pattern must match a whole layer name, such as "
                f"{', '.join(map(repr, self._names[:3]))}"
            )


def _matches_old_name(rule: Rule, matches: Callable[[str], bool], name: str) -> bool:
    """Whether a rule names a quantizer between layers as version 0.1.0 called it; it warns then."""
    if not name.startswith(f"{INSERTED}.") or not matches(INSERTED_IN_0_1_0 + name.removeprefix(INSERTED)):
        return False
    warn_renamed(f"'{INSERTED_IN_0_1_0}.…' in the rule {rule.pattern!r}", f"'{INSERTED}.…'", stacklevel=6)
    return True
