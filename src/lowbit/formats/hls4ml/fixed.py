"""ap_fixed types: `width` bits, `integer` of them before the point; the last bit is worth 2^(integer − width).

All is exact: codes of a tensor whose step is 2^e are ap_fixed numbers with the last bit 2^e, and a requantization is
the assignment of a sum to such a type, which rounds halves to even (RND_CONV) and saturates (SAT; SAT_SYM on symmetric
grids).
"""

from __future__ import annotations

import math

from lowbit.errors import LowbitError
from lowbit.integer.graph import TensorType


def exponent(value: float, where: str) -> int:
    """e of a value 2^e. Raises LowbitError, beginning with `where`, for any other."""
    fraction, power = math.frexp(abs(value))
    if fraction != 0.5:
        raise LowbitError(
            f"{where} {value:g} is not a power of two, which hls4ml's fixed-point types need: prepare the network with "
            "scales='power-of-two' (lowbit train --quantization.scales power-of-two)"
        )
    return power - 1


def of_codes(name: str, kind: TensorType) -> str:
    """The type that a tensor of codes has.

    Raises:
        LowbitError: naming the node, for a grid that ap_fixed numbers don't have.
    """
    if kind.zero_point != 0:
        raise LowbitError(
            f"node {name!r}: its zero point is {kind.zero_point:g}, and hls4ml's fixed-point types have none but 0: "
            "use a method without offsets (lsq; of LSQ+ lsq+1 or lsq+2)"
        )
    last = exponent(kind.scale, f"node {name!r}: its step")
    saturation = "SAT_SYM" if kind.narrow else "SAT"
    return f"{'' if kind.signed else 'u'}fixed<{kind.bits},{kind.bits + last},RND_CONV,{saturation}>"


def holding(bound: float, last: int, *, signed: bool = True) -> str:
    """The narrowest type for multiples of 2^last up to `bound` of magnitude."""
    integer = math.frexp(bound)[1] if bound else last  # 2^integer > bound
    width = max(integer - last, 1) + signed
    return f"{'' if signed else 'u'}fixed<{width},{width + last}>"
