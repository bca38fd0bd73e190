"""ExecuTorch: weighted means of positions, and positions that become channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lowbit.formats import xnnpack
from lowbit.formats.executorch.codes import LOWERINGS, Step, bytes_of, steps_of
from lowbit.integer.graph import TensorType, known_shape
from lowbit.integer.ops import PixelShuffle, PixelUnshuffle
from lowbit.integer.ops.pixel_shuffle import channels_to_positions, positions_to_channels
from lowbit.integer.ops.resample import Resample


@LOWERINGS(Resample)
def _resample(node: Resample, types: Sequence[TensorType]) -> Step:
    """A linear layer of whole numbers along each dimension."""
    (x,), y, (multiplier,) = types, node.codes_of(), node.multipliers(types)
    xnnpack.check_exact(node, [x])
    whole = known_shape(x)
    weights = {f"weight{axis}": matrix.to(torch.float32) for axis, matrix in node.matrices(whole).items()}

    def compute(carrier: Tensor, m: Tensor, **weights: Tensor) -> Tensor:
        total = steps_of(carrier, x)
        for name, weight in weights.items():
            axis = int(name.removeprefix("weight"))
            total = F.linear(total.transpose(axis, -1), weight).transpose(axis, -1)
        return bytes_of(total * m, y)

    return Step(compute, m=multiplier.single.reshape(1), **weights)


@LOWERINGS(PixelShuffle)
def _shuffle(node: PixelShuffle, types: Sequence[TensorType]) -> Step:
    return Step(lambda x: channels_to_positions(x, node.factors))


@LOWERINGS(PixelUnshuffle)
def _unshuffle(node: PixelUnshuffle, types: Sequence[TensorType]) -> Step:
    return Step(lambda x: positions_to_channels(x, node.factors))
