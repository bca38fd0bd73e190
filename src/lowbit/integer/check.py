"""Whether a graph is an integer network: every rule of `ir`, checked before anything runs or is written."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.integer.ir import (
    OPERATIONS,
    Add,
    AveragePool,
    ChannelShuffle,
    Concatenate,
    Convolution,
    FloatType,
    GlobalAveragePool,
    Graph,
    Linear,
    Lookup,
    MaxPool,
    Multiply,
    Node,
    PadChannels,
    Quantize,
    Requantize,
    Reshape,
    Slice,
    TensorType,
    Weight,
)

ACCUMULATOR_MAX = 2**31 - 1
_FLOAT32_TINY = 2.0**-126  # smallest normal float32: below it, runtimes may flush to zero
_FLOAT32_MAX = float(torch.finfo(torch.float32).max)
_MULTIPLIER_MAX = 2.0**29  # so that the fixed form's shift is at least 1
_ELEMENTS_MAX = 2**31 - 1  # of one sample's tensor


def validate(graph: Graph, *, fractional_zero_points: bool = False) -> Graph:
    """The same graph with every type and shape filled in, after checking every rule.

    Checked: names, order, number and types of inputs; grids and scales; shapes; weight, bias and table codes; multipliers;
    and that no accumulator can overflow 32 bits, by the bound Σ|w| · max|x − z| + |bias| over the actual weights.

    fractional_zero_points: accept TensorType.zero_point that is no integer (for the QONNX writer).

    Raises LowbitError, naming the node.
    """
    known: dict[str, TensorType | FloatType] = {graph.input: FloatType(_checked_shape(graph.input_shape, graph.input))}
    nodes: list[Node] = []
    for node in graph.nodes:
        where = f"node {node.name!r}"
        if type(node).__name__ not in OPERATIONS or type(node) is not OPERATIONS[type(node).__name__]:
            raise LowbitError(f"{where}: {type(node).__name__} is not an operation of an integer network")
        if not isinstance(node.name, str) or not node.name or ":" in node.name:
            raise LowbitError(f"{where}: a name is a string that is not empty and has no colon in it")
        if node.name in known:
            raise LowbitError(f"{where}: the name is used twice; names of nodes and of the input must differ")
        for name in node.inputs:
            if name not in known:
                raise LowbitError(f"{where}: its input {name!r} is made by no earlier node")
        if (node.arity is None and len(node.inputs) < 2) or (node.arity is not None and len(node.inputs) != node.arity):
            raise LowbitError(f"{where}: {type(node).__name__} has {len(node.inputs)} inputs")
        inputs = [known[name] for name in node.inputs]
        node = _checked(node, inputs, where, graph, fractional_zero_points)
        known[node.name] = node.type
        nodes.append(node)
    if graph.output not in known or graph.output == graph.input:
        raise LowbitError(f"the graph's output {graph.output!r} is made by no node")
    return replace(graph, nodes=tuple(nodes))


def accumulator_bound(node: Node, x: TensorType) -> int:
    """The largest magnitude any partial sum of the node's accumulator can reach, over every input on x's grid."""
    reach = math.ceil(max(abs(x.qn - x.zero_point), abs(x.qp - x.zero_point)))
    if isinstance(node, Convolution | Linear):
        sums = node.weight.codes.to(torch.int64).abs().flatten(1).sum(1) * reach
        if node.bias is not None:
            sums = sums + node.bias.to(torch.int64).abs()
        return int(sums.max())
    if isinstance(node, AveragePool):
        return math.prod(node.kernel) * reach
    if isinstance(node, GlobalAveragePool):
        return math.prod(x.shape[1:]) * reach
    return reach


def _checked(node: Node, inputs: list, where: str, graph: Graph, fractional: bool) -> Node:
    if isinstance(node, Quantize):
        if node.inputs != (graph.input,):
            raise LowbitError(
                f"{where}: Quantize takes the graph's float input {graph.input!r}, not {node.inputs[0]!r}"
            )
    elif not all(isinstance(kind, TensorType) for kind in inputs):
        raise LowbitError(f"{where}: its inputs must be codes, not floats: quantize the input first")
    kind = node.type
    if node.moves_codes:
        if len({x.grid for x in inputs}) > 1:
            raise LowbitError(f"{where}: its inputs lie on different grids; put a Requantize before it")
        if kind is not None and not (isinstance(kind, TensorType) and kind.grid == inputs[0].grid):
            raise LowbitError(f"{where}: {type(node).__name__} moves codes, so its type must be that of its input")
        kind = replace(inputs[0], shape=None) if kind is None else kind
    if isinstance(kind, FloatType):
        if node.name != graph.output or not isinstance(node, Convolution | Linear):
            raise LowbitError(
                f"{where}: only a convolution or linear layer at the network's end may have a float output"
            )
    elif isinstance(kind, TensorType):
        _check_grid(kind, where, fractional)
    else:
        raise LowbitError(f"{where}: has no type; give it the grid of its output")
    if isinstance(node, Convolution | Linear):
        _check_weight(node.weight, where)
        _check_bias(node.bias, node.weight, where)
    if isinstance(node, Lookup):
        _check_table(node.table, inputs[0], kind, where)
    if isinstance(node, PadChannels) and not inputs[0].qn <= inputs[0].zero_point <= inputs[0].qp:
        raise LowbitError(f"{where}: pads with the zero point {inputs[0].zero_point}, which is not a code of its grid")
    shape = _checked_shape(_shape(node, [x.shape for x in inputs], where), where)
    if kind.shape is not None and tuple(kind.shape) != shape:
        raise LowbitError(f"{where}: its type says shape {tuple(kind.shape)}, its inputs make it {shape}")
    if not isinstance(node, Quantize):
        bound = accumulator_bound(node, inputs[0])
        if bound > ACCUMULATOR_MAX:
            raise LowbitError(
                f"{where}: its accumulator can reach {bound}, more than 32 bits hold ({ACCUMULATOR_MAX}); "
                "give the layer fewer bits or fewer inputs per output"
            )
        largest = _FLOAT32_MAX if isinstance(kind, FloatType) else _MULTIPLIER_MAX
        for multiplier in multipliers(node, inputs, kind):
            size = multiplier.abs()
            if not (bool((size >= _FLOAT32_TINY).all()) and bool((size <= largest).all())):
                raise LowbitError(
                    f"{where}: the ratio of its accumulator's scale to its output's scale is {float(size.max()):g}, "
                    f"outside {_FLOAT32_TINY:g} .. {largest:g}; calibrate the network again"
                )
    return replace(node, type=replace(kind, shape=shape))


def multipliers(node: Node, inputs: list[TensorType], kind: TensorType | FloatType) -> list[Tensor]:
    """The node's real multipliers M (output steps per unit of its accumulator) in float64: none, one, or two for Add.

    For a float output, the accumulator's scale itself.
    """
    y = kind.scale if isinstance(kind, TensorType) else 1.0
    x = inputs[0].scale
    if isinstance(node, Convolution | Linear):
        return [x * node.weight.scale.to(torch.float64) / y]
    if isinstance(node, Add):
        return [torch.tensor(each.scale / y, dtype=torch.float64) for each in inputs]
    if isinstance(node, Multiply):
        return [torch.tensor(x * inputs[1].scale / y, dtype=torch.float64)]
    if isinstance(node, AveragePool):
        return [torch.tensor(x / (math.prod(node.kernel) * y), dtype=torch.float64)]
    if isinstance(node, GlobalAveragePool):
        return [torch.tensor(x / (math.prod(inputs[0].shape[1:]) * y), dtype=torch.float64)]
    if isinstance(node, Requantize):
        return [torch.tensor(x / y, dtype=torch.float64)]
    return []


def _check_grid(kind: TensorType, where: str, fractional: bool) -> None:
    if type(kind.bits) is not int or not (2 if kind.signed else 1) <= kind.bits <= 8:
        raise LowbitError(f"{where}: {kind.bits} bits; codes have 1 to 8 bits, signed ones 2 to 8")
    if kind.narrow and not kind.signed:
        raise LowbitError(f"{where}: narrow is for signed grids")
    scale = kind.scale
    if not isinstance(scale, float) or not math.isfinite(scale) or not _FLOAT32_TINY <= scale <= _FLOAT32_MAX:
        raise LowbitError(f"{where}: scale {scale}; a scale is finite and greater than 0: calibrate the network again")
    if float(torch.tensor(scale, dtype=torch.float32)) != scale:
        raise LowbitError(f"{where}: scale {scale!r} is not a float32 value; round it to float32 first")
    zero = kind.zero_point
    if not isinstance(zero, int | float) or not math.isfinite(zero):
        raise LowbitError(f"{where}: zero point {zero!r} is no number")
    if not fractional and type(zero) is not int:
        raise LowbitError(f"{where}: zero point {zero!r} is not an integer; snap the offset before conversion")
    if not 0 <= zero + kind.carrier_offset <= 255:
        raise LowbitError(
            f"{where}: zero point {zero} with {kind.bits} bits does not fit the byte that carries the codes"
        )


def _check_weight(weight: Weight, where: str) -> None:
    codes, scale = weight.codes, weight.scale
    if type(weight.bits) is not int or not 1 <= weight.bits <= 8:
        raise LowbitError(f"{where}: weights of {weight.bits} bits; there are 1 to 8")
    if codes.dtype != torch.int8 or codes.ndim < 2 or codes.numel() == 0:
        raise LowbitError(
            f"{where}: weight codes must be int8 of shape (out, in, …), not {codes.dtype} {tuple(codes.shape)}"
        )
    low, high = int(codes.min()), int(codes.max())
    if weight.bits == 1:
        if bool((codes.abs() != 1).any()):
            raise LowbitError(f"{where}: 1-bit weight codes are -1 and +1")
    elif low < -(1 << (weight.bits - 1)) or high > (1 << (weight.bits - 1)) - 1:
        raise LowbitError(f"{where}: weight codes {low} .. {high} do not fit {weight.bits} bits")
    if scale.dtype != torch.float32 or scale.shape not in ((), codes.shape[:1]):
        raise LowbitError(
            f"{where}: weight scale must be float32, one value or one per output channel, not {scale.dtype} {tuple(scale.shape)}"
        )
    if not bool(torch.isfinite(scale).all()) or bool((scale.abs() < _FLOAT32_TINY).any()):
        raise LowbitError(f"{where}: a weight scale is 0 or not finite: calibrate the network again")


def _check_bias(bias: Tensor | None, weight: Weight, where: str) -> None:
    if bias is not None and (bias.dtype != torch.int32 or bias.shape != weight.codes.shape[:1]):
        raise LowbitError(f"{where}: bias must be int32, one per output channel, not {bias.dtype} {tuple(bias.shape)}")


def _check_table(table: Tensor, x: TensorType, y: TensorType, where: str) -> None:
    if table.dtype != torch.int16 or table.shape != (x.qp - x.qn + 1,):
        raise LowbitError(
            f"{where}: the table must be int16 with {x.qp - x.qn + 1} entries, not {table.dtype} {tuple(table.shape)}"
        )
    if int(table.min()) < y.qn or int(table.max()) > y.qp:
        raise LowbitError(
            f"{where}: table entries {int(table.min())} .. {int(table.max())} are not codes of its output"
        )


def _checked_shape(shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    shape = tuple(shape)
    if not shape or not all(type(size) is int and size >= 1 for size in shape) or math.prod(shape) > _ELEMENTS_MAX:
        raise LowbitError(f"{where}: shape {shape} of a sample is empty, not made of whole numbers, or too large")
    return shape


def _window_shape(
    space: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    where: str,
) -> tuple[int, ...]:
    if not len(space) == len(kernel) == len(stride) == len(padding) == len(dilation) or not 1 <= len(space) <= 3:
        raise LowbitError(f"{where}: kernel, stride, padding and dilation must have {len(space)} entries each, 1 to 3")
    if min(*kernel, *stride, *dilation, 1) < 1 or any(len(pair) != 2 or min(pair) < 0 for pair in padding):
        raise LowbitError(f"{where}: kernel, stride and dilation must be at least 1, padding at least 0")
    return tuple(
        (size + before + after - d * (k - 1) - 1) // s + 1
        for size, k, s, (before, after), d in zip(space, kernel, stride, padding, dilation)
    )


def _shape(node: Node, shapes: list[tuple[int, ...]], where: str) -> tuple[int, ...]:
    """Shape of the node's tensor without the batch."""
    x = shapes[0]
    if isinstance(node, Convolution):
        codes, groups = node.weight.codes, node.groups
        if len(x) != codes.ndim - 1:
            raise LowbitError(f"{where}: weight {tuple(codes.shape)} does not fit an input of shape {x}")
        if groups < 1 or codes.shape[0] % groups or x[0] != codes.shape[1] * groups:
            raise LowbitError(
                f"{where}: weight {tuple(codes.shape)} in {groups} groups does not fit {x[0]} input channels"
            )
        kernel = tuple(codes.shape[2:])
        return (codes.shape[0], *_window_shape(x[1:], kernel, node.stride, node.padding, node.dilation, where))
    if isinstance(node, Linear):
        if node.weight.codes.ndim != 2 or x != (node.weight.codes.shape[1],):
            raise LowbitError(f"{where}: weight {tuple(node.weight.codes.shape)} does not fit an input of shape {x}")
        return (node.weight.codes.shape[0],)
    if isinstance(node, Add | Multiply):
        if shapes[1] not in (x, (x[0],) + (1,) * (len(x) - 1)):
            raise LowbitError(f"{where}: inputs of shapes {x} and {shapes[1]}; the second is equal or (channels, 1, …)")
        return x
    if isinstance(node, Concatenate):
        if len({shape[1:] for shape in shapes}) > 1:
            raise LowbitError(f"{where}: inputs of shapes {shapes} differ in more than channels")
        return (sum(shape[0] for shape in shapes), *x[1:])
    if isinstance(node, MaxPool):
        if any(max(pair) >= (k - 1) * d + 1 for pair, k, d in zip(node.padding, node.kernel, node.dilation)):
            raise LowbitError(f"{where}: padding {node.padding} reaches windows with no element in them")
        return (x[0], *_window_shape(x[1:], node.kernel, node.stride, node.padding, node.dilation, where))
    if isinstance(node, AveragePool):
        return (x[0], *_window_shape(x[1:], node.kernel, node.stride, node.padding, (1,) * len(node.kernel), where))
    if isinstance(node, GlobalAveragePool):
        if len(x) < 2:
            raise LowbitError(f"{where}: input of shape {x} has no positions to average over")
        return (x[0],) + (1,) * (len(x) - 1)
    if isinstance(node, Reshape):
        return _reshaped(x, node.shape, where)
    if isinstance(node, Slice):
        if not 1 <= node.axis <= len(x) or not 0 <= node.start < node.stop <= x[node.axis - 1] or node.step < 1:
            raise LowbitError(
                f"{where}: slice {node.start}:{node.stop}:{node.step} of axis {node.axis} leaves shape {x}"
            )
        size = -(-(node.stop - node.start) // node.step)
        return (*x[: node.axis - 1], size, *x[node.axis :])
    if isinstance(node, PadChannels):
        if node.before < 0 or node.after < 0:
            raise LowbitError(f"{where}: {node.before} and {node.after} channels of padding; there are 0 or more")
        return (x[0] + node.before + node.after, *x[1:])
    if isinstance(node, ChannelShuffle) and (node.groups < 1 or x[0] % node.groups):
        raise LowbitError(f"{where}: {x[0]} channels do not divide into {node.groups} groups")
    return x


def _reshaped(x: tuple[int, ...], shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    count = math.prod(x)
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) > 1 or known < 1 or count % known or (-1 not in shape and count != known):
        raise LowbitError(f"{where}: shape {x} does not reshape to {shape}")
    return tuple(count // known if size == -1 else size for size in shape)
