"""PadChannels: channels of zero before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Node, Shape, TensorType
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class PadChannels(Node):
    """Channels of zero (code z_x, which must lie in the code range) before and after: ResNet's option-A shortcut."""

    before: int
    after: int

    moves_codes: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,) = shapes
        if self.before < 0 or self.after < 0:
            raise LowbitError(f"{self.before} and {self.after} channels of padding; there are 0 or more")
        return (x[0] + self.before + self.after, *x[1:])

    def check(self, inputs: Sequence[TensorType]) -> None:
        (x,) = inputs
        if not x.qn <= x.zero_point <= x.qp:
            raise LowbitError(f"pads with the zero point {x.zero_point}, which is not a code of its grid")

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        (x,) = inputs
        padded = x.new_full((len(x), *self.shape_of()), types[0].zero_point)
        padded[:, self.before : self.before + x.shape[1]] = x
        return padded
