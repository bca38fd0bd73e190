"""Linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.graph import Shape, TensorType
from lowbit.integer.ops.layer import Index, Layer


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Layer):
    """n[…, o] = bias[o] + Σ_i w[o,i] · (x[…, i] − z_x), over all leading dimensions; the rest as `Layer`."""

    channel_axis: ClassVar[int] = -1

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (x,), weight = shapes, self.weight.codes
        if weight.ndim != 2 or x[-1] != weight.shape[1]:
            raise LowbitError(f"weight {tuple(weight.shape)} does not fit an input of shape {x}")
        return (*x[:-1], weight.shape[0])

    def sums(self, x: Tensor, kind: TensorType, dtype: torch.dtype) -> Iterator[tuple[Index, Tensor]]:
        yield (slice(None),), ((x.to(dtype) - kind.zero_point) @ self.weight.codes.to(dtype).T).to(torch.int32)
