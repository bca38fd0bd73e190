"""The tracer: records what a network does with tensors, as torch.fx does.

It knows the tensors' shapes where it is given inputs.

Every recorded call is also computed, on tensors without data, so that sizes, ranks, lengths and types are plain Python
values in the network's own code, and control flow on them goes the way it goes for these inputs. The size of the batch
is not: it is a large prime, so that each size that has the batch in it can be told by its factor (`batch_of`), and
stays a recorded call. A decision that depends on it, or on data, is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from lowbit.layers.function import QuantizedFunction
from lowbit.layers.quantized import QuantizedLayer
from lowbit.lowering.assignment import assigned, is_view, seen_by
from lowbit.lowering.calls import arguments
from lowbit.lowering.decompose import MODULES, written_out
from lowbit.lowering.kinds import LOOKUP, UNCHANGED, is_library_module, is_norm
from lowbit.quantizer.module import Quantizer

BATCH = 7919
"""The size of the batch while shapes are found: a prime that no other size has as a factor."""

_ON_NUMBERS = {operator.floordiv, operator.truediv, operator.mod, operator.eq, operator.ne, operator.lt, operator.le,
               operator.gt, operator.ge}  # fmt: skip
_UNKNOWN = object()


class Shapes:
    """Computes calls of a network on tensors without data, float layers in place of quantized ones.

    Args:
        root: the network.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def input(self, example: Tensor) -> Tensor:
        """What stands for an input: the example's shape with a batch of `BATCH`."""
        with self.mode:
            return torch.empty(BATCH, *example.shape[1:], dtype=example.dtype, device=example.device)

    def call(self, op: str, target: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """The result of a call, on tensors without data and numbers."""
        with self.mode, torch.no_grad():
            if op == "get_attr":
                value: Any = self.root
                for part in target.split("."):
                    value = getattr(value, part)
                return self.mode.from_tensor(value) if isinstance(value, Tensor) else value
            if op == "call_function":
                return target(*args, **kwargs)
            if op == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            return self.module(self.root.get_submodule(target), *args, **kwargs)

    def module(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What a module that is recorded whole gives."""
        if isinstance(module, Quantizer):
            return args[0]
        if is_norm(module):
            assert isinstance(module, _BatchNorm)
            x = args[0] if args else kwargs["input"]
            module._check_input_dim(x)
            # Computing it would be a third of the time that the shapes of a large network take.
            return torch.empty_like(x) if x.shape[1] == module.num_features else _BatchNorm.forward(module, x)
        if not isinstance(module, (QuantizedLayer, QuantizedFunction)):
            return module.forward(*args, **kwargs)
        quantizers = {name: child for name, child in module.named_children() if name.endswith("_quantizer")}
        try:
            for name in quantizers:
                setattr(module, name, nn.Identity())
            return module.forward(*args, **kwargs)
        finally:
            for name, quantizer in quantizers.items():
                setattr(module, name, quantizer)


class Tracer(fx.Tracer):
    """Records prepared layers, quantizers, activations and normalisations whole, and looks into everything else.

    Args:
        known: an example of each input, a batch, by the name of forward's argument; arguments that have a default and
            no example have their default. None: nothing is known of shapes.
    """

    def __init__(self, known: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self.known = known
        self.shapes: Shapes | None = None
        self.computing = 0
        self.gone: set[fx.Node] = set()  # what forward has assigned to since
        self.sizes_taken = False  # by the network's code, as numbers

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        if self.known is None:
            return super().trace(root, concrete_args)
        self.shapes = Shapes(root)
        with _recorded_factories(self):
            return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self.shapes is not None and type(m) in MODULES:
            return False
        known = isinstance(m, (QuantizedLayer, QuantizedFunction, Quantizer)) or is_norm(m)
        known = known or any(is_library_module(m, kind) for kind in (LOOKUP, UNCHANGED))
        return known or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if self.computing:
            return forward(*args, **kwargs)
        if self.shapes is not None and type(m) in MODULES:
            forward = partial(MODULES[type(m)], m)
        out = super().call_module(m, forward, args, kwargs)
        if is_norm(m) and isinstance(getattr(m, "activation", None), nn.Module):
            return self.create_proxy("call_module", f"{self.path_of_module(m)}.activation", (out,), {})
        return out

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *more: Any, **options: Any) -> Any:
        """Record arguments of forward that have a default with it, so that `if mask is None` is decided."""
        if kind == "placeholder" and args and not isinstance(args[0], (tuple, list, dict)):  # fx takes structures apart
            if self.known is None or target not in self.known:
                return args[0]
            args = ()
        if self.shapes is not None and kind in ("call_function", "call_method"):
            whole = written_out(target, args, kwargs)
            if whole is not None:
                return whole(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *more, **options)

    def create_arg(self, a: Any) -> Any:
        return super().create_arg(a.as_subclass(Tensor) if isinstance(a, _Made) else a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record tensors that modules hold like parameters, so that operations on them with the batch's size are."""
        if self.computing:
            return attr_val
        found = super().getattr(attr, attr_val, parameter_proxy_cache)
        if self.shapes is None or not isinstance(found, Tensor):
            return found
        return self.held(found)

    def assigned(self, x: _Known, key: Any, y: Any) -> Any:
        """What x is once a part of it has been assigned: x without that part is not seen again."""
        if is_view(x.node):
            raise fx.proxy.TraceError(
                "forward assigns to a part of a tensor that is itself a part of another, or not its own"
            )
        gone = seen_by(x.node)
        new = assigned(_Known(x.node, self, x._value), key, y)
        self.gone |= gone
        return new

    def held(self, tensor: Tensor) -> Any:
        """What stands for a tensor that the network holds."""
        return self.proxy(self.create_arg(tensor))

    def proxy(self, node: fx.Node) -> Any:
        if self.gone.intersection(node.all_input_nodes):
            raise fx.proxy.TraceError("forward uses a part of a tensor after it has assigned to that tensor")
        if self.shapes is None:
            count = _number_of_parts(node)
            return super().proxy(node) if count is None else _Parts(node, self, count)
        value = self._value_of(node)
        if value is _UNKNOWN:
            return super().proxy(node)
        if isinstance(value, (bool, int, float)) and node.target in _ON_NUMBERS and not batch_of(value):
            return value  # of two sizes with the batch in them, or a comparison with one
        node.meta["value"] = value
        return _Known(node, self, value)

    def _value_of(self, node: fx.Node) -> Any:
        assert self.shapes is not None and self.known is not None
        if node.op == "placeholder":
            name = str(node.target)
            return self.shapes.input(self.known[name]) if name in self.known else _UNKNOWN
        if node.op == "output":
            return _UNKNOWN
        try:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._known_value)
        except KeyError:
            return _UNKNOWN
        self.computing += 1
        try:
            return self.shapes.call(node.op, node.target, args, kwargs)
        finally:
            self.computing -= 1

    def _known_value(self, node: fx.Node) -> Any:
        if "value" not in node.meta and node.op == "get_attr":  # a tensor among the arguments of a call
            assert self.shapes is not None
            node.meta["value"] = self.shapes.call("get_attr", node.target, (), {})
        return node.meta["value"]

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = obj.node.meta.get("value", _UNKNOWN)
        return bool(value) if isinstance(value, (bool, int, float)) else super().to_bool(obj)


def batch_of(value: Any) -> bool:
    """Whether a size or number has the batch as a factor."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value != 0 and value % BATCH == 0


class _Made(Tensor):
    """A tensor that forward makes of numbers: an ordinary one, until it is to have the size of the batch."""

    tracers: ClassVar[list[Tracer]] = []
    """Those at work, the innermost last."""


def _sized(name: str) -> Callable:
    plain = getattr(Tensor, name)

    def method(self: _Made, *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(size, fx.Proxy) for size in pytree.tree_leaves((args, kwargs))):
            return plain(self, *args, **kwargs)
        return getattr(_Made.tracers[-1].held(self), name)(*args, **kwargs)

    return method


for _name in ("expand", "repeat", "view", "reshape", "tile", "broadcast_to"):
    setattr(_Made, _name, _sized(_name))

_FACTORIES = ("arange", "zeros", "ones", "full", "linspace", "eye", "tensor")


@contextmanager
def _recorded_factories(tracer: Tracer) -> Iterator[None]:
    """Within: tensors that forward makes of numbers are held by the network, and what is done to them is recorded."""
    real = {name: getattr(torch, name) for name in _FACTORIES}

    def wrapped(function: Callable) -> Callable:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if tracer.computing:
                return function(*args, **kwargs)
            sizes = args[0] if args and isinstance(args[0], (tuple, list)) else args
            if not any(isinstance(size, fx.Proxy) for size in sizes):
                return function(*args, **kwargs).as_subclass(_Made)
            if function not in (real["zeros"], real["ones"], real["full"]):
                raise fx.proxy.TraceError(f"forward calls torch.{function.__name__} with the size of the batch")
            once = [1 if isinstance(size, fx.Proxy) else size for size in sizes]
            value = args[1:] if function is real["full"] else ()
            return tracer.held(function(once, *value, **kwargs)).expand(*sizes)

        return recorded

    try:
        for name, function in real.items():
            setattr(torch, name, wrapped(function))
        _Made.tracers.append(tracer)
        yield
    finally:
        _Made.tracers.pop()
        for name, function in real.items():
            setattr(torch, name, function)


_MADE_BY: dict[str, Callable[[Any], Any]] = {
    "shape": lambda x: x.size(),
    "mT": lambda x: x.transpose(-2, -1),
    "T": lambda x: x.permute(*reversed(range(x.ndim))),
}
"""Attributes of a tensor that are calls."""


class _Known(fx.Proxy):
    """Stands for a tensor whose shape is known, for a tuple of them, or for a number with the batch in it."""

    def __init__(self, node: fx.Node, tracer: Tracer, value: Any) -> None:
        super().__init__(node, tracer)
        self._value, self._tracer = value, tracer

    def __getattr__(self, k: str) -> Any:
        name, value = k, self.__dict__["_value"]
        if isinstance(value, Tensor) and name in ("dtype", "ndim", "is_cuda", "layout", "device", "is_sparse"):
            return getattr(value, name)
        if isinstance(value, Tensor) and name in _MADE_BY:
            return _MADE_BY[name](self)
        return super().__getattr__(name)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(self._value, (tuple, list)) and isinstance(key, slice):
            return tuple(self[place] for place in range(len(self))[key])
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        new = self._tracer.assigned(self, key, value)
        self.node, self._value = new.node, new._value

    def size(self, dim: int | None = None) -> Any:
        """Sizes as numbers; those with the batch in them as recorded calls."""
        if dim is not None:
            size = self._value.shape[dim]
            if batch_of(size):
                return self.tracer.create_proxy("call_method", "size", (self, dim), {})
            self._tracer.sizes_taken = True
            return size
        return _Sizes(self.size(axis) for axis in range(self._value.ndim))

    def dim(self) -> int:
        """The rank."""
        return self._value.ndim

    def numel(self) -> Any:
        """How many elements."""
        return _Sizes(self.size()).numel()

    def is_floating_point(self) -> bool:
        """Whether its numbers are floats."""
        return self._value.is_floating_point()

    def __len__(self) -> int:
        if isinstance(self._value, (tuple, list)):
            return len(self._value)
        return _certain(self.size(0), "a length, by len(), where x.shape[0] would do,")

    def __iter__(self) -> Iterator[Any]:
        return iter([self[place] for place in range(len(self))])

    def __int__(self) -> int:
        return int(_certain(self._value, "an integer"))

    def __index__(self) -> int:
        return int(_certain(self._value, "an index or a range"))

    def __float__(self) -> float:
        return float(_certain(self._value, "a number"))


class _Sizes(tuple):
    """Of a tensor, as torch.Size."""

    def numel(self) -> Any:
        """Their product."""
        product: Any = 1
        for size in self:
            product = size * product
        return product


def _certain(value: Any, what: str) -> Any:
    """A number that is the same for every batch. Raises TraceError for another, or for a tensor."""
    if isinstance(value, (fx.Proxy, Tensor)) or batch_of(value) or not isinstance(value, (int, float)):
        raise fx.proxy.TraceError(f"forward takes {what} that depends on the size of the batch, or on data")
    return value


class _Parts(fx.Proxy):
    """What chunk, or split into given sizes, gives.

    As many parts as are asked for, so that `list` and `for` can take them.
    """

    def __init__(self, node: fx.Node, tracer: Tracer, count: int) -> None:
        super().__init__(node, tracer)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[fx.Proxy]:
        return iter([self[place] for place in range(self._count)])


def _number_of_parts(node: fx.Node) -> int | None:
    """How many tensors a call of chunk or split gives, where it says so."""
    if node.op == "call_module" or node.target not in (torch.chunk, torch.split, "chunk", "split"):
        return None
    given = arguments(node, {})
    sizes = given.get("split_size_or_sections", given.get("split_size"))
    count = len(sizes) if isinstance(sizes, (tuple, list)) else given.get("chunks")
    return count if isinstance(count, int) else None
