"""LookupPerChannel: a table for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import code_dtype
from lowbit.integer.graph import FLOAT32_UNIT, Node, OutputCodes, Shape, TensorType, reach
from lowbit.integer.roundings import Rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class LookupPerChannel(Node):
    """y[c, …] = tables[c, x[c, …] − qn_x]: functions of one code that differ between channels, as PReLU's do.

    Attributes:
        tables: int16 (channels, input codes), entries are output codes; `lookup_table` computes each from a real
            function.
    """

    tables: OutputCodes

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,) = shapes
        if x[0] != len(self.tables):
            raise LowbitError(f"{len(self.tables)} tables for an input of shape {x}; there is one per channel")
        return x

    def check(self, inputs: Sequence[TensorType]) -> None:
        (x,), y, tables = inputs, self.codes_of(), self.tables
        if tables.dtype != torch.int16 or tables.ndim != 2 or tables.shape[1] != x.qp - x.qn + 1:
            raise LowbitError(
                f"the tables must be int16 with {x.qp - x.qn + 1} entries each, not {tables.dtype} "
                f"{tuple(tables.shape)}"
            )
        if int(tables.min()) < y.qn or int(tables.max()) > y.qp:
            raise LowbitError(f"table entries {int(tables.min())} .. {int(tables.max())} are not codes of its output")

    def tolerance(self, inputs: Sequence[TensorType]) -> float:
        return 2.0**5 * FLOAT32_UNIT * reach(self.codes_of())

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        (x,), (kind,) = inputs, types
        first = torch.arange(len(self.tables), device="cpu").reshape(-1, *[1] * (x.ndim - 2)) * self.tables.shape[1]
        flat = self.tables.to(code_dtype(self.codes_of())).flatten()
        return flat[x.to(torch.int64) - kind.qn + first]
