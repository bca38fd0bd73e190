"""Pad: zeros around a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Node, Pads, Shape, TensorType
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class ZeroPadding(Node):
    """Zeros (code z_x, which must lie in the code range) before and after what stands along every dimension."""

    moves_codes: ClassVar[bool] = True

    def sizes(self, x: Shape) -> Pads:
        """(before, after) per dimension of an input of this shape."""
        raise NotImplementedError

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,) = shapes
        sizes = self.sizes(x)
        if len(sizes) != len(x) or any(len(pair) != 2 or min(pair) < 0 for pair in sizes):
            raise LowbitError(f"padding {sizes} of an input of shape {x}: two numbers per dimension, 0 or more")
        return tuple(size + before + after for size, (before, after) in zip(x, sizes))

    def check(self, inputs: Sequence[TensorType]) -> None:
        (x,) = inputs
        if not x.qn <= x.zero_point <= x.qp:
            raise LowbitError(f"pads with the zero point {x.zero_point}, which is not a code of its grid")

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        (x,), (kind,) = inputs, types
        flat = [size for pair in reversed(self.sizes(tuple(x.shape[1:]))) for size in pair]
        return torch.nn.functional.pad(x, flat, value=kind.zero_point)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pad(ZeroPadding):
    """Zeros before and after, along any dimension.

    Attributes:
        padding: (before, after) per dimension of a sample.
    """

    padding: Pads

    def sizes(self, x: Shape) -> Pads:
        return self.padding


@dataclass(frozen=True, eq=False, kw_only=True)
class PadChannels(ZeroPadding):
    """Zeros before and after the channels alone: what files of version 0.1 have."""

    before: int
    after: int

    def sizes(self, x: Shape) -> Pads:
        return ((self.before, self.after), *((0, 0),) * (len(x) - 1))
