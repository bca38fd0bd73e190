"""Layers whose owner reads their weight: `F.linear(x, self.qkv.weight, bias)` in its forward, not `self.qkv(x)`.

Nothing calls such a layer, so its quantizers would never run. The owner's class is swapped for one whose forward
recognizes these calls by their weight and lets the layer compute y = function(x̂, ŵ, …), so that its hooks run too.
Only the weight as it is can be recognized: one that is transposed, masked or added to first makes another tensor, and a
layer that nothing else reaches is named by `lowbit.calibrate` then.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lowbit.layers.quantized import QuantizedLayer
from lowbit.layers.unquantized import attribute_at, methods_of, operands

_FUNCTIONS = frozenset({
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
})  # fmt: skip


class _Reads(TorchFunctionMode):
    """Within: calls of functions with the weight of one of the layers are quantized as the layer is."""

    def __init__(self, layers: Sequence[QuantizedLayer]) -> None:
        super().__init__()
        self.layers = layers

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in _FUNCTIONS:
            given = dict(zip(("input", "weight"), args)) | named
            for layer in self.layers:
                if given["weight"] is layer.weight:
                    more = {name: value for name, value in named.items() if name not in ("input", "weight")}
                    return layer(given["input"], call=(func.__name__, args[2:], more))
        return func(*args, **named)


def quantize_reads(model: nn.Module) -> None:
    """Let every module that reads weights of prepared layers quantize what it computes with them, in place."""
    for module in list(model.modules()):
        paths = dict.fromkeys((*operands(type(module)), *_handed_on(type(module))))
        paths = [path for path in paths if _layers_at(module, path)]
        if paths and not isinstance(module, QuantizedLayer):
            module.__class__ = _reading_class(type(module))
            vars(module)["reads_layers_at"] = paths


@functools.cache
def _handed_on(kind: type[nn.Module]) -> tuple[str, ...]:
    """Paths of what forward, or a method that it calls, hands the weight of to a function: f(x, self.qkv.weight)."""
    methods, found = methods_of(kind), []
    waiting, seen = ["forward"], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in methods:
            continue
        seen.add(name)
        own = methods[name].args.args[0].arg
        for call in (each for each in ast.walk(methods[name]) if isinstance(each, ast.Call)):
            waiting += _path(call.func, own)
            for given in (*call.args, *(keyword.value for keyword in call.keywords)):
                if isinstance(given, ast.Attribute) and given.attr == "weight":
                    found += _path(given.value, own)
    return tuple(found)


def _path(node: ast.expr, own: str) -> list[str]:
    """The path "a.b" for self.a.b, and "a" for self.a[0]; nothing for anything else."""
    parts: list[str] = []
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        parts = [node.attr, *parts] if isinstance(node, ast.Attribute) else []
        node = node.value
    return [".".join(parts)] if parts and isinstance(node, ast.Name) and node.id == own else []


def _layers_at(module: nn.Module, path: str) -> list[QuantizedLayer]:
    """The prepared layers in what the path leads to: a layer, or a list of some."""
    value = attribute_at(module, path)
    return (
        [each for each in value.modules() if isinstance(each, QuantizedLayer)] if isinstance(value, nn.Module) else []
    )


@functools.cache
def _reading_class(kind: type[nn.Module]) -> type[nn.Module]:
    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _Reads([layer for path in self.reads_layers_at for layer in _layers_at(self, path)]):
            return kind.forward(self, *args, **kwargs)

    members = {"__module__": __name__, "__reduce__": _reduce, "_made_of": kind, "forward": forward}
    return type(f"Reading{kind.__name__}", (kind,), members)


def _reduce(module: Any) -> tuple:
    # The class is made when needed, so that pickle finds it under no name.
    return _empty, (module._made_of,), module.__dict__


def _empty(kind: type[nn.Module]) -> nn.Module:
    return _reading_class(kind).__new__(_reading_class(kind))
