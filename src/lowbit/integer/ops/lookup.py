"""Lookup: any function of one code as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.arithmetic import all_codes, code_dtype, f32, look_up
from lowbit.integer.graph import Node, OutputCodes, Shape, TensorType, reach
from lowbit.integer.roundings import Rounding
from lowbit.integer.settings import reference_arithmetic


@dataclass(frozen=True, eq=False, kw_only=True)
class Lookup(Node):
    """y = table[x − qn_x]: any function of one code (SiLU, sigmoid, GELU, …) in exact integers.

    Attributes:
        table: int16 (so that both signed and unsigned 8-bit codes fit), one entry per input code, entries are output
            codes. `lookup_table` computes one from a real function.
    """

    table: OutputCodes

    independent: ClassVar[Literal["samples", "channels", "elements"]] = "elements"

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]

    def check(self, inputs: Sequence[TensorType]) -> None:
        (x,), y, table = inputs, self.codes_of(), self.table
        if table.dtype != torch.int16 or table.shape != (x.qp - x.qn + 1,):
            raise LowbitError(
                f"the table must be int16 with {x.qp - x.qn + 1} entries, not {table.dtype} {tuple(table.shape)}"
            )
        if int(table.min()) < y.qn or int(table.max()) > y.qp:
            raise LowbitError(f"table entries {int(table.min())} .. {int(table.max())} are not codes of its output")

    def tolerance(self, inputs: Sequence[TensorType]) -> float:
        """2^-19 of the largest step that it gives: the function rounds float32 values by itself."""
        return 2.0**-19 * reach(self.codes_of())

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        return look_up(self.table.to(code_dtype(self.codes_of())), inputs[0], types[0])


def codes_at(steps: Tensor, y: TensorType) -> Tensor:
    """The codes, not clipped, of real values given in steps: rint(steps) + z, as runtimes have it.

    Where z is a fraction, in files that no integers run, it is rint(steps + z).
    """
    z = y.zero_point
    return steps.round() + z if y.has_integer_zero_point else (steps + z).round()


def lookup_table(function: Callable[[Tensor], Tensor], x: TensorType, y: TensorType) -> Tensor:
    """Table of `Lookup`: clip(rint(function(v) / s_y) + z_y) for every v = f(s_x · (code − z_x)), in float32.

    Args:
        function: element-wise on a float32 tensor, as in the trained network (torch.nn.functional.silu, …).
        x, y: of input and output.

    Returns:
        int16 of 2^bits entries (one fewer for a narrow grid), ordered by input code.
    """
    with reference_arithmetic(), torch.device("cpu"):
        values = function((all_codes(x).to(torch.float32) - x.zero_point) * f32(x.scale))
        return codes_at(values / f32(y.scale), y).clamp(y.qn, y.qp).to(torch.int16)
