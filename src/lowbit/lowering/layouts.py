"""Where the batch lies in a tensor of the trained network, and what shape the tensor has in the integer graph.

A sample's tensor has no batch in the integer graph. In the trained network the batch may stand at any dimension, and
share it with windows, heads or groups that are folded into it (B·nW, N, C); there they come behind the batch, so that
B·nW counts the windows of one sample before those of the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowbit.lowering.tracer import BATCH, batch_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where the batch lies.

    Attributes:
        axis: the dimension with the batch in it; None for a tensor that is the same for every sample.
        folded: how much of one sample lies along it too.
    """

    axis: int | None = 0
    folded: int = 1

    def sample(self, shape: Shape) -> Shape:
        """The shape of a sample, of a tensor with this shape."""
        if self.axis is None:
            return shape
        own = () if self.folded == 1 else (self.folded,)
        return (*shape[: self.axis], *own, *shape[self.axis + 1 :])

    def place(self, axis: int) -> int | None:
        """A dimension of the tensor as one of the integer graph's, where the batch is 0.

        None for that of the batch alone.
        """
        if self.axis is None or axis < self.axis:
            return axis + 1
        if axis == self.axis:
            return None if self.folded == 1 else axis + 1
        return axis if self.folded == 1 else axis + 1

    def to_samples(self, x: Tensor, batch: int) -> Tensor:
        """(batch, *sample) of a tensor that lies so."""
        if self.axis is None:
            return x.expand(batch, *x.shape)
        if self.folded > 1:
            x = x.unflatten(self.axis, (batch, self.folded))
        return x.movedim(self.axis, 0)

    def from_samples(self, x: Tensor) -> Tensor:
        """The tensor as it lies in the trained network, from (batch, *sample)."""
        if self.axis is None:
            return x[0]
        x = x.movedim(0, self.axis)
        return x if self.folded == 1 else x.flatten(self.axis, self.axis + 1)


def layout_of(shape: Shape) -> Layout | None:
    """Where the batch lies in a tensor of this shape, in which it has the size `BATCH`.

    None where that is not one dimension.
    """
    axes = [axis for axis, size in enumerate(shape) if batch_of(size)]
    if len(axes) > 1:
        return None
    return Layout(axes[0], shape[axes[0]] // BATCH) if axes else Layout(None)
