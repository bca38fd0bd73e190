"""Does the proof see a wrong conversion? Every operation of several networks is converted wrongly in turn, in every way listed here.

    python -m campaigns.mutations

A mutation changes one node of an integer graph as a fault of conversion would: a pool dropped, strides swapped, a clamp
forgotten, another layer's batch-norm. The changed graph is a valid one; `lowering.proof` compares it with the trained network on
the inputs that `to_integer` uses. Each must be caught. What is changed into the same function is no mutation, and is not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit import models
from lowbit.integer.graph import Graph, Node, TensorType, Weight
from lowbit.integer.ops import (
    Add,
    AveragePool,
    ChannelShuffle,
    Concatenate,
    Convolution,
    GlobalAveragePool,
    Linear,
    Lookup,
    MaxPool,
    Multiply,
    PadChannels,
    Quantize,
    Requantize,
    Reshape,
    Slice,
    Subtract,
    Upsample,
)
from lowbit.integer.validate import validate
from lowbit.lowering.convert import convert
from lowbit.lowering.proof import Proof, random_inputs


class Various(nn.Module):
    """Operations that the networks by name lack: differences, upsampling, windows of unequal sides, a clamp, lone batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2), bias=False), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.lone, self.pool = nn.BatchNorm2d(8), nn.MaxPool2d((3, 2), (1, 2), padding=(1, 0))
        self.mean, self.squeeze, self.head = nn.AvgPool2d((2, 3), (2, 1)), nn.Conv2d(8, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu6(self.norm(self.first(x))))
        x = F.silu(self.second(x)) - F.relu(self.third(x))
        x = F.interpolate(self.mean(x), scale_factor=(2, 3))
        x = torch.cat([self.lone(x)[:, 2:], x[:, :2]], 1)
        x = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
        b, c, h, w = x.shape
        x = x.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(F.relu(self.squeeze(x)).mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "various": (Various, (3, 24, 22)),
    "digits-cnn": (lambda: models.create("digits-cnn"), (1, 8, 8)),
    "cifar-resnet20": (lambda: models.create("cifar-resnet20"), (3, 32, 32)),
    "ds-cnn": (lambda: models.create("ds-cnn"), (1, 49, 10)),
    "shufflenetv2-x0.5": (lambda: models.create("shufflenetv2-x0.5", num_classes=5), (3, 32, 32)),
    "efficientnet-b0": (lambda: models.create("efficientnet-b0", num_classes=5), (3, 32, 32)),
}


def prepared(name: str, bits: int) -> tuple[nn.Module, Tensor]:
    """The network at W`bits`A`bits`, its batch-norms away from where they start, and a batch of inputs."""
    make, shape = NETWORKS[name]
    torch.manual_seed(bits)
    model, x = make(), torch.randn(8, *shape)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    lowbit.reestimate_batchnorm(model, [x])
    model = lowbit.prepare(model, weights=bits, activations=bits, method="lsq+", integer_only=True)
    return lowbit.snap_offsets(lowbit.calibrate(model, [x])).eval(), x


# ---------------------------------------------------------------- mutations

Change = tuple[str, Node | None]
"""What was done, and the node as it is now; None drops it: what takes its tensor takes its input's."""


def changes(node: Node, graph: Graph) -> Iterator[Change]:
    """Every mutation of one node."""
    if isinstance(node, Convolution):
        yield from _windows(node)
        if node.groups > 1:
            yield "groups reversed", replace(node, weight=_permuted(node.weight, len(node.weight.codes) // node.groups))
    if isinstance(node, Convolution | Linear):
        yield from _layer(node)
    if isinstance(node, MaxPool | AveragePool):
        yield "dropped", None
        yield from _windows(node)
        yield "kernel larger", replace(node, kernel=tuple(k + 1 for k in node.kernel))
    if isinstance(node, Add | Multiply | Subtract):
        a, b = node.inputs
        yield "first operand twice", replace(node, inputs=(a, a))
        yield "second operand dropped", replace(node, inputs=(b, b))
    if isinstance(node, Subtract):
        yield "operands swapped", replace(node, inputs=node.inputs[::-1])
        yield "added", Add(name=node.name, inputs=node.inputs, type=node.type)
    if isinstance(node, Multiply):
        yield "added", Add(name=node.name, inputs=node.inputs, type=node.type)
    if isinstance(node, Add):
        yield "subtracted", Subtract(name=node.name, inputs=node.inputs, type=node.type)
    if isinstance(node, Lookup):
        y = node.codes_of()
        line = torch.linspace(y.qn, y.qp, len(node.table)).round().to(torch.int16)
        yield "function dropped", replace(node, table=line)
        yield "function applied twice", replace(node, table=_twice(node, graph))
    if isinstance(node, Concatenate):
        yield "order reversed", replace(node, inputs=node.inputs[::-1])
    if isinstance(node, Slice):
        size = graph.by_name[node.inputs[0]].shape_of()[node.axis - 1]
        length = node.stop - node.start
        start = size - length if node.start == 0 else 0
        yield "other part", replace(node, start=start, stop=start + length)
    if isinstance(node, PadChannels):
        yield "before and after swapped", replace(node, before=node.after + 1, after=node.before - 1)
    if isinstance(node, ChannelShuffle):
        yield "dropped", None
        channels = node.shape_of()[0]
        yield "groups swapped", replace(node, groups=channels // node.groups)
    if isinstance(node, Upsample):
        yield "factors swapped", replace(node, factors=node.factors[::-1])
    if isinstance(node, GlobalAveragePool):
        x = graph.input_types(node)[0]
        yield "sum of one window less", _part_of_mean(node, x)
    if isinstance(node, Quantize | Requantize | Add | Multiply | Subtract | AveragePool | GlobalAveragePool):
        y = node.codes_of()
        yield "scale of another grid", replace(node, type=replace(y, scale=float(torch.tensor(y.scale * 1.02))))
    if isinstance(node, Reshape) and len(node.shape_of()) == 1 and len(graph.by_name[node.inputs[0]].shape_of()) > 1:
        channels, *space = graph.by_name[node.inputs[0]].shape_of()
        if channels > 1 and max(space) > 1:
            yield "channels last", ChannelShuffle(name=node.name, inputs=node.inputs, groups=channels)


def _windows(node: Any) -> Iterator[Change]:
    yield "strides swapped", replace(node, stride=node.stride[::-1])
    yield (
        "padding shifted",
        replace(node, padding=tuple((after + 1, max(before - 1, 0)) for before, after in node.padding)),
    )
    yield "padding dropped", replace(node, padding=tuple((0, 0) for _ in node.padding))
    yield "stride doubled", replace(node, stride=tuple(2 * s for s in node.stride))
    if hasattr(node, "dilation"):
        yield "dilation dropped", replace(node, dilation=tuple(1 for _ in node.dilation))


def _layer(node: Any) -> Iterator[Change]:
    weight = node.weight
    if node.bias is not None:
        yield "bias dropped", replace(node, bias=None)
        yield "bias of the next channel", replace(node, bias=node.bias.roll(1))
        yield "bias doubled", replace(node, bias=node.bias * 2)
    if weight.scale.ndim:
        yield "batch-norm of the next channel", replace(node, weight=replace(weight, scale=weight.scale.roll(1)))
        yield "sign of batch-norm lost", replace(node, weight=replace(weight, scale=weight.scale.abs()))
    yield "weight transposed", replace(node, weight=replace(weight, codes=weight.codes.flip(-1)))
    yield "channels reversed", replace(node, weight=_permuted(weight, 1))


def _permuted(weight: Weight, by: int) -> Weight:
    return replace(weight, codes=weight.codes.roll(by, 0))


def _twice(node: Lookup, graph: Graph) -> Tensor:
    """The table of the function applied to its own result."""
    (x,), y = graph.input_types(node), node.codes_of()
    real = (node.table.float() - y.zero_point) * y.scale
    places = (real / x.scale + x.zero_point).round().clamp(x.qn, x.qp).long() - x.qn
    return node.table[places]


def _part_of_mean(node: Node, x: TensorType) -> Node:
    kernel = tuple(x.shape[1:]) if x.shape else ()
    smaller = (max(kernel[0] - 1, 1), *kernel[1:])
    return AveragePool(
        name=node.name,
        inputs=node.inputs,
        type=node.type,
        kernel=smaller,
        stride=kernel,
        padding=((0, 0),) * len(kernel),
    )


def mutated(graph: Graph, node: Node, change: Node | None) -> Graph | None:
    """The graph with the node changed; None where that is no valid graph, or the same function."""
    nodes = []
    for each in graph.nodes:
        if each.name == node.name:
            if change is None:
                continue
            each = change
        if change is None:
            (source,) = node.inputs
            each = replace(each, inputs=tuple(source if name == node.name else name for name in each.inputs))
        # Shapes are computed anew.
        nodes.append(replace(each, type=None if each.moves_codes else replace(each.type, shape=None)))
    try:
        done = validate(replace(graph, nodes=tuple(nodes)))
    except lowbit.LowbitError:
        return None
    before = {each.name: each.shape_of() for each in graph.nodes}
    return done if all(each.shape_of() == before[each.name] for each in done.nodes) else None


def same_function(graph: Graph, other: Graph, inputs: dict[str, Tensor]) -> bool:
    """Whether the two compute the same codes everywhere, on many inputs."""
    one, two = (lowbit.IntegerNetwork(each).codes(inputs) for each in (graph, other))
    return all(torch.equal(two[name], one[name]) for name in two)


def run(name: str, bits: int, counts: Counter, survivors: list[str]) -> None:
    """Every mutation of one network."""
    model, x = prepared(name, bits)
    graph, places = convert(model, x[:1])
    (entry,) = graph.inputs
    inputs = {entry: torch.cat([x[:1], random_inputs(graph, 1)[entry]])}
    many = {entry: torch.cat([x, random_inputs(graph, 8)[entry]])}
    assert not Proof(model, graph, places)(inputs), f"{name}: the network itself is not proved"
    for node in graph.nodes:
        for what, change in changes(node, graph):
            other = mutated(graph, node, change)
            if other is None or (change is None and node.name in places.values()):
                continue
            caught = bool(Proof(model, other, places)(inputs))
            if not caught and same_function(graph, other, many):
                continue
            counts[type(node).__name__, what, caught] += 1
            if not caught:
                survivors.append(f"{name} W{bits}A{bits}: {node.name} ({type(node).__name__}): {what}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 4])
    options = parser.parse_args(argv)
    counts: Counter = Counter()
    survivors: list[str] = []
    for name in options.networks:
        for bits in options.bits:
            before = counts.total()
            run(name, bits, counts, survivors)
            print(f"{name} W{bits}A{bits}: {counts.total() - before} mutations", file=sys.stderr)
    print("| operation | mutation | tried | caught |\n|---|---|---|---|")
    for operation, what in sorted({(operation, what) for operation, what, _ in counts}):
        caught, missed = counts[operation, what, True], counts[operation, what, False]
        print(f"| {operation} | {what} | {caught + missed} | {caught} |")
    print(f"\n{counts.total() - len(survivors)} of {counts.total()} caught")
    print("\n".join(survivors))
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
