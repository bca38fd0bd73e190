"""Constant: codes that are the same for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import code_dtype
from lowbit.integer.costs import Work
from lowbit.integer.graph import Node, OutputCodes, Shape, TensorType
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Node):
    """y = codes, for every sample: a class token, a position embedding, a table of biases. It has no input.

    Attributes:
        codes: int16, on the grid of its type, in the shape of a sample's tensor.
    """

    codes: OutputCodes

    arity: ClassVar[int | None] = 0

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return tuple(self.codes.shape)

    def check(self, inputs: Sequence[TensorType]) -> None:
        check_stored(self.codes, self.codes_of())

    def tolerance(self, inputs: Sequence[TensorType]) -> float:
        """0: nothing is computed."""
        return 0.0

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        """One sample, (1, …)."""
        return self.codes.to(code_dtype(self.codes_of()))[None]

    def work(self, inputs: Sequence[TensorType]) -> Work:
        return Work.of_stored(self.codes, self.codes_of().bits)


def check_stored(codes: Tensor, y: TensorType) -> None:
    """Raise LowbitError for codes of a graph that are not on their grid."""
    if codes.dtype != torch.int16 or codes.ndim == 0 or codes.numel() == 0:
        raise LowbitError(f"codes must be int16 with one dimension or more, not {codes.dtype} {tuple(codes.shape)}")
    if int(codes.min()) < y.qn or int(codes.max()) > y.qp:
        raise LowbitError(f"codes {int(codes.min())} .. {int(codes.max())} are not codes of its grid")
