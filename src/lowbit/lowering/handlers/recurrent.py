"""What recurrent layers have beside other layers: a sum of two products, and states on another grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from lowbit.integer.ops import Requantize, SumOfProducts
from lowbit.lowering import kinds as k
from lowbit.lowering.values import Computation

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter


def sum_of_products(converter: Converter, node: fx.Node) -> Computation:
    """a·b + c·d of tensors of one shape."""
    names = tuple(converter.codes_at(each, node).name for each in node.args)
    return Computation(node.name, lambda n, y: SumOfProducts(name=n, inputs=names, type=y))


def regrid(converter: Converter, node: fx.Node) -> Computation:
    """The same on another grid."""
    x = converter.codes_at(converter.input_of(node), node)
    return Computation(node.name, lambda n, y: Requantize(name=n, inputs=(x.name,), type=y))


HANDLERS = {k.SUM_OF_PRODUCTS: sum_of_products, k.REGRID: regrid}
