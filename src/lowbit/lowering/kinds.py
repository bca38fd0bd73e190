"""The operations that have an integer form: one table of kinds, with every spelling of each.

What tracing keeps whole, where placement puts quantizers and which handler converts a node all follow from its kind. To
add an operation: its kind here, and its handler in `lowbit.lowering.handlers`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.layers.function import QuantizedFunction
from lowbit.layers.quantized import QuantizedLayer
from lowbit.layers.resize import weighted_resize
from lowbit.layers.saturating import reciprocal, root
from lowbit.lowering import sequences
from lowbit.lowering.calls import Modules, arguments, nodes_in
from lowbit.lowering.folding import IntegerNorm
from lowbit.lowering.functions import FUNCTIONS, LIBRARY_MODULES, METHODS, MODULES
from lowbit.lowering.kind import Kind
from lowbit.lowering.lacks import (
    lack_of_clamp,
    lack_of_norm,
    lack_of_one_tensor,
    lack_of_resizing,
    lack_of_two_tensors,
)
from lowbit.lowering.sequences import EMBEDDING, INDEX_INPUT, INDICES, MASK, REGRID, SUM_OF_PRODUCTS, WHOLE
from lowbit.lowering.sizes import SizeCheck
from lowbit.lowering.variation import Variation
from lowbit.lowering.whole import ShownSoftmax, WholeNumbers
from lowbit.quantizer.module import Quantizer

# A class's name says what it does only in the libraries that are meant.
_LIBRARIES = ("timm", "torchvision")


# What kind a call is by its arguments.


def _with_a_number(node: fx.Node, modules: Modules) -> Kind | None:
    """A sum, difference, product or quotient with a number is a function of one value."""
    given = arguments(node, modules)
    operands = [given.get("input"), given.get("other")]
    numbers = [x for x in operands if isinstance(x, (int, float))]
    return (
        LOOKUP if len(numbers) == 1 and len(nodes_in(operands)) == 1 and not _adds_nothing(node, numbers[0]) else None
    )


def _adds_nothing(node: fx.Node, number: float) -> bool:
    """0 + x, with which Python's sum() begins, and which `trace` leaves out."""
    return number == 0 and node.target in (*ADD.functions, *ADD.methods)


def _padding(node: fx.Node, modules: Modules) -> Kind | None:
    """Padding by what is there repeats positions; by what no maximum takes it belongs to the pool behind it."""
    given = arguments(node, modules)
    if given.get("mode", "constant") != "constant":
        return REPEATED_PAD
    return LOWEST_PAD if given.get("value") == -float("inf") else None


def _lack_of_lowest_pad(node: fx.Node, modules: Modules) -> str | None:
    pooled = all(user.op != "output" and is_max_pool_with_windows(user, modules) for user in node.users)
    return None if pooled else "padding by −∞ has one only right before a maximum pool with a kernel"


def _resizing(node: fx.Node, modules: Modules) -> Kind | None:
    """Of what kind a call of F.interpolate is, by its mode."""
    mode = arguments(node, modules).get("mode", "nearest")
    return LINEAR_RESIZE if "linear" in mode else AVERAGE if mode == "area" else None


# The table.

INPUT = Kind("input", computes=True)
OUTPUT = Kind("output")
QUANTIZER = Kind("quantizer", modules=(Quantizer,))
LAYER = Kind("layer", modules=(QuantizedLayer,), computes=True)
FUNCTION = Kind("function with a weight", modules=(QuantizedFunction,), computes=True, parameters=("weight", "bias"))
NORM = Kind(
    "norm",
    modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),  # with the plain forward: see `is_norm`
    library_modules=("BatchNormAct2d", "SyncBatchNormAct"),  # with an activation inside, which `trace` takes apart
    computes=True,
    lack=lack_of_norm,
)
CLAMP = Kind(
    "clamp",
    functions=(
        F.relu, torch.relu, torch.relu_, F.relu6, F.hardtanh, F.hardtanh_, torch.clamp, torch.clamp_, torch.clamp_min,
        torch.clamp_min_, torch.clamp_max, torch.clamp_max_, torch.clip, torch.clip_,
    ),
    methods=(
        "relu", "relu_", "clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max", "clamp_max_", "clip", "clip_",
    ),
    modules=(nn.ReLU, nn.ReLU6, nn.Hardtanh),
    computes=True,
    parameters=("min", "max"),
    lack=lack_of_clamp,
)  # fmt: skip
LOOKUP = Kind(
    "lookup",
    functions=(*FUNCTIONS, reciprocal, root),
    methods=METHODS,
    modules=MODULES,
    library_modules=LIBRARY_MODULES,
    computes=True,
    lack=lack_of_one_tensor,
)
PRELU = Kind("prelu", functions=(F.prelu,), methods=("prelu",), modules=(nn.PReLU,), computes=True,
             parameters=("weight",))  # fmt: skip
ADD = Kind(
    "add",
    functions=(operator.add, operator.iadd, torch.add),
    methods=("add", "add_"),
    computes=True,
    lack=lack_of_two_tensors,
    instead=_with_a_number,
)
SUBTRACT = Kind(
    "subtract",
    functions=(operator.sub, operator.isub, torch.sub, torch.subtract),
    methods=("sub", "sub_", "subtract", "subtract_"),
    computes=True,
    lack=lack_of_two_tensors,
    instead=_with_a_number,
)
MULTIPLY = Kind(
    "multiply",
    functions=(operator.mul, operator.imul, torch.mul, torch.multiply),
    methods=("mul", "mul_", "multiply", "multiply_"),
    computes=True,
    lack=lack_of_two_tensors,
    instead=_with_a_number,
)
MATMUL = Kind(
    "matrix product",
    functions=(torch.matmul, torch.bmm, operator.matmul),
    methods=("matmul", "bmm"),
    computes=True,
    lack=lack_of_two_tensors,
)
SOFTMAX = Kind(
    "softmax",
    functions=(F.softmax, torch.softmax),
    methods=("softmax",),
    modules=(nn.Softmax, ShownSoftmax),
    computes=True,
)
NORMALIZE = Kind(
    "normalize",
    functions=(F.layer_norm, F.group_norm, F.rms_norm, F.instance_norm, F.normalize),
    modules=(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    computes=True,
    parameters=("weight", "bias", "running_mean", "running_var"),
)
REDUCE = Kind("sum", functions=(torch.sum,), methods=("sum",), computes=True)
EXTREMUM = Kind("minimum", functions=(torch.amin,), methods=("amin",), moves_codes=True)
AVERAGE = Kind(
    "average",
    functions=(
        F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
        torch.mean,
    ),
    methods=("mean",),
    modules=(
        nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    ),
    computes=True,
)  # fmt: skip
CONCATENATE = Kind("concatenate", functions=(torch.cat, torch.concat, torch.concatenate), moves_codes=True)
STACK = Kind("stack", functions=(torch.stack,), moves_codes=True)
MAX_POOL = Kind(
    "max pool",
    functions=(
        F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
        torch.amax,
    ),
    methods=("amax",),
    modules=(
        nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    ),
    moves_codes=True,
)  # fmt: skip
UPSAMPLE = Kind(
    "upsample",
    functions=(F.interpolate,),
    modules=(nn.Upsample,),  # UpsamplingNearest2d is one
    moves_codes=True,
    lack=lack_of_resizing,
    instead=_resizing,
)
LINEAR_RESIZE = Kind("linear resize", functions=(weighted_resize,), computes=True, lack=lack_of_resizing)
SPLIT = Kind(
    "split",
    functions=(torch.chunk, torch.split, torch.tensor_split),
    methods=("chunk", "split", "tensor_split"),
    moves_codes=True,
)
UNBIND = Kind("unbind", functions=(torch.unbind,), methods=("unbind",), moves_codes=True)
SELECT = Kind(
    "select",
    functions=(torch.select, torch.narrow, torch.index_select, torch.roll, torch.flip, torch.repeat_interleave),
    methods=("select", "narrow", "index_select", "roll", "flip", "repeat_interleave", "repeat", "tile"),
    moves_codes=True,
    parameters=("index", "repeats"),
)
EXPAND = Kind("expand", functions=(torch.broadcast_to,), methods=("expand", "expand_as", "broadcast_to"),
              moves_codes=True, parameters=("other",))  # fmt: skip
INDEX = Kind("index", functions=(operator.getitem,), moves_codes=True, parameters=("other",))
PAD = Kind("pad", functions=(F.pad,), modules=(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
           moves_codes=True, instead=_padding)  # fmt: skip
REPEATED_PAD = Kind(
    "repeated pad",
    modules=tuple(getattr(nn, f"{how}Pad{n}d") for how in ("Reflection", "Replication", "Circular") for n in (1, 2, 3)),
    moves_codes=True,
)
LOWEST_PAD = Kind("lowest pad", moves_codes=True, lack=_lack_of_lowest_pad)
CHANNEL_SHUFFLE = Kind("channel shuffle", modules=(nn.ChannelShuffle,), moves_codes=True)
PIXEL_SHUFFLE = Kind("pixel shuffle", functions=(F.pixel_shuffle,), modules=(nn.PixelShuffle,), moves_codes=True)
PIXEL_UNSHUFFLE = Kind("unshuffle", functions=(F.pixel_unshuffle,), modules=(nn.PixelUnshuffle,), moves_codes=True)
TRANSPOSE = Kind(
    "transpose",
    functions=(torch.transpose, torch.permute, torch.swapaxes, torch.swapdims, torch.movedim, torch.moveaxis),
    methods=("transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "t"),
    moves_codes=True,
)
RESHAPE = Kind(
    "reshape",
    functions=(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten),
    methods=("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten", "view_as", "reshape_as"),
    modules=(nn.Flatten, nn.Unflatten),
    moves_codes=True,
    parameters=("other",),  # whose shape is taken
)
UNCHANGED = Kind(  # in evaluation
    "unchanged",
    methods=("contiguous", "clone", "detach"),
    modules=(Variation, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    library_modules=("DropPath", "DropBlock2d", "StochasticDepth"),
    moves_codes=True,
)
CONSTANT = Kind("constant", computes=True)  # of the network's own parameters and buffers alone
UNKNOWN = Kind("unknown", computes=True)  # what has no integer form
SHAPE = Kind(  # makes no tensor
    "shape",
    modules=(SizeCheck,),
    functions=(getattr, operator.floordiv, operator.mod, operator.eq, torch._assert),
    methods=("size", "dim"),
)

KINDS = (
    INPUT, OUTPUT, QUANTIZER, LAYER, FUNCTION, NORM, CLAMP, LOOKUP, PRELU, ADD, SUBTRACT, MULTIPLY, MATMUL, SOFTMAX,
    NORMALIZE, REDUCE, EXTREMUM, AVERAGE, CONCATENATE, STACK, MAX_POOL, UPSAMPLE, LINEAR_RESIZE, SPLIT, UNBIND,
    SELECT, EXPAND, INDEX, PAD, REPEATED_PAD, LOWEST_PAD, CHANNEL_SHUFFLE, PIXEL_SHUFFLE, PIXEL_UNSHUFFLE, TRANSPOSE,
    RESHAPE, UNCHANGED, CONSTANT, SHAPE, EMBEDDING, INDICES, MASK, SUM_OF_PRODUCTS, REGRID,
)  # fmt: skip

_BY_FUNCTION = {function: kind for kind in KINDS for function in kind.functions}
_BY_METHOD = {method: kind for kind in KINDS for method in kind.methods}

Kinds = Mapping[fx.Node, Kind]


def kinds_of(graph: fx.Graph, modules: Modules) -> dict[fx.Node, Kind | None]:
    """The kind of every node; None for operations of no kind, which have no integer form."""
    kinds: dict[fx.Node, Kind | None] = {}
    for node in graph.nodes:
        kind = _kind_of(node, modules, kinds)
        kinds[node] = None if kind is None else kind.instead(node, modules) or kind
    return kinds


def _kind_of(node: fx.Node, modules: Modules, kinds: Mapping[fx.Node, Kind | None]) -> Kind | None:
    if node.op == "placeholder":
        of_whole = any(isinstance(modules.get(str(user.target)), WholeNumbers) for user in node.users)
        return INDEX_INPUT if of_whole else INPUT
    if node.op == "output":
        return OUTPUT
    if node.op == "call_module":
        kind = kind_of_module(modules[str(node.target)])
        return CONSTANT if kind not in (LAYER, FUNCTION, QUANTIZER) and _is_constant(node, kinds) else kind
    of_shapes = bool(node.all_input_nodes) and all(kinds[operand] is SHAPE for operand in node.all_input_nodes)
    kind = _kind_of_call(node, of_shapes)
    if kind is not SHAPE and _is_constant(node, kinds):
        return CONSTANT
    return WHOLE if (kind in _OF_ELEMENTS or sequences.is_elementwise(node)) and _is_of_whole(node, kinds) else kind


_OF_ELEMENTS = (LOOKUP, ADD, SUBTRACT, MULTIPLY, CLAMP, MASK)


def _is_of_whole(node: fx.Node, kinds: Mapping[fx.Node, Kind | None]) -> bool:
    """Whether it is computed of inputs that are whole numbers, and of nothing else but constants and sizes."""
    of = [each for each in node.all_input_nodes if kinds[each] is not SHAPE]
    whole = [is_whole(each, kinds) for each in of]
    return any(whole) and all(each or kinds[tensor] is CONSTANT for each, tensor in zip(whole, of))


def is_whole(node: fx.Node, kinds: Mapping[fx.Node, Kind | None]) -> bool:
    """Whether a tensor is whole numbers that the network takes, or functions of their elements, in any place."""
    kind = kinds[node]
    return kind in (INDICES, WHOLE) or (kind is not None and kind.moves_codes and _is_of_whole(node, kinds))


def _kind_of_call(node: fx.Node, of_shapes: bool) -> Kind | None:
    if node.op == "call_function":
        # Python's own functions of numbers give numbers; torch's (torch.zeros) may give tensors.
        assert callable(node.target)
        numbers = of_shapes and node.target.__module__ in ("_operator", "builtins", "math")
        return SHAPE if numbers else _BY_FUNCTION.get(node.target)
    if of_shapes:
        return SHAPE
    return _BY_METHOD.get(str(node.target)) if node.op == "call_method" else None


_LIKE = (torch.zeros_like, torch.ones_like, torch.full_like, "new_zeros", "new_ones", "new_full")


def _is_constant(node: fx.Node, kinds: Mapping[fx.Node, Kind | None]) -> bool:
    """Whether it is computed of the network's own tensors alone, and of sizes."""
    if node.op == "get_attr" or node.target in _LIKE:
        return True
    of = [kinds[operand] for operand in node.all_input_nodes]
    return CONSTANT in of and all(kind in (CONSTANT, SHAPE) for kind in of)


def operands(node: fx.Node, kinds: Mapping[fx.Node, Kind | None]) -> list[fx.Node]:
    """The nodes whose tensors a node takes as tensors on a grid, without those whose shape alone it asks for."""
    kind = kinds.get(node)
    apart: list[fx.Node] = []
    if kind is WHOLE:  # exact, of constants as they are
        return []
    if kind is FUNCTION:
        apart = nodes_in(node.args[1:])
    elif kind is not None and kind.parameters and node.op != "call_module":
        given = arguments(node, {})
        apart = nodes_in([given.get(name) for name in kind.parameters])
    return [each for each in node.all_input_nodes if kinds.get(each) is not SHAPE and each not in apart]


def kind_of_module(module: nn.Module) -> Kind | None:
    """The kind of what a module computes."""
    if isinstance(module, _BatchNorm):
        return NORM if is_norm(module) else None
    return next((kind for kind in KINDS if isinstance(module, kind.modules) or is_library_module(module, kind)), None)


def is_max_pool_with_windows(node: fx.Node, modules: Modules) -> bool:
    """Whether a call is a maximum pool with a kernel: not an adaptive one, and not of a dimension."""
    function = node.target if callable(node.target) else None
    of_module = node.op == "call_module" and kind_of_module(modules[str(node.target)])
    kind = of_module or (function and _BY_FUNCTION.get(function))
    return kind is MAX_POOL and "kernel_size" in arguments(node, modules)


def is_norm(module: nn.Module) -> bool:
    """Whether it is a batch-norm that computes what torch's does: no subclass with a forward of its own."""
    plain = type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward, IntegerNorm.forward)
    return isinstance(module, NORM.modules) and (plain or is_library_module(module, NORM))


def is_library_module(module: nn.Module, kind: Kind) -> bool:
    """Whether timm or torchvision has it, and computes this kind with it."""
    cls = type(module)
    return cls.__name__ in kind.library_modules and cls.__module__.partition(".")[0] in _LIBRARIES
