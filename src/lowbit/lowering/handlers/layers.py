"""Layers, batch-norm and quantizers.

Folding batch-norm γ·(a − μ)/σ + β behind a layer with accumulator n, a = n·s_x·s_w + b, σ = sqrt(variance + ε):

    scale of output channel o     s_x·s_w·γ/σ        goes into the weight's scale, negative γ included
    integer bias                  rint((γ·(b − μ)/σ + β) / scale)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lowbit.integer.graph import FloatType, Node, Pads, TensorType
from lowbit.integer.ops import Convolution, Linear
from lowbit.layers.function import QuantizedFunction
from lowbit.layers.libraries import SamePadding
from lowbit.layers.quantized import QuantizedLayer
from lowbit.lowering import kinds as k
from lowbit.lowering.accumulators import weight_and_bias
from lowbit.lowering.codes import weight_codes
from lowbit.lowering.folding import IntegerNorm, as_layer, fold, fold_as_depthwise, outputs_first
from lowbit.lowering.handlers import moves, transposed
from lowbit.lowering.handlers.moves import reshape_to
from lowbit.lowering.handlers.padding import repeated
from lowbit.lowering.layouts import Layout
from lowbit.lowering.placement import folds_into
from lowbit.lowering.values import Codes, Computation, Move
from lowbit.quantizer.module import as_quantizer

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter


def quantizer(converter: Converter, node: fx.Node) -> Codes:
    """An inserted quantizer: where the tensor before it gets its grid."""
    value = converter.value(converter.input_of(node), node)
    codes = converter.on_grid(value, as_quantizer(converter.modules[str(node.target)]))
    converter.found(node, codes)
    return codes


def layer(converter: Converter, node: fx.Node) -> Computation:
    """A convolution or linear layer, with the batch-norm behind it."""
    follower = folds_into(node, converter.kinds)
    folded = follower is not None and converter.kinds[follower] is k.NORM
    module = converter.modules[str(node.target)]
    assert isinstance(module, QuantizedLayer)
    return _affine(converter, node, module, converter.modules[str(follower.target)] if folded else None)


def function(converter: Converter, node: fx.Node) -> Computation:
    """A convolution or linear layer whose weight forward makes of the network's parameters."""
    module = converter.modules[str(node.target)]
    assert isinstance(module, QuantizedFunction)
    weight, *bias = (converter.parameter(each, node) for each in node.args[1:])
    return _affine(converter, node, as_layer(module, weight, bias[0] if bias else None), None)


def norm(converter: Converter, node: fx.Node) -> Computation:
    """Batch-norm: the layer before it has it; behind anything else, a depthwise 1×1 convolution."""
    before, module = converter.input_of(node), converter.modules[str(node.target)]
    if folds_into(before, converter.kinds) is node:
        return converter.value(before, node)
    assert isinstance(module, IntegerNorm)
    x, features, back = converter.codes_at(before, node), converter.sample(node), []
    if converter.layout(before).folded > 1 and converter.layout(before).axis == 0:
        # The channels are to come first; what is folded into the batch is positions to them.
        order = (2, 1, *range(3, len(features) + 1))
        x = converter.moved(x, [moves.transposed(f"{node.name}_channels", order)])
        features = tuple(features[place - 1] for place in order)
        back.append(moves.transposed(f"{node.name}_back", order))
    else:
        converter.check_batch_first(node)
    alone = len(features) == 1  # without positions, of which a convolution needs some
    if alone:
        x = converter.moved(x, [reshape_to(f"{node.name}_positions", (*features, 1, 1))])
        back.append(reshape_to(node.name, features))
    source = module.folded_into[converter.arguments(node)["place"]]
    codes, _, scale, bias = (part.cpu() for part in fold_as_depthwise(torch.tensor(x.type.scale), source, module))
    ones = (1,) * (2 if alone else len(features) - 1)
    codes = codes.reshape(-1, 1, *ones)
    where, pads = converter.describe(node), tuple((0, 0) for _ in ones)

    def make(name: str, y: TensorType | FloatType) -> Node:
        weight, on_grid = weight_and_bias(where, codes, scale, 8, bias, x.type, y)
        return Convolution(
            name=name, inputs=(x.name,), type=y, weight=weight, bias=on_grid, stride=ones, padding=pads, dilation=ones,
            groups=len(codes),
        )  # fmt: skip

    return Computation(node.name, make, moves=tuple(back))


def _affine(converter: Converter, node: fx.Node, layer: QuantizedLayer, norm: nn.Module | None) -> Computation:
    """`layer`, with the batch-norm that it is given."""
    where = converter.describe(node)
    assert norm is None or isinstance(norm, _BatchNorm)
    weights, inputs = as_quantizer(layer.weight_quantizer), as_quantizer(layer.input_quantizer)
    x = converter.on_grid(converter.value(converter.input_of(node), node), inputs)
    converter.found(node, x, of_input=True)
    codes = outputs_first(layer, weight_codes(layer))
    gain, scale, bias = (part.cpu() for part in fold(inputs.step, layer, norm))
    codes[gain == 0] = 0  # a channel that batch-norm switches off is its bias alone
    if isinstance(layer, _ConvTransposeNd):
        return _transposed(converter, node, layer, x, (codes, scale, weights.bits, bias))
    copies = 1
    if isinstance(layer, _ConvNd):
        copies = _copies(converter, node, codes)
        if converter.layout(converter.input_of(node)) != Layout():
            shape = (
                copies * converter.shapes[converter.input_of(node)][1],
                *converter.shapes[converter.input_of(node)][2:],
            )
            x = converter.moved(x, [reshape_to(f"{node.name}_channels", shape)])
        codes, scale, bias = (torch.cat([each] * copies) for each in (codes, scale, bias))
    if isinstance(layer, _ConvNd) and layer.padding_mode != "zeros":
        amounts = layer._reversed_padding_repeated_twice
        shape = converter.shapes[converter.input_of(node)][1:]
        x = converter.moved(x, repeated(f"{node.name}_padded", shape, amounts, layer.padding_mode))
    how = _geometry(converter, node, layer, copies)
    kind = Linear if isinstance(layer, nn.Linear) else Convolution

    def make(name: str, y: TensorType | FloatType) -> Node:
        weight, on_grid = weight_and_bias(where, codes, scale, weights.bits, bias, x.type, y)
        return kind(name=name, inputs=(x.name,), type=y, weight=weight, bias=on_grid, **how)

    apart = isinstance(layer, _ConvNd) and converter.layout(node) != Layout()
    back = (reshape_to(node.name, converter.sample(node)),) if apart else ()
    return Computation(node.name, make, moves=back, may_be_float=True)


def _transposed(
    converter: Converter, node: fx.Node, layer: _ConvTransposeNd, x: Codes, weight: tuple[Tensor, Tensor, int, Tensor]
) -> Computation:
    """A transposed convolution: by phases, or over an input spread by zeros where its result leaves as floats."""
    converter.check_batch_first(node)
    (codes, scale, bits, bias), where = weight, converter.describe(node)
    before, after = converter.shapes[converter.input_of(node)], converter.shapes[node]
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    axes = [transposed.Axis(*each) for each in zip(before[2:], after[2:], *sizes)]
    leaves = _leaves(converter, node)
    ones = (1,) * len(axes)
    after_moves: list[Move] = []
    if leaves:
        spread, pads = transposed.spread(node.name, before[1:], axes)
        x, kernel, dilation = converter.moved(x, spread), transposed.reversed_kernel(codes), tuple(layer.dilation)
    else:
        (kernel, pads), dilation = transposed.phases(codes, axes), ones
        after_moves = transposed.interleaved(node.name, axes)
    repeats = len(kernel) // len(codes)
    scale, bias = (part.repeat_interleave(repeats) for part in (scale, bias))

    def make(name: str, y: TensorType | FloatType) -> Node:
        fitted, on_grid = weight_and_bias(where, kernel, scale, bits, bias, x.type, y)
        return Convolution(
            name=name, inputs=(x.name,), type=y, weight=fitted, bias=on_grid, stride=ones, padding=pads,
            dilation=dilation, groups=layer.groups,
        )  # fmt: skip

    return Computation(node.name, make, moves=tuple(after_moves), may_be_float=True)


def _leaves(converter: Converter, node: fx.Node) -> bool:
    """Whether a layer's result is nothing but an output of the network, which stays in full precision."""
    follower = folds_into(node, converter.kinds)
    end = follower if follower is not None and converter.kinds[follower] is k.NORM else node
    return all(converter.kinds[user] is k.OUTPUT for user in end.users)


def _geometry(converter: Converter, node: fx.Node, layer: QuantizedLayer, copies: int) -> dict[str, Any]:
    """The fields of the integer layer beside weight and bias."""
    if isinstance(layer, nn.Linear):
        converter.place(-1, node, node)
        return {}
    assert isinstance(layer, _ConvNd)
    return {
        "stride": tuple(layer.stride),
        "padding": _padding(layer, converter.shapes[converter.input_of(node)][2:]),
        "dilation": tuple(layer.dilation),
        "groups": layer.groups * copies,
    }


_WEIGHTS_MAX = 1 << 22


def _copies(converter: Converter, node: fx.Node, codes: Tensor) -> int:
    """How many convolutions with one weight a convolution is: one for each window that is folded into the batch.

    They are groups of one convolution. A constant has its windows, or samples, in its first dimension.
    """
    source = converter.input_of(node)
    layout = converter.layout(source)
    if layout.axis not in (0, None):
        converter.check_batch_first(node)  # refuses
    copies = layout.folded if layout.axis == 0 else converter.shapes[source][0]
    if copies > 1 and copies * codes.numel() > _WEIGHTS_MAX:
        raise converter.refusal(
            node,
            f" takes {copies} windows that are folded into the batch, and would be as many convolutions with more than "
            f"{_WEIGHTS_MAX:,} weights",
        )
    return copies


def _padding(layer: _ConvNd, sizes: Sequence[int]) -> Pads:
    """(before, after) per spatial dimension, for an input of these sizes."""
    if isinstance(layer, SamePadding):
        return layer.pads(sizes)
    if layer.padding == "valid" or layer.padding_mode != "zeros":  # other modes repeat positions before
        return tuple((0, 0) for _ in layer.kernel_size)
    if layer.padding == "same":  # torch puts the odd one behind
        totals = [d * (size - 1) for d, size in zip(layer.dilation, layer.kernel_size)]
        return tuple((total // 2, total - total // 2) for total in totals)
    assert not isinstance(layer.padding, str)
    return tuple((p, p) for p in layer.padding)


HANDLERS = {k.QUANTIZER: quantizer, k.LAYER: layer, k.FUNCTION: function, k.NORM: norm}
