"""A call in the traced network: its arguments by name, and what messages call it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.operator_schemas import get_signature_for_torch_op, normalize_function

from lowbit.errors import LowbitError
from lowbit.layers.quantized import QuantizedLayer
from lowbit.lowering.folding import IntegerNorm

_BY = "by what docs/integer.md lists, or prepare without integer_only"
REMEDY = f"replace them {_BY}"
REMEDY_FOR_ONE = f"replace it {_BY}"

Modules = Mapping[str, nn.Module]
"""Every module of the traced network by its name."""

# Methods that take their last argument as one tuple or as several numbers, and what torch calls that argument.
_VARIADIC = {"permute": "dims", "reshape": "shape", "view": "shape"}
# numpy's names for arguments, which torch's operators take too.
_NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input", "x1": "input", "x2": "other"}


def arguments(node: fx.Node, modules: Modules) -> dict[str, Any]:
    """The arguments of a call by name, however they were written, with the defaults of those not given.

    The first, the tensor that is computed with, is called "input" here whatever its own name; the second of an operator
    such as `-` or `[]` is "other". A module's settings (kernel_size, …) are among its arguments.

    Raises:
        LowbitError: the call fits none of the signatures that are known of its target.
    """
    given = _arguments(node, modules)
    if given is None:
        raise LowbitError(f"{describe(node, modules)} is called in a way that has no integer form; {REMEDY_FOR_ONE}")
    return given


def _arguments(node: fx.Node, modules: Modules) -> dict[str, Any] | None:
    target, args, kwargs = node.target, node.args, dict(node.kwargs)
    if node.op == "call_module":
        module = modules[str(target)]
        settings = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        given = _bound(inspect.signature(module.forward), args, kwargs)
        return None if given is None else settings | _first_as_input(given)
    if node.op == "call_method":
        name = str(target).rstrip("_")  # an operation in place takes what the other takes
        if name.startswith("__"):  # an operator, of a tensor that is no proxy
            return dict(zip(("input", "other"), args))
        if name in _VARIADIC and len(args) > 1:
            several = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
            return {"input": args[0], _VARIADIC[name]: tuple(several)}
        method = getattr(Tensor, name, None)
        function = method if inspect.isfunction(method) else getattr(torch, name, None)
        if function is None:
            return {"input": args[0], **kwargs}
        return _of_function(function, args, kwargs)
    assert callable(target)
    return _of_function(target, args, kwargs)


def _of_function(function: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    if function.__module__ == "_operator":
        return dict(zip(("input", "other"), args))
    if not isinstance(function, types.BuiltinFunctionType):
        try:
            normalized = normalize_function(function, args, kwargs, normalize_to_only_use_kwargs=True)
        except TypeError:  # which torch raises where the signature does not take them
            return None
        return None if normalized is None else _first_as_input(normalized.kwargs)
    kwargs = {_NUMPY.get(name, name): value for name, value in kwargs.items()}
    # Overloads differ in types, not in names, so that the first which takes as many will do.
    for signature in get_signature_for_torch_op(function) or ():
        given = _bound(signature, args, kwargs)
        if given is not None:
            return _first_as_input(given)
    return None


def _bound(signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    return bound.arguments


def _first_as_input(given: Mapping[str, Any]) -> dict[str, Any]:
    return {("input" if place == 0 else name): value for place, (name, value) in enumerate(given.items())}


def nodes_in(argument: Any) -> list[fx.Node]:
    """The nodes within an argument: in tuples, lists, dictionaries and slices."""
    found: list[fx.Node] = []
    fx.map_arg(argument, found.append)
    return found


def outputs_of(node: fx.Node) -> list[tuple[str | None, fx.Node]]:
    """(name, tensor) of everything that the output node gives, in order; names are those of dictionaries, else None."""
    found: list[tuple[str | None, fx.Node]] = []

    def walk(value: Any, name: str | None) -> None:
        if isinstance(value, fx.Node):
            found.append((name, value))
        elif isinstance(value, Mapping):
            for key, part in value.items():
                walk(part, str(key) if name is None else f"{name}_{key}")
        elif isinstance(value, (tuple, list)):
            for place, part in enumerate(value):
                walk(part, None if name is None else f"{name}_{place}")

    walk(node.args[0], None)
    return found


def describe(node: fx.Node, modules: Modules) -> str:
    """What a call is and where, for messages: a layer with its class, or an operation with the module it stands in."""
    if node.op == "call_module":
        return describe_layer(str(node.target), modules[str(node.target)])
    stack = node.meta.get("nn_module_stack")
    place, kind = next(reversed(stack.values())) if stack else ("", "")
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{name} in {place!r} ({_class_name(kind)})" if place else f"{name} in the network's forward"


def describe_layer(name: str, layer: nn.Module) -> str:
    """A layer's name and class, the class it had before it was prepared."""
    return f"layer {name!r} ({class_of(layer).__name__})"


def _class_name(kind: type | str) -> str:
    """Of a class as torch.fx keeps it in a graph: itself, or spelled out."""
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def class_of(layer: nn.Module) -> type[nn.Module]:
    """The class that a layer had before it was prepared."""
    classes = (kind for kind in type(layer).__mro__ if issubclass(kind, nn.Module))
    return next(kind for kind in classes if not issubclass(kind, (QuantizedLayer, IntegerNorm)))
