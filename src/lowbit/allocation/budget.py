"""What a network may cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from lowbit.errors import LowbitError, did_you_mean

_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_NUMBER = re.compile(r"(?P<value>[0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*(?P<prefix>[kmg]?i?)(?P<unit>b|)", re.IGNORECASE)
_BYTES = ("weights", "file", "activations")


def with_unit(limit: str) -> str:
    """The name of a limit, with its unit where it has one."""
    return f"{limit} (bytes)" if limit in _BYTES else limit


@dataclass(frozen=True)
class Budget:
    """Limits that hold together; at least one is to be given.

    Attributes:
        weights: bytes of all quantized weights, each at its width.
        file: bytes of the network as a file of the format "lowbit": packed weights, biases, steps and the graph.
        activations: bytes of the tensors that are alive at once, at the fullest place of the graph, each at its width.
        bit_operations: Σ over layers of multiply-accumulates · bits of the weight · bits of the input, of one sample.
        average_bits: mean number of bits of a quantized weight.
    """

    weights: float | None = None
    file: float | None = None
    activations: float | None = None
    bit_operations: float | None = None
    average_bits: float | None = None

    def __post_init__(self) -> None:
        given = self.limits
        if not given:
            raise LowbitError(f"a budget needs at least one limit: {', '.join(each.name for each in fields(self))}")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise LowbitError(f"budget {name}: a positive number, got {value!r}")
        if self.average_bits is not None and self.average_bits > 8:
            raise LowbitError(f"budget average_bits: at most 8, got {self.average_bits:g}")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are given, by name."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    @classmethod
    def of(cls, given: Budget | str | Mapping[str, float]) -> Budget:
        """A budget from a text such as "weights=64kB,average_bits=3", or from limits by name.

        Sizes are in bytes, with B, kB, MB, GB (thousands) or KiB, MiB, GiB (1,024); bit operations with k, M, G.

        Raises:
            LowbitError: an unknown limit, a unit that the limit does not have, or a value that is no positive number.
        """
        if isinstance(given, Budget):
            return given
        if isinstance(given, str):
            given = dict(cls._parsed(part) for part in given.split(",") if part.strip())
        names = [each.name for each in fields(cls)]
        for name in given:
            if name not in names:
                raise _unknown(name, names)
        return cls(**given)

    @classmethod
    def _parsed(cls, part: str) -> tuple[str, float]:
        name, equals, text = (each.strip() for each in part.partition("="))
        found = _NUMBER.fullmatch(text)
        if not equals or found is None:
            raise LowbitError(f"budget {part.strip()!r}: write LIMIT=NUMBER, such as weights=64kB or average_bits=3")
        if name not in (known := [each.name for each in fields(cls)]):
            raise _unknown(name, known)
        unit, prefix = found["unit"], found["prefix"].lower()
        if name in _BYTES and unit != "B":
            wrote = "bits" if unit else "no unit"
            raise LowbitError(
                f"budget {part.strip()!r}: {name} is in bytes (B, kB, MB, KiB, MiB), and this has {wrote}"
            )
        if name not in _BYTES and unit:
            raise LowbitError(f"budget {part.strip()!r}: {name} is a number, and not in bytes")
        if prefix not in _PREFIXES or (name == "average_bits" and prefix):
            raise LowbitError(f"budget {part.strip()!r}: unknown unit {found['prefix'] + unit!r}")
        return name, float(found["value"]) * _PREFIXES[prefix]


def _unknown(name: str, known: Sequence[str]) -> LowbitError:
    return LowbitError(f"budget: unknown limit {name!r}.{did_you_mean(str(name), known)} Known are {', '.join(known)}")
