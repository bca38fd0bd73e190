"""Lookup tables: any function of one code as an exact integer operation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit.integer.ir import TensorType


def codes_at(steps: Tensor, kind: TensorType) -> Tensor:
    """The codes, not clipped, of real values given in steps: rint(steps) + z, as runtimes have it; where z is a fraction (files
    that no integers run) rint(steps + z).
    """
    z = kind.zero_point
    return steps.round() + z if kind.is_whole else (steps + z).round()


def lookup_table(function: Callable[[Tensor], Tensor], x: TensorType, y: TensorType) -> Tensor:
    """Table of `ir.Lookup`: clip(rint(function(v) / s_y) + z_y) for every v = f(s_x · (code − z_x)), in float32.

    function: element-wise on a float32 tensor, as in the trained network (torch.nn.functional.silu, …).
    Returns int16 of 2^bits entries (one fewer for a narrow grid), ordered by input code.
    """
    codes = torch.arange(x.qn, x.qp + 1, dtype=torch.float32)
    values = function((codes - x.zero_point) * torch.tensor(x.scale, dtype=torch.float32))
    codes = codes_at(values / torch.tensor(y.scale, dtype=torch.float32), y)
    return codes.clamp(y.qn, y.qp).to(torch.int16)
