"""The integers a quantized number may be."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.errors import LowbitError

BITS_MAX = 16
"""Of a code anywhere."""
TRAINED_BITS_MAX = 8
"""Of a quantizer, but for the state of recurrent layers.

Wider codes stand between the operations of an integer network.
"""


@dataclass(frozen=True)
class Grid:
    """The integer grid {qn, …, qp} of a `bits`-bit number (LSQ, Eq. 1; bounds are inclusive).

    | kind                         | qn              | qp            |
    |------------------------------|-----------------|---------------|
    | unsigned                     | 0               | 2^bits − 1    |
    | signed                       | −2^(bits−1)     | 2^(bits−1) − 1|
    | signed, narrow               | −2^(bits−1) + 1 | 2^(bits−1) − 1|
    | signed, 1 bit (binary)       | −1              | 1, no zero    |

    A narrow grid is symmetric, as many integer processors want; narrow at 2 bits is ternary, {−1, 0, 1}.

    Raises:
        LowbitError: bits outside 1…16, or `narrow` where it means nothing (unsigned, or binary).
    """

    bits: int
    signed: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        _check(self.bits, BITS_MAX)
        for name in ("signed", "narrow"):
            if not isinstance(getattr(self, name), bool):
                raise LowbitError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.narrow and not self.signed:
            raise LowbitError("an unsigned grid has no narrow form: pass signed=True or narrow=False")
        if self.narrow and self.bits == 1:
            raise LowbitError("the 1-bit signed grid {-1, 1} has no narrow form: pass narrow=False")

    @property
    def binary(self) -> bool:
        """True for {−1, +1}, the one grid whose levels are two apart."""
        return self.signed and self.bits == 1

    @property
    def qn(self) -> int:
        """The smallest integer of the grid."""
        if not self.signed:
            return 0
        if self.binary:
            return -1
        return -(2 ** (self.bits - 1)) + int(self.narrow)

    @property
    def qp(self) -> int:
        """The largest integer of the grid."""
        if not self.signed:
            return 2**self.bits - 1
        return 1 if self.binary else 2 ** (self.bits - 1) - 1

    @property
    def spacing(self) -> int:
        """The distance between neighbouring levels: 1, or 2 on the binary grid."""
        return 2 if self.binary else 1

    def __str__(self) -> str:
        kind = ("narrow " if self.narrow else "") + ("signed" if self.signed else "unsigned")
        return f"{self.bits}-bit {kind} [{self.qn}, {self.qp}]"


def check_bits(bits: object, most: int = TRAINED_BITS_MAX) -> None:
    """Raise LowbitError where a quantizer can't have so many bits.

    What is not a whole number from 1 to 8, or to `most`.
    """
    _check(bits, most)


def _check(bits: object, most: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= most:
        raise LowbitError(f"bits must be a whole number from 1 to {most}, got {bits!r}")
