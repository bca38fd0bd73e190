"""The network as a graph of operations: what `integer_form` and `integer.convert` both look at.

torch.fx records the operations of `forward`; this module says what kind each of them is. One table per kind, so that a
new spelling of an operation is a line here and nowhere else.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.errors import LowbitError
from lowbit.layers.attention import QuantizedAttention
from lowbit.layers.modes import evaluation
from lowbit.layers.quantized import QuantizedLayer, float_class
from lowbit.lowering.folding import IntegerNorm
from lowbit.quantizer.module import Quantizer

# Kinds of node. "move": codes go elsewhere unchanged; "shape": makes no tensor.
INPUT, OUTPUT, LAYER, NORM, CLAMP, LOOKUP, ADD, MULTIPLY, CONCATENATE, AVERAGE, MOVE, SHAPE, QUANTIZER = (
    "input", "output", "layer", "norm", "clamp", "lookup", "add", "multiply", "concatenate", "average", "move", "shape",
    "quantizer",
)  # fmt: skip

WAY_OUT = (
    "replace them (by ReLU, h-swish or another function of one value, additions, multiplications of two tensors, "
    "concatenations, pooling), or prepare without integer_only"
)

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# timm's, with an activation inside, which `trace` takes apart.
_NORM_NAMES = ("BatchNormAct2d",)

_LOOKUPS: dict[Any, Callable] = {
    F.silu: F.silu, "silu": F.silu,
    F.hardswish: F.hardswish,
    F.gelu: F.gelu,
    F.mish: F.mish,
    F.elu: F.elu,
    F.leaky_relu: F.leaky_relu,
    F.softplus: F.softplus,
    F.hardsigmoid: F.hardsigmoid, "hardsigmoid": F.hardsigmoid,
    torch.sigmoid: torch.sigmoid, F.sigmoid: torch.sigmoid, "sigmoid": torch.sigmoid, "sigmoid_": torch.sigmoid,
    torch.tanh: torch.tanh, F.tanh: torch.tanh, "tanh": torch.tanh,
}  # fmt: skip
_LOOKUP_MODULES = (
    nn.SiLU, nn.Hardswish, nn.GELU, nn.Mish, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh,
)  # fmt: skip
# timm's own spellings of functions torch has. A name says what a class does only in the libraries that are meant.
_LIBRARIES = ("timm", "torchvision")
_LOOKUP_NAMES = ("Swish", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "GELU", "Mish", "GELUTanh")

_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_MULTIPLIES = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_AVERAGES = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.avg_pool2d, torch.mean, "mean")
_AVERAGE_MODULES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AvgPool1d, nn.AvgPool2d)
_MOVES = (
    torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.chunk, torch.split, torch.squeeze,
    torch.unsqueeze, F.pad, F.max_pool1d, F.max_pool2d, operator.getitem, "flatten", "view", "reshape",
    "transpose", "permute", "contiguous", "chunk", "split", "squeeze", "unsqueeze", "clone", "detach",
)  # fmt: skip
_MOVE_MODULES = (
    nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.MaxPool1d,
    nn.MaxPool2d, nn.ZeroPad2d, nn.ChannelShuffle, nn.Unflatten,
)  # fmt: skip
_MOVE_NAMES = ("DropPath", "DropBlock2d", "StochasticDepth")
_DROPOUTS = {
    F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d, F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
}  # fmt: skip


class _Tracer(fx.Tracer):
    """Records prepared layers, quantizers, activations and normalisations whole, and looks into everything else."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        known = isinstance(module, (QuantizedLayer, Quantizer)) or _is_norm(module)
        return known or _named(module, _LOOKUP_NAMES + _MOVE_NAMES) or super().is_leaf_module(module, name)

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        out = super().call_module(module, forward, args, kwargs)
        if _is_norm(module) and isinstance(getattr(module, "activation", None), nn.Module):
            return self.create_proxy("call_module", f"{self.path_of_module(module)}.activation", (out,), {})
        return out


def trace(model: nn.Module) -> fx.Graph:
    """The operations of the model in evaluation. Takes timm's normalisation-with-activation layers apart, in place.

    A graph holds one of the ways that a forward goes, training or evaluation; what an integer network computes is the
    second. Dropout, written as a function or as a layer, is in the graph as a layer and so acts in training all the same.

    Raises:
        LowbitError: torch.fx cannot follow the model's forward (control flow that depends on data, say).
    """
    for module in model.modules():
        if _is_norm(module) and isinstance(getattr(module, "act", None), nn.Module):
            module.activation, module.act = module.act, nn.Identity()
    try:
        with evaluation(model):
            graph = _Tracer().trace(model)
    except Exception as error:
        message = (
            f"torch.fx cannot follow the forward of {type(model).__name__} ({type(error).__name__}: {error}): an "
            "integer-only network needs a forward without control flow that depends on data"
        )
        without = _without_integer_form(model)
        if without:
            message += f". These layers have no integer form either:\n  {without}\n{WAY_OUT}"
        raise LowbitError(message) from error
    for node in list(graph.nodes):
        # What stands between a layer and its activation must not hide that they belong together.
        same = _same_as(node, model)
        if same is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
        elif node.op == "call_function" and node.target in _DROPOUTS:
            _dropout_as_layer(node, model)
    return graph


def _same_as(node: fx.Node, model: nn.Module) -> fx.Node | None:
    """The node whose tensor this one gives unchanged: of an identity, and of 0 + x, with which Python's sum() begins."""
    if node.op == "call_module":
        return node.args[0] if type(model.get_submodule(node.target)) is nn.Identity else None
    if node.target in _ADDS and len(node.args) == 2:
        summand, number = node.args if isinstance(node.args[0], fx.Node) else reversed(node.args)
        return summand if isinstance(number, (int, float)) and number == 0 else None
    return None


def _dropout_as_layer(node: fx.Node, model: nn.Module) -> None:
    """A call of F.dropout as the layer, which follows the mode of the model; its `training` was that of the trace."""
    x = node.args[0] if node.args else node.kwargs["input"]
    p = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
    name = f"{node.name}_in_forward"
    model.add_module(name, _DROPOUTS[node.target](p))
    with node.graph.inserting_after(node):
        layer = node.graph.call_module(name, (x,))
    node.replace_all_uses_with(layer)
    node.graph.erase_node(node)


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a batch-norm that computes what torch's does: no subclass with a forward of its own."""
    known = _BatchNorm.forward, IntegerNorm.forward
    return isinstance(module, _NORMS) and (type(module).forward in known or _named(module, _NORM_NAMES))


def _named(module: nn.Module, names: Sequence[str]) -> bool:
    kind = type(module)
    return kind.__name__ in names and kind.__module__.partition(".")[0] in _LIBRARIES


def _without_integer_form(model: nn.Module) -> str:
    """A line per class of layer that no integer network can have, with the names of the first few."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        innermost = next(module.children(), None) is None and _of_torch(module)
        if isinstance(module, QuantizedAttention) or (innermost and _kind_of_module(module) is None):
            found.setdefault(type(module).__name__, []).append(repr(name))
    return "\n  ".join(
        f"{kind}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for kind, names in found.items()
    )


def _of_torch(module: nn.Module) -> bool:
    """Whether torch has it, or what it derives from; another class is looked into."""
    return any(
        kind is not nn.Module and kind.__module__.startswith("torch.nn.modules") for kind in type(module).__mro__
    )


def kind_of(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """The kind of a node, or None for an operation that has no integer form."""
    if node.op == "placeholder":
        return INPUT
    if node.op == "output":
        return OUTPUT
    if node.op == "call_module":
        return _kind_of_module(modules[node.target])
    if node.op == "get_attr":
        return None
    target = node.target
    if target in ("size", "dim") or target in (getattr, operator.floordiv, operator.mod, operator.eq):
        return SHAPE
    if target is operator.getitem and isinstance(node.args[0], fx.Node) and kind_of(node.args[0], modules) == SHAPE:
        return SHAPE
    operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if operands and all(kind_of(arg, modules) == SHAPE for arg in operands):
        return SHAPE
    if clamp_range(node, modules) is not None:
        return CLAMP
    if target in _LOOKUPS:
        return LOOKUP
    if target in _ADDS or target in _MULTIPLIES:
        if len(operands) != 2 or node.kwargs.get("alpha", 1) != 1:
            return None
        return ADD if target in _ADDS else MULTIPLY
    if target in (torch.cat, torch.concat):
        return CONCATENATE
    if target in _AVERAGES:
        return AVERAGE
    return MOVE if target in _MOVES else None


def _kind_of_module(module: nn.Module) -> str | None:
    if isinstance(module, QuantizedLayer):
        return LAYER
    if isinstance(module, Quantizer):
        return QUANTIZER
    if _is_norm(module):
        return NORM
    if isinstance(module, (nn.ReLU, nn.ReLU6, nn.Hardtanh)):
        return CLAMP
    if isinstance(module, _LOOKUP_MODULES) or _named(module, _LOOKUP_NAMES):
        return LOOKUP
    if isinstance(module, _AVERAGE_MODULES):
        return AVERAGE
    if isinstance(module, _MOVE_MODULES) or _named(module, _MOVE_NAMES):
        return MOVE
    return None


def clamp_range(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[float, float] | None:
    """(lowest, highest) value that a clamping operation lets through, or None for any other operation."""
    infinity = float("inf")
    if node.op == "call_module":
        module = modules[node.target]
        if isinstance(module, nn.Hardtanh):  # ReLU6 is one
            return float(module.min_val), float(module.max_val)
        return (0.0, infinity) if isinstance(module, nn.ReLU) else None
    if node.target in _RELUS:
        return 0.0, infinity
    if node.target is F.relu6:
        return 0.0, 6.0
    if node.target in (torch.clamp, "clamp", "clamp_", F.hardtanh):
        defaults = (-1.0, 1.0) if node.target is F.hardtanh else (-infinity, infinity)
        names = ("min_val", "max_val") if node.target is F.hardtanh else ("min", "max")
        given = [*node.args[1:3], *[None] * (3 - len(node.args))]
        bounds = [node.kwargs.get(name, value) for name, value in zip(names, given)]
        if any(isinstance(bound, fx.Node) for bound in bounds):
            return None  # a bound per element
        return tuple(float(d if b is None else b) for b, d in zip(bounds, defaults))
    return None


def lookup_function(node: fx.Node, modules: dict[str, nn.Module]) -> Callable:
    """The elementwise function of a lookup node."""
    if node.op == "call_module":
        return modules[node.target]
    options = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    return partial(_LOOKUPS[node.target], **options)


def describe(node: fx.Node) -> str:
    """Where a node is, for messages: the module it is in and the operation."""
    if node.op == "call_module":
        return f"layer {str(node.target)!r}"
    stack = node.meta.get("nn_module_stack")
    place = next(reversed(stack.values()))[0] if stack else ""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{name} in {place!r}" if place else f"{name} in the network's forward"


def form_missing(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """Why a layer, of a kind that has an integer form, has none with its settings; None where it has, and for other nodes."""
    module = modules[node.target] if node.op == "call_module" else None
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return "transposed convolutions have none yet"
    if isinstance(module, QuantizedLayer) and getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode {module.padding_mode!r} has none; zeros have"
    if isinstance(module, _NORMS) and module.running_mean is None:
        return "it keeps no running statistics, which folding it needs"
    return None


def check_float_layers(model: nn.Module) -> None:
    """Refuse layers in full precision: an integer-only network has none.

    Raises:
        LowbitError: naming the first such layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            for side, what in ((module.weight_quantizer, "weights"), (module.input_quantizer, "inputs")):
                if not isinstance(side, Quantizer):
                    raise LowbitError(
                        f"layer {name!r} has full-precision {what}, which an integer-only network can't have: give them bits"
                    )
        elif float_class(module) is not None:
            raise LowbitError(
                f"layer {name!r} is in full precision, which an integer-only network can't have: give it bits, 8 if need be"
            )
