"""How every operation becomes a layer of hls4ml: its attributes, and the types of its numbers.

hls4ml's positions come before the channels; a tensor that was flattened has its elements in that order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.formats.hls4ml.fixed import exponent, holding, of_codes
from lowbit.formats.registry import Lowerings
from lowbit.integer.arithmetic import mantissa_and_shift
from lowbit.integer.graph import FloatType, Graph, Node, Shape, TensorType, known_shape, reach
from lowbit.integer.ops import (
    Add,
    AveragePool,
    Convolution,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Quantize,
    Requantize,
    Reshape,
)
from lowbit.integer.ops.layer import Layer

LOWERINGS = Lowerings("hls4ml")
_DIMENSIONS = {1: ("width",), 2: ("height", "width")}
_SIDES = {"height": ("top", "bottom"), "width": ("left", "right")}
_LATENCY_WEIGHTS = 4096
"""Weights of a layer beyond which it is not unrolled whole: hls4ml's own limit for its strategy "Latency"."""


@dataclass
class Project:
    """The layers of a network for hls4ml, filled in node by node.

    Attributes:
        layers: hls4ml's description of each, in order.
        settings: by layer, the types of its numbers and how it is built.
        flattened: the shape, channels first, that the elements of a flattened tensor come from, by its node.
    """

    graph: Graph
    layers: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    flattened: dict[str, Shape] = field(default_factory=dict)

    def add(self, node: Node, kind: str, precision: dict[str, str], **attributes: Any) -> None:
        """Add a layer for a node."""
        inputs = [] if isinstance(node, Quantize) else [layer_name(name) for name in node.inputs]
        name = layer_name(node.name)
        self.layers.append({"class_name": kind, "name": name, "inputs": inputs, "outputs": [name], **attributes})
        self.settings[name] = {"Precision": precision, "Trace": True}

    def strategy(self, node: Node, weights: int) -> None:
        """Set how a layer with weights is built."""
        strategy = "Latency" if weights <= _LATENCY_WEIGHTS else "Resource"
        self.settings[layer_name(node.name)] |= {"Strategy": strategy, "ReuseFactor": 1}


def layer_name(name: str) -> str:
    """A node's name as an identifier of C++."""
    return "n_" + "".join(character if character.isascii() and character.isalnum() else "_" for character in name)


def project(graph: Graph) -> Project:
    """The layers of a validated graph. Raises LowbitError, naming the node, for what hls4ml can't hold."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise LowbitError(
            "hls4ml's files are of networks with one input and one output, not "
            f"{len(graph.inputs)} and {len(graph.outputs)}"
        )
    names = [layer_name(node.name) for node in graph.nodes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LowbitError(f"two nodes would have the name {twice!r} in C++: give the modules other names")
    made = Project(graph)
    for node in graph.nodes:
        write_node = LOWERINGS.of(node)
        for name in node.inputs:
            if name in made.flattened and not isinstance(node, Linear):
                raise _refusal(
                    node, f"takes {name!r}, whose channels and positions are flattened; only a linear layer can"
                )
        write_node(made, node)
    return made


def channels_last(shape: Shape) -> list[int]:
    """A shape with its channels behind its positions."""
    return [*shape[1:], shape[0]]


def _refusal(node: Node, what: str) -> LowbitError:
    return LowbitError(f"node {node.name!r} ({type(node).__name__}) {what} in hls4ml")


def _result(node: Node) -> str:
    return of_codes(node.name, node.codes_of())


@LOWERINGS(Quantize)
def _input(made: Project, node: Quantize) -> None:
    made.add(node, "InputLayer", {"result": _result(node)}, input_shape=channels_last(node.shape_of()))


@LOWERINGS(Linear)
def _linear(made: Project, node: Linear) -> None:
    shape, codes = node.shape_of(), node.weight.codes
    if len(shape) != 1:
        raise _refusal(node, "is a linear layer over leading dimensions, which has no form")
    if node.inputs[0] in made.flattened:
        codes = codes[:, _order(made.flattened[node.inputs[0]])]
    weights, precision, bias = _numbers(made, node, codes)
    made.add(
        node,
        "Dense",
        precision,
        weight_data=weights.T.contiguous().numpy(),
        n_in=codes.shape[1],
        n_out=codes.shape[0],
        **bias,
    )
    made.strategy(node, codes.numel())


@LOWERINGS(Convolution)
def _convolution(made: Project, node: Convolution) -> None:
    (kind,), codes = made.graph.input_types(node), node.weight.codes
    dimensions = codes.ndim - 2
    if dimensions not in _DIMENSIONS or any(d != 1 for d in node.dilation):
        raise _refusal(
            node, f"is a convolution in {dimensions} dimensions with dilation {node.dilation}, which has no form"
        )
    channels = known_shape(kind)[0]
    depthwise = node.groups > 1
    if depthwise and not node.groups == channels == len(codes):
        raise _refusal(
            node, f"has {node.groups} groups of channels, which has no form but where each is convolved by itself"
        )
    weights, precision, bias = _numbers(made, node, codes)
    data = "depthwise_data" if depthwise else "weight_data"
    # (out, in, *kernel) becomes (*kernel, in, out).
    order = (*range(2, codes.ndim), 0, 1) if depthwise else (*range(2, codes.ndim), 1, 0)
    made.add(
        node, f"{'Depthwise' * depthwise}Conv{dimensions}D", precision, n_chan=channels, n_filt=len(codes),
        **{data: weights.permute(order).contiguous().numpy()}, **({"depth_multiplier": 1} if depthwise else {}), **bias,
        **_windows(node, kind, tuple(codes.shape[2:]), "filt"),
    )  # fmt: skip
    made.strategy(node, codes.numel())


def _windows(node: Any, kind: TensorType, kernel: Sequence[int], what: str) -> dict[str, Any]:
    """The attributes that say where windows lie, of a node with stride and padding."""
    names = _DIMENSIONS[len(kernel)]
    found: dict[str, Any] = {"data_format": "channels_last"}
    for axis, name in enumerate(names):
        found |= {f"in_{name}": known_shape(kind)[1 + axis], f"out_{name}": node.shape_of()[1 + axis]}
        found |= {f"{what}_{name}": kernel[axis], f"stride_{name}": node.stride[axis]}
        found |= {f"pad_{side}": amount for side, amount in zip(_SIDES[name], node.padding[axis])}
    padded = any(amount for pair in node.padding for amount in pair)
    return found | {"padding": "same" if padded else "valid"}


def _numbers(made: Project, node: Layer, codes: Tensor) -> tuple[Tensor, dict[str, str], dict[str, Any]]:
    """Real weights, laid out as `codes`; types of weights, bias, accumulator and result; and the bias's attributes."""
    (kind,) = made.graph.input_types(node)
    scale = node.weight.scale.double().reshape(-1)
    last = min(exponent(float(each), f"node {node.name!r}: a scale of its weight") for each in scale)
    below = last + exponent(kind.scale, f"node {node.name!r}: the step of its input")
    weights = codes.double() * scale.reshape(-1, *[1] * (codes.ndim - 1))
    bias = (
        torch.zeros(len(codes), dtype=torch.float64) if node.bias is None else node.bias.double() * scale * kind.scale
    )
    sums = weights.abs().flatten(1).sum(1) * reach(kind) * kind.scale + bias.abs()
    accumulator = holding(float(sums.max()), below)
    precision = {
        "weight": holding(float(weights.abs().max()), last),
        "bias": holding(float(bias.abs().max()), below),
        "accum": accumulator,
        "result": accumulator if isinstance(node.type, FloatType) else _result(node),
    }
    quantizers = {"weight_quantizer": None, "bias_quantizer": None, "depthwise_quantizer": None}
    return weights, precision, {"bias_data": bias.numpy(), "use_bias": True, **quantizers}


@LOWERINGS(Add)
def _add(made: Project, node: Add) -> None:
    a, b = made.graph.input_types(node)
    if a.shape != b.shape:
        raise _refusal(node, f"adds tensors of the shapes {a.shape} and {b.shape}, which has no form")
    made.add(node, "Merge", {"result": _result(node)}, op="add")


@LOWERINGS(Requantize)
def _requantize(made: Project, node: Requantize) -> None:
    made.add(node, "Activation", {"result": _result(node)}, activation="linear", n_in=math.prod(node.shape_of()))


@LOWERINGS(MaxPool)
def _max_pool(made: Project, node: MaxPool) -> None:
    (kind,) = made.graph.input_types(node)
    if any(d != 1 for d in node.dilation):
        raise _refusal(node, f"has the dilation {node.dilation}, which has no form")
    _pool(made, node, kind, "Max", _result(node))


@LOWERINGS(AveragePool)
def _average_pool(made: Project, node: AveragePool) -> None:
    (kind,), count = made.graph.input_types(node), math.prod(node.kernel)
    if count & (count - 1):
        return _average_as_product(made, node, kind, node.kernel, _windows(node, kind, node.kernel, "filt"))
    _pool(made, node, kind, "Average", _sum_type(node, kind, count))


def _pool(made: Project, node: AveragePool | MaxPool, kind: TensorType, function: str, accumulator: str) -> None:
    if len(node.kernel) not in _DIMENSIONS or any(amount for pair in node.padding for amount in pair):
        raise _refusal(node, f"pools in {len(node.kernel)} dimensions with padding {node.padding}, which has no form")
    made.add(
        node, f"{function}Pooling{len(node.kernel)}D", {"result": _result(node), "accum": accumulator}, count_pad=False,
        n_filt=known_shape(kind)[0], pool_op=function, **_windows(node, kind, node.kernel, "pool"),
    )  # fmt: skip


@LOWERINGS(GlobalAveragePool)
def _global_average_pool(made: Project, node: GlobalAveragePool) -> None:
    (kind,) = made.graph.input_types(node)
    channels, *positions = known_shape(kind)
    if len(positions) not in _DIMENSIONS:
        raise _refusal(node, f"averages over {len(positions)} dimensions, which has no form")
    sizes = {f"in_{name}": size for name, size in zip(_DIMENSIONS[len(positions)], positions)}
    if len(positions) == 1:
        sizes = {"n_in": positions[0]}
    count = math.prod(positions)
    if count & (count - 1):
        where: dict[str, Any] = {"data_format": "channels_last", "padding": "valid"}
        for name, size in zip(_DIMENSIONS[len(positions)], positions):
            where |= {f"in_{name}": size, f"out_{name}": 1, f"filt_{name}": size, f"stride_{name}": 1}
            where |= {f"pad_{side}": 0 for side in _SIDES[name]}
        return _average_as_product(made, node, kind, positions, where)
    precision = {"result": _result(node), "accum": _sum_type(node, kind, count)}
    made.add(
        node, f"GlobalAveragePooling{len(positions)}D", precision, n_filt=channels, pool_op="Average",
        data_format="channels_last", **sizes,
    )  # fmt: skip


def _average_as_product(
    made: Project, node: AveragePool | GlobalAveragePool, kind: TensorType, kernel: Sequence[int], where: dict[str, Any]
) -> None:
    """An average over a number of positions that is no power of two, as a convolution of each channel by itself.

    All its weights are the multiplier of the rounding "fixed", 31 bits, and its sums are rounded as there, halves away
    from zero.
    """
    y, (multiplier,) = node.codes_of(), node.multipliers([kind])
    mantissa, shift = (int(each) for each in mantissa_and_shift(multiplier.exact))
    steps = [exponent(each.scale, f"node {node.name!r}: a step") for each in (kind, y)]
    weight, channels = math.ldexp(mantissa, steps[1] - steps[0] - shift), known_shape(kind)[0]
    last = steps[1] - shift
    precision = {
        "weight": holding(weight, steps[1] - steps[0] - shift),
        "bias": holding(0.0, last),
        "accum": holding(math.prod(kernel) * reach(kind) * kind.scale * weight, last),
        "result": _result(node).replace("RND_CONV", "RND_INF"),
    }
    data = np.full((*kernel, channels, 1), weight)
    made.add(
        node, f"DepthwiseConv{len(kernel)}D", precision, n_chan=channels, n_filt=channels, depthwise_data=data,
        depth_multiplier=1,
        bias_data=np.zeros(channels), use_bias=True, depthwise_quantizer=None, bias_quantizer=None, **where,
    )  # fmt: skip
    made.strategy(node, data.size)


def _sum_type(node: Node, kind: TensorType, count: int) -> str:
    """For the sum of 2^n codes, and for that divided by them: the division cuts nothing off."""
    step = exponent(kind.scale, f"node {node.name!r}: the step of its input")
    last = step - count.bit_length() + 1
    return holding(count * reach(kind) * kind.scale, last, signed=kind.signed)


@LOWERINGS(Reshape)
def _reshape(made: Project, node: Reshape) -> None:
    (kind,) = made.graph.input_types(node)
    before, after = known_shape(kind), node.shape_of()
    if len(after) != 1:
        raise _refusal(node, f"gives {before} the shape {after}, which has no form: it can flatten alone")
    if sum(size > 1 for size in before) > 1 and before[0] > 1:
        made.flattened[node.name] = before
    made.add(node, "Reshape", {"result": _result(node)}, target_shape=list(after))


def _order(shape: Shape) -> Tensor:
    """The place, channels first, of every element of a tensor that was flattened with its channels last."""
    return torch.arange(math.prod(shape)).reshape(shape).movedim(0, -1).reshape(-1)
