"""Whether inputs have the size that a network was recorded for."""

from __future__ import annotations

from torch import Tensor, nn

from lowbit.errors import LowbitError


class SizeCheck(nn.Module):
    """Refuses an input of another size than the example's, on which forward's decisions and numbers rest.

    Args:
        name: of the input.
        shape: of the example, without the batch.
    """

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.name, self.shape = name, shape

    def forward(self, x: Tensor) -> None:
        """Raises LowbitError for another shape."""
        if tuple(x.shape[1:]) != self.shape:
            raise LowbitError(
                f"the input {self.name!r} has shape {tuple(x.shape[1:])}, but the network was prepared with an "
                "example of shape "
                f"{self.shape}, and its forward computes with sizes: prepare it with an example of the size it is to "
                "take"
            )
