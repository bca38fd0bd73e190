"""Between channels and positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from lowbit.integer.ops import PixelShuffle, PixelUnshuffle
from lowbit.lowering import kinds as k
from lowbit.lowering.values import Move

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter


def shuffle(converter: Converter, node: fx.Node) -> Any:
    """Blocks of channels become positions."""
    (factor,) = converter.options(node, "upscale_factor")
    return _moved(converter, node, PixelShuffle, factor)


def unshuffle(converter: Converter, node: fx.Node) -> Any:
    """Blocks of positions become channels."""
    (factor,) = converter.options(node, "downscale_factor")
    return _moved(converter, node, PixelUnshuffle, factor)


def _moved(converter: Converter, node: fx.Node, kind: type[PixelShuffle | PixelUnshuffle], factor: int) -> Any:
    converter.check_batch_first(node)
    source = converter.input_of(node)
    value, factors = converter.value(source, node), (factor,) * (len(converter.shapes[source]) - 2)
    return converter.moved(value, [Move(node.name, lambda n, x: kind(name=n, inputs=(x,), factors=factors))])


HANDLERS = {k.PIXEL_SHUFFLE: shuffle, k.PIXEL_UNSHUFFLE: unshuffle}
