"""Operands that are repeated to each other's shape, in a sample's dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import fx

from lowbit.lowering.handlers.moves import reshape_to
from lowbit.lowering.layouts import Shape
from lowbit.lowering.values import Codes

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter


def aligned(
    converter: Converter,
    node: fx.Node,
    names: tuple[str, str] = ("input", "other"),
    own: int = 0,
    take: Callable[[fx.Node, fx.Node], Codes] | None = None,
) -> list[Codes]:
    """The codes of two operands, in shapes of a sample that broadcast against each other as the traced ones do.

    Args:
        own: how many of the last dimensions do not broadcast (the two of a matrix).
        take: gives the codes of an operand that the node takes; by default those on the grid that a quantizer has put
            it on.
    """
    given = converter.arguments(node)
    result, layout = converter.shapes[node], converter.layout(node)
    if layout.axis is not None and layout.axis >= len(result) - own:
        raise converter.refusal(node, " is computed along the batch, which has no integer form")
    take, found = take or converter.codes_at, []
    for name in names:
        operand = given[name]
        codes, sample = take(operand, node), aligned_shape(converter, node, operand)
        needed = _stripped(sample)
        if _stripped(converter.sample(operand)) != needed or len(converter.sample(operand)) > len(
            layout.sample(result)
        ):
            codes = converter.moved(codes, [reshape_to(operand.name, needed or (1,))])
        found.append(codes)
    return found


def aligned_shape(converter: Converter, node: fx.Node, operand: fx.Node) -> Shape:
    """A sample's shape of an operand, with as many dimensions as the result's."""
    result, layout = converter.shapes[node], converter.layout(node)
    of_operand, shape = converter.layout(operand), converter.shapes[operand]
    whole = (*(1,) * (len(result) - len(shape)), *shape)
    batch = None if of_operand.axis is None else of_operand.axis + len(result) - len(shape)
    if batch is not None and (batch != layout.axis or of_operand.folded != layout.folded):
        raise converter.refusal(node, " mixes the samples of a batch, which has no integer form")
    return layout.sample(whole) if layout.folded == 1 or batch is not None else whole


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading dimensions of size 1, which broadcasting adds."""
    first = next((place for place, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]
