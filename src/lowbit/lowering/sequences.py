"""The kinds of operations that sequences bring: whole numbers as inputs, embeddings, masks."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from lowbit.lowering.calls import Modules, arguments
from lowbit.lowering.kind import Kind
from lowbit.lowering.recurrent import Regrid, SumOfProducts
from lowbit.lowering.whole import WholeNumbers

HIDDEN = -64.0
"""What is at most this, in a mask that is added to scores or put in their place, hides.

a softmax then gives less than 2^-24 of the shown share for scores that are 47 below it or less.
"""

_FUNCTIONS = (
    operator.invert, operator.not_, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
    operator.and_, operator.or_, operator.xor, torch.logical_not, torch.bitwise_not, torch.logical_and,
    torch.logical_or,
    torch.bitwise_and, torch.bitwise_or, torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge,
)  # fmt: skip
_METHODS = (
    "to float double half bool long int type type_as logical_not bitwise_not logical_and logical_or bitwise_and "
    "bitwise_or eq ne lt le gt ge"
).split()


def is_elementwise(node: fx.Node) -> bool:
    """Whether it is an operation on whole numbers or masks that other tensors have not.

    A cast, a comparison, a logical operation.
    """
    return node.target in (_FUNCTIONS if node.op == "call_function" else _METHODS)


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
