"""Which layer gets which quantizers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowbit.errors import LowbitError
from lowbit.quantizer.grid import Grid
from lowbit.quantizer.methods import Method, get_method

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


@dataclass(frozen=True)
class Rule:
    """An exception for the layers whose name a pattern matches.

    Args:
        pattern: a regular expression that must match the whole layer name, as in `model.named_modules()`.
        weights, activations: bits, or None for full precision.
        method: a name in `lowbit.METHODS` or a `Method`.
        granularity: "tensor", "channel", "group:N" or "channels:N".
        narrow: symmetric signed grids.
        skip: leave the layer in full precision altogether.
    """

    pattern: str
    weights: int | None = _KEEP
    activations: int | None = _KEEP
    method: str | Method = _KEEP
    granularity: str = _KEEP
    narrow: bool = _KEEP
    skip: bool = False

    def apply(self, setting: Setting) -> Setting:
        """`setting` with this rule's fields in place of its own."""
        names = ("weights", "activations", "method", "granularity", "narrow")
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not _KEEP}
        if "method" in changes:
            changes["method"] = get_method(changes["method"])
        return replace(setting, **changes, skip=self.skip)


def settings_for(
    names: Sequence[str], default: Setting, first_last: int | None, rules: Sequence[Rule]
) -> list[Setting]:
    """One setting per layer name: the first rule that matches, else the first-and-last policy, else the default.

    Raises:
        LowbitError: bits out of range, a pattern that is no regular expression, or a rule that decides no layer.
    """
    compiled = []
    for rule in rules:
        if not isinstance(rule, Rule):
            raise LowbitError(f"rules must be lowbit.Rule objects, got {rule!r}")
        try:
            compiled.append(re.compile(rule.pattern))
        except re.error as error:
            raise LowbitError(f"the pattern of rule {rule.pattern!r} is no regular expression: {error}") from error

    settings, used = [], set()
    for index, name in enumerate(names):
        setting = default
        if index in (0, len(names) - 1):
            # The papers' policy. A side that is in full precision everywhere stays so.
            setting = replace(
                default,
                weights=None if default.weights is None else first_last,
                activations=None if default.activations is None else first_last,
            )
        for number, pattern in enumerate(compiled):
            if pattern.fullmatch(name):
                setting = rules[number].apply(setting)
                used.add(number)
                break
        for side, bits in (("weights", setting.weights), ("activations", setting.activations)):
            if bits is not None:
                _check_bits(bits, f"{side} of layer {name!r}")
        settings.append(setting)

    for number, rule in enumerate(rules):
        if number not in used:
            matches = [name for name in names if compiled[number].fullmatch(name)]
            reason = (
                f"an earlier rule already decides {', '.join(matches)}; put the more special rule first"
                if matches
                else f"the pattern must match a whole layer name, such as {', '.join(map(repr, names[:3]))}"
            )
            raise LowbitError(f"rule {rule.pattern!r} decides no layer: {reason}")
    return settings


def _check_bits(bits: object, where: str) -> None:
    try:
        Grid(bits, signed=True)
    except LowbitError as error:
        raise LowbitError(f"{where}: {error}, or None for full precision") from error
