"""The kinds of operations that sequences bring: whole numbers as inputs, embeddings, masks."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn import functional as F

from lowbit.lowering.calls import Modules, arguments
from lowbit.lowering.kind import Kind
from lowbit.lowering.recurrent import Regrid, SumOfProducts
from lowbit.lowering.whole import WholeNumbers

HIDDEN = -64.0
"""What is at most this, in a mask that is added to scores or put in their place, hides.

A softmax then gives less than 2^-24 of the shown share for scores that are 47 below it or less.
"""

_ELEMENTWISE = frozenset(
    "invert not eq ne lt le gt ge and or xor logical_not bitwise_not logical_and logical_or bitwise_and bitwise_or "
    "to float double half bool long int type type_as".split()
)


def is_elementwise(node: fx.Node) -> bool:
    """Whether it is an operation on whole numbers or masks that other tensors have not.

    A cast, a comparison, a logical operation.
    """
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return str(name).strip("_") in _ELEMENTWISE


def _lack_of_mask(node: fx.Node, modules: Modules) -> str | None:
    value = arguments(node, modules).get("value")
    if isinstance(value, (int, float)) and value <= HIDDEN:
        return None
    return f"it has one with −∞, or another number up to {HIDDEN:g}, before a softmax"


def _lack_of_embedding(node: fx.Node, modules: Modules) -> str | None:
    given = arguments(node, modules)
    return None if given.get("max_norm") is None else "max_norm has none: it changes the table when it is read"


SUM_OF_PRODUCTS = Kind("sum of products", modules=(SumOfProducts,), computes=True)
REGRID = Kind("regrid", modules=(Regrid,), computes=True)
INDEX_INPUT = Kind("input of whole numbers")
INDICES = Kind("whole numbers", modules=(WholeNumbers,))
WHOLE = Kind("function of whole numbers")
EMBEDDING = Kind(
    "embedding",
    functions=(F.embedding,),
    modules=(nn.Embedding,),
    computes=True,
    parameters=("weight",),
    lack=_lack_of_embedding,
)
MASK = Kind(
    "mask",
    functions=(torch.masked_fill,),
    methods=("masked_fill", "masked_fill_"),
    moves_codes=True,
    parameters=("mask",),
    lack=_lack_of_mask,
)
