"""Weight codes as 32-bit words: planes of 8, 4, 2 and 1 bits, so that every width takes the bits that it has.

A code is stored as the unsigned number code + offset. Its bits are cut into planes, the lowest first; a word of a plane
with b bits has 32 / b fields of one row, those of even places in its low half and those of odd places in its high half,
the first lowest. Two neighbours are then the halves of (word >> shift) & mask, as an instruction for two 16-bit
products takes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

PLANES: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((1, 1),),  # codes −1 and +1 are 0 and 2
    2: ((2, 0),),
    3: ((2, 0), (1, 2)),
    4: ((4, 0),),
    5: ((4, 0), (1, 4)),
    6: ((4, 0), (2, 4)),
    7: ((4, 0), (2, 4), (1, 6)),
    8: ((8, 0),),
}
"""(bits, shift) of every plane, by the bits of a weight."""


def offset(bits: int) -> int:
    """What is added to a weight code to make it unsigned."""
    return 1 if bits == 1 else 1 << (bits - 1)


def words(codes: Tensor, bits: int, group: int = 1) -> list[int]:
    """The words of integer codes (rows, places): plane after plane, row after row.

    Of every `group` rows, two and two lie word by word in turn; what is left over lies alone.
    """
    numbers = codes.to(torch.int64) + offset(bits)
    found: list[int] = []
    for width, shift in PLANES[bits]:
        fields = (numbers >> shift) & ((1 << width) - 1)
        per_word = 32 // width
        fields = torch.nn.functional.pad(fields, (0, -fields.shape[1] % per_word)).reshape(-1, per_word)
        places = torch.arange(per_word, device="cpu")
        plane = (
            (fields << (places // 2 * width + places % 2 * 16))
            .sum(1)
            .reshape(-1, group, -(-codes.shape[1] // per_word))
        )
        paired = plane[:, : group // 2 * 2].unflatten(1, (-1, 2)).transpose(2, 3)
        found += torch.cat([paired.flatten(1), plane[:, group // 2 * 2 :].flatten(1)], 1).flatten().tolist()
    return found


def padded_length(length: int, bits: int) -> int:
    """Elements of a column of `length`, rounded up to whole words of every plane."""
    return max(-(-length * width // 32) * 32 // width for width, _ in PLANES[bits])
