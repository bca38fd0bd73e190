"""Functions of one value, in every spelling that torch has of them: each becomes a table.

What a spelling computes is asked of the spelling itself, called with the tensor in its place and the numbers beside it
as they are given.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lowbit.lowering.calls import Modules, arguments

_NAMES = (
    "abs absolute acos acosh arccos arccosh arcsin arcsinh arctan arctanh asin asinh atan atanh ceil celu cos cosh "
    "deg2rad div "
    "divide elu erf erfc exp exp2 expit expm1 fix floor frac gelu hardshrink hardsigmoid hardswish leaky_relu log "
    "log10 log1p log2 logit "
    "logsigmoid mish nan_to_num neg negative positive pow rad2deg reciprocal round rsqrt rsub selu sgn sigmoid sign "
    "silu sin sinc sinh softplus softshrink softsign sqrt square tan tanh tanhshrink threshold true_divide trunc"
).split()
_SPELLED = [name + end for name in _NAMES for end in ("", "_")]

FUNCTIONS: tuple[Callable, ...] = tuple(
    dict.fromkeys(
        [
            operator.neg,
            operator.pos,
            operator.abs,
            operator.pow,
            operator.ipow,
            operator.truediv,
            operator.itruediv,
            abs,
            pow,
        ]
        + [getattr(home, name) for home in (torch, F, torch.special) for name in _SPELLED if hasattr(home, name)]
    )
)
METHODS = tuple(name for name in _SPELLED if hasattr(Tensor, name))
MODULES: tuple[type[nn.Module], ...] = (
    nn.SiLU, nn.Hardswish, nn.GELU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.LeakyReLU, nn.RReLU, nn.Softplus, nn.Softsign,
    nn.Hardsigmoid, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
LIBRARY_MODULES = (
    "Swish", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "GELU", "Mish", "GELUTanh", "HardMish", "QuickGELU",
)  # fmt: skip


_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")


def function_of(node: fx.Node, modules: Modules) -> Callable[[Tensor], Tensor]:
    """What a call computes of the one tensor that it takes, as a function of it; in place it changes only a copy."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return lambda x: module(x.clone())

    def function(x: Tensor) -> Tensor:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda tensor: x.clone())
        target: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
        return target(*args, **kwargs)

    return function


def bounds_of(node: fx.Node, modules: Modules) -> tuple[Any, Any]:
    """The bounds of a clamping operation as they are given; None for no bound."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return (module.min_val, module.max_val) if isinstance(module, nn.Hardtanh) else (0, None)  # ReLU6 is a Hardtanh
    if node.target in _RELUS:
        return 0, None
    if node.target is F.relu6:
        return 0, 6
    given = arguments(node, modules)
    if node.target in (F.hardtanh, F.hardtanh_):
        return given["min_val"], given["max_val"]
    return given.get("min"), given.get("max")
