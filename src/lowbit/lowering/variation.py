"""What stands before layer-norm and its like: their gradient is weakened where there is hardly anything to normalize.

See `lowbit.quantizer.variation`. Batch-norms do it themselves (`lowbit.lowering.folding`).
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, fx, nn
from torch.nn import functional as F

from lowbit.lowering.calls import Modules, arguments
from lowbit.quantizer.module import Quantizer
from lowbit.quantizer.variation import rounding_of, weakened


class Variation(nn.Module):
    """Stands before a normalization (`kinds.NORMALIZE`), and passes its input on.

    Args:
        quantizer: of the normalization's input.
        blocks: what it works over: the "last" dimensions, "groups" of channels, or one "axis".
        number: how many dimensions, how many groups (0: as many as channels), or which axis.
        mean: whether it subtracts the mean.
    """

    def __init__(
        self, quantizer: Quantizer, blocks: Literal["last", "groups", "axis"], number: int, mean: bool
    ) -> None:
        super().__init__()
        self.of = (quantizer,)  # in a tuple, so that it does not become a submodule
        self.blocks, self.number, self.mean = blocks, number, mean

    def forward(self, x: Tensor) -> Tensor:
        """x."""
        (quantizer,) = self.of
        if not self.training or not quantizer.initialized:
            return x
        shape, over = x.shape, (self.number,)
        if self.blocks == "last":
            over = tuple(range(-self.number, 0))
        if self.blocks == "groups":
            groups = self.number or x.shape[1]
            shape, over = (x.shape[0], groups, math.prod(x.shape[1:]) // groups), (2,)
        return weakened(x, rounding_of(quantizer), tuple(shape), over, mean=self.mean)


def is_rms(node: fx.Node, modules: Modules) -> bool:
    """Whether a normalization over the last dimensions subtracts no mean."""
    return node.target is F.rms_norm or isinstance(modules.get(str(node.target)), nn.RMSNorm)


def before(node: fx.Node, modules: Modules, quantizer: Quantizer) -> Variation | None:
    """What is to stand before a normalization; None before one over several dimensions that are not the last."""
    given = arguments(node, modules)
    if "normalized_shape" in given:
        return Variation(quantizer, "last", len(given["normalized_shape"]), mean=not is_rms(node, modules))
    if "p" in given:
        return Variation(quantizer, "axis", given["dim"], mean=False) if isinstance(given["dim"], int) else None
    return Variation(quantizer, "groups", given.get("num_groups", 0), mean=True)
