"""What the bits of a network's tensors cost."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowbit.qat.calibrate as calibration
from lowbit.allocation.program import Bits, Cost, Sum
from lowbit.allocation.sensitivity import Side
from lowbit.deployment import to_integer
from lowbit.errors import LowbitError
from lowbit.integer.graph import Graph, TensorType
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops.reshape import Reshape
from lowbit.layers.attention import QuantizedAttention
from lowbit.layers.quantized import QuantizedLayer
from lowbit.qat.summary import layer_table
from lowbit.quantizer.module import Quantizer


def weight_sizes(sides: Sequence[Side]) -> dict[str, int]:
    """Elements of each side that is a weight."""
    found = {}
    for side in sides:
        data = side.members[0].data
        if isinstance(data, Tensor):
            found[side.name] = data.numel()
    return found


def of_weights(sides: Sequence[Side]) -> dict[str, Cost]:
    """The costs "weights" and "average_bits"."""
    sizes, choices = weight_sizes(sides), {side.name: side.choices for side in sides}
    count = sum(sizes.values())
    packed = {name: {bits: float(-(-size * bits // 8)) for bits in choices[name]} for name, size in sizes.items()}
    mean = {name: {bits: size * bits / count for bits in choices[name]} for name, size in sizes.items()}
    return {
        "weights": Cost("weights", (Sum(0.0, packed, {}),)),
        "average_bits": Cost("average_bits", (Sum(0.0, mean, {}),)),
    }


def of_operations(model: nn.Module, sides: Sequence[Side], example: Any) -> Cost:
    """The cost "bit_operations", of one sample.

    Raises:
        LowbitError: the network takes more than one tensor.
    """
    if not isinstance(example, Tensor):
        raise LowbitError("a budget of bit operations is for networks that take one tensor: limit weights or the file")
    weights = {layer: side for side in sides if side.name.startswith("weight") for layer in side.layers}
    inputs = {layer: side for side in sides if side.name.startswith("input") for layer in side.layers}
    single: dict[str, dict[int, float]] = {}
    products: dict[tuple[str, str], float] = {}
    constant = 0.0

    def add(side: Side, factor: float, power: int = 1) -> None:
        amounts = single.setdefault(side.name, dict.fromkeys(side.choices, 0.0))
        for bits in side.choices:
            amounts[bits] += factor * bits**power

    for row in layer_table(model, example[:1]):
        if row.macs is None:
            continue
        name = row.name.partition(" ")[0]
        w, x = weights.get(name), inputs.get(name)
        if row.kind == "MatMul" and x is not None:  # of an attention, whose operands have one width
            add(x, row.macs, 2)
        elif w is not None and x is not None:
            products[w.name, x.name] = products.get((w.name, x.name), 0.0) + row.macs
        elif w is not None or x is not None:
            add(w or x, row.macs * 32.0)  # pyrefly: ignore[bad-argument-type]  # one of the two is a side
        else:
            constant += float(row.bit_operations or 0)
    return Cost("bit_operations", (Sum(constant, single, products),))


def integer_network(prepared: nn.Module, batches: Sequence[Any], example: Any) -> IntegerNetwork:
    """The integer network of a model prepared with `integer_only`, as calibration leaves it."""
    calibration.calibrate(prepared, batches)
    return to_integer(prepared.eval(), example)


def of_file(network: IntegerNetwork, weights: Cost, bits: Bits) -> Cost:
    """The cost "file": packed weights, and what an actual file of the integer network has beside them.

    Args:
        network: with those bits.
        weights: the cost of that name.
        bits: that the network has.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        network.save(path)
        beside = path.stat().st_size - weights.of(bits)
    (only,) = weights.sums
    return Cost("file", (Sum(beside, only.single, {}),))


def of_activations(prepared: nn.Module, network: IntegerNetwork, sides: Sequence[Side]) -> Cost:
    """The cost "activations": bytes of the tensors that are alive at once, each packed at its width.

    Args:
        prepared: the model that the network is of.
    """
    graph = network.graph
    steps: dict[float, str] = {}
    modules = dict(prepared.named_modules())
    for side in sides:
        for layer in side.layers if side.name.startswith("input") else ():
            for quantizer in _input_quantizers(modules[layer]):
                steps[float(quantizer.step)] = side.name
    choices = {side.name: side.choices for side in sides}
    sums = []
    for live in alive(graph):
        constant, single = 0.0, {}
        for name in live:
            kind = graph.by_name[name].type
            count = math.prod(graph.by_name[name].shape_of())
            side = steps.get(float(torch.tensor(kind.scale))) if isinstance(kind, TensorType) else None
            if side is None:
                constant += -(-count * (kind.bits if isinstance(kind, TensorType) else 32) // 8)
            else:
                amounts = single.setdefault(side, dict.fromkeys(choices[side], 0.0))
                for bits in choices[side]:
                    amounts[bits] += -(-count * bits // 8)
        sums.append(Sum(constant, single, {}))
    return Cost("activations", tuple(_largest(sums)))


def _input_quantizers(module: nn.Module) -> list[Quantizer]:
    if isinstance(module, QuantizedLayer) and isinstance(module.input_quantizer, Quantizer):
        return [module.input_quantizer]
    return (
        [child for child in module.children() if isinstance(child, Quantizer)]
        if isinstance(module, QuantizedAttention)
        else []
    )


def alive(graph: Graph) -> list[list[str]]:
    """For each node: the tensors that are in memory while it is computed. A Reshape's tensor is its input's."""
    owner: dict[str, str] = {}
    for node in graph.nodes:
        source = node.inputs[0] if node.inputs else None
        owner[node.name] = owner[source] if isinstance(node, Reshape) and source in owner else node.name
    first = {name: number for number, name in enumerate(owner) if owner[name] == name}
    last = dict(first)
    for number, node in enumerate(graph.nodes):
        for name in node.inputs:
            if name in owner:
                last[owner[name]] = number
    for name in graph.outputs:
        last[owner[name]] = len(graph.nodes)
    return [[name for name in first if first[name] <= number <= last[name]] for number in range(len(graph.nodes))]


def _largest(sums: Sequence[Sum]) -> list[Sum]:
    """Those that can be the largest: without those that another one is never below."""

    def covers(a: Sum, b: Sum) -> bool:
        return a.constant >= b.constant and all(
            side in a.single and all(a.single[side][bits] >= amount for bits, amount in amounts.items())
            for side, amounts in b.single.items()
        )

    kept: list[Sum] = []
    for each in sums:
        if not any(covers(other, each) for other in kept):
            kept = [other for other in kept if not covers(each, other)] + [each]
    return kept
