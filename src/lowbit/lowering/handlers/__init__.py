"""What each kind of operation becomes: a function of the converter and the node, by kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

from lowbit.lowering.handlers import (
    arithmetic,
    functions,
    layers,
    masks,
    matrices,
    moves,
    padding,
    pixels,
    pooling,
    recurrent,
    resize,
)
from lowbit.lowering.kinds import Kind

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter

Handler = Callable[["Converter", fx.Node], Any]
"""Gives the `Value` of a node's tensor, or a list of them where the node gives several."""

HANDLERS: dict[Kind, Handler] = {
    **layers.HANDLERS,
    **arithmetic.HANDLERS,
    **functions.HANDLERS,
    **matrices.HANDLERS,
    **masks.HANDLERS,
    **recurrent.HANDLERS,
    **pooling.HANDLERS,
    **resize.HANDLERS,
    **padding.HANDLERS,
    **pixels.HANDLERS,
    **moves.HANDLERS,
}
