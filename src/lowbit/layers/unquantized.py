"""What holds weights and multiplies with them, but is not a layer that lowbit quantizes.

Recurrent networks, embeddings, bilinear layers and `nn.MultiheadAttention` are known by their class. A module of the
user's own is known by its source: one of its methods multiplies with a parameter, F.linear(x, self.weight) say. What is
computed from parameters alone first (`self.weight * self.mask`) counts, and so does a parameter of a submodule.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.layers.attention import QuantizedAttention
from lowbit.layers.quantized import QuantizedLayer, float_class
from lowbit.quantizer.module import Quantizer

_KNOWN = (
    nn.RNNBase,  # nn.LSTM, nn.GRU, nn.RNN
    nn.RNNCellBase,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.Bilinear,
    nn.MultiheadAttention,
)

# Names of torch's products; `x @ w` is one too.
_PRODUCTS = frozenset(
    "linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding embedding_bag "
    "matmul mm bmm mv addmm addmv baddbmm addbmm einsum tensordot multi_head_attention_forward".split()
)


class UnquantizedWarning(UserWarning):
    """A part of the network that computes with weights stays in full precision, although no rule says so."""


@dataclass(frozen=True)
class Unquantized:
    """A module in full precision, and the parameters with which it multiplies, by their name in the module."""

    name: str
    module: nn.Module
    weights: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        return type(self.module).__name__

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.weights.values())


def unquantized(model: nn.Module) -> Iterator[Unquantized]:
    """Every module that computes with weights of its own and that lowbit does not quantize, once, with its name."""
    taken: set[int] = set()
    found = []
    layers = {id(p) for module in model.modules() if float_class(module) for p in module.parameters()}
    for name, module in model.named_modules():
        if isinstance(module, (QuantizedLayer, QuantizedAttention, Quantizer)) or float_class(module) is not None:
            continue
        if isinstance(module, _KNOWN):
            own = dict(module.named_parameters(recurse=False))
            own |= {key: p for key, p in module.named_parameters() if key.startswith("parametrizations.")}
            weights = {key: p for key, p in own.items() if p.dim() >= 2 and key not in ("bias_k", "bias_v")}
        elif type(module).__module__.startswith("torch.nn.modules."):
            continue
        else:
            # A layer's weight that is read directly is the layer's matter: no batch reaches the layer itself.
            weights = {key: p for key, p in _multiplied(module).items() if id(p) not in layers}
        if weights:
            found.append((name, module, weights))
    for name, module, weights in sorted(found, key=lambda each: not isinstance(each[1], _KNOWN)):
        new = {key: p for key, p in weights.items() if id(p) not in taken or isinstance(module, _KNOWN)}
        taken.update(map(id, new.values()))
        if new:
            yield Unquantized(name, module, new)


def _multiplied(module: nn.Module) -> dict[str, Tensor]:
    """The parameters, of at least two dimensions, that the methods of a module multiply with."""
    weights = {}
    for path in operands(type(module)):
        value = attribute_at(module, path)
        if isinstance(value, nn.Parameter) and value.dim() >= 2:
            weights[path] = value
        elif isinstance(value, (nn.ParameterList, nn.ParameterDict)):
            weights |= {f"{path}.{key}": p for key, p in value.named_parameters() if p.dim() >= 2}
    return weights


def attribute_at(module: nn.Module, path: str) -> Any:
    """What a dotted path of attributes leads to; None where there is nothing."""
    value: Any = module
    for attribute in path.split("."):
        value = getattr(value, attribute, None)
    return value


@cache
def operands(kind: type[nn.Module]) -> tuple[str, ...]:
    """Attributes of self, as dotted paths, of which an operand of a product in the class's methods is made.

    Only operands that do not depend on a method's arguments count: an operand made of data and a parameter, as
    attention scores with a position's bias added are, holds no weights. Empty for a class whose source cannot be read.
    """
    found: dict[str, None] = {}
    methods = methods_of(kind)
    returned: dict[str, set[str] | None] = {}
    for _ in range(2):  # the second time with what methods return that are defined later
        for name, definition in methods.items():
            scan = _Scan(definition, returned)
            returned[name] = scan.returned
            found |= dict.fromkeys(scan.operands)
    return tuple(found)


def methods_of(kind: type[nn.Module]) -> dict[str, ast.FunctionDef]:
    """The source of each method that the class does not have from torch."""
    methods: dict[str, ast.FunctionDef] = {}
    for each in kind.__mro__:
        if each.__module__.partition(".")[0] == "torch" and not issubclass(each, torch.fx.GraphModule):
            continue
        for name, function in vars(each).items():
            if name in methods or name == "__init__":
                continue
            if isinstance(function, property):
                function = function.fget
            if not inspect.isfunction(function):
                continue
            try:
                parsed = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
            except (OSError, SyntaxError, TypeError, IndexError, tokenize.TokenError):
                continue
            # Code that was run from text, under the name of a file, may be given other lines of that file.
            if isinstance(parsed, ast.FunctionDef) and parsed.name == function.__name__ and parsed.args.args:
                methods[name] = parsed
    return methods


class _Scan(ast.NodeVisitor):
    """One pass over a method: what each local name is made of, and the operands of products."""

    def __init__(self, definition: ast.FunctionDef, methods: Mapping[str, set[str] | None]) -> None:
        arguments = definition.args
        names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        names += [each.arg for each in (arguments.vararg, arguments.kwarg) if each is not None]
        self.self_name = names[0]
        self.methods = methods
        # Attributes that a local name is made of; None where data is in it.
        self.locals: dict[str, set[str] | None] = dict.fromkeys(names[1:])
        self.operands: list[str] = []
        self.returned: set[str] | None = set()
        for statement in definition.body:
            self.visit(statement)

    def made_of(self, node: ast.AST) -> set[str] | None:
        """The attributes of self in an expression; None where it depends on data."""
        if isinstance(node, ast.Name):
            return self.locals.get(node.id, set())
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and (path := self._path(node.func)) is not None
        ):
            # A method of self or of a submodule: what it gives depends on what it is given.
            inner = self.methods.get(path, {path.rpartition(".")[0]} - {""})
            return self._joined([inner, *map(self.made_of, node.args), *(self.made_of(k.value) for k in node.keywords)])
        if (path := self._path(node)) is not None:
            # `weight.T` and `weight.data` are the weight; a property is what it returns.
            inner = self.methods.get(path)
            parts = path.split(".")
            return inner if inner else {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
        return self._joined([self.made_of(child) for child in ast.iter_child_nodes(node)])

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        value = self.made_of(node.value)
        for target in node.targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and name.id != self.self_name:
                    self.locals[name.id] = value

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self.locals[node.target.id] = self._joined([self.made_of(node.target), self.made_of(node.value)])

    def visit_For(self, node: ast.For) -> None:
        value = self.made_of(node.iter)
        for name in ast.walk(node.target):
            if isinstance(name, ast.Name):
                self.locals[name.id] = value
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        self.generic_visit(node)
        if node.value is not None:
            self.returned = self._joined([self.returned, self.made_of(node.value)])

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        # `self.linear(x)` calls a submodule.
        if called in _PRODUCTS and self._path(node.func) != called:
            receiver = [node.func.value] if isinstance(node.func, ast.Attribute) else []
            self._add([*receiver, *node.args, *(keyword.value for keyword in node.keywords)])

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.generic_visit(node)
        if isinstance(node.op, ast.MatMult):
            self._add([node.left, node.right])

    def _add(self, operands: list[ast.expr]) -> None:
        for operand in operands:
            self.operands += self.made_of(operand) or ()

    def _path(self, node: ast.AST) -> str | None:
        """The path "a.b" for self.a.b; None for anything else."""
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == self.self_name:
                return node.attr
            before = self._path(node.value)
            return None if before is None else f"{before}.{node.attr}"
        return None

    @staticmethod
    def _joined(parts: list[set[str] | None]) -> set[str] | None:
        joined: set[str] = set()
        for part in parts:
            if part is None:
                return None
            joined |= part
        return joined


def warning_text(found: list[Unquantized], share: float) -> str:
    """What `prepare` says of them."""
    names = ", ".join(f"{each.name or 'the model'} ({each.kind})" for each in found[:4])
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    rule = f"lowbit.Rule({found[0].name!r}, skip=True)"
    return (
        f"prepare leaves {names}{more} in full precision: {100 * share:.1f} % of the network's parameters. lowbit "
        f"quantizes convolution and linear layers; a rule such as {rule} says that this is meant"
    )
