"""Does the proof see a wrong conversion? Every operation of several networks is converted wrongly in turn, in every way listed here.

    python -m campaigns.mutations

A mutation changes one node of an integer graph as a fault of conversion would: a pool dropped, strides swapped, a clamp
forgotten, another layer's batch-norm. The changed graph is a valid one; `lowering.proof` compares it with the trained network on
the inputs that `to_integer` uses. Each must be caught. What is changed into the same function is no mutation, and is not counted.

What becomes of each is kept in --outcomes as it is found; the same command goes on where it was stopped, and begins anew where
the sources have changed. The exit status is 1 where one was missed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import platform
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit import models
from lowbit.files import atomic_write
from lowbit.integer.arithmetic import code_dtype
from lowbit.integer.graph import Graph, Node, TensorType, Weight
from lowbit.integer.ops import (
    Add,
    AveragePool,
    ChannelShuffle,
    Concatenate,
    Constant,
    Convolution,
    Extremum,
    GlobalAveragePool,
    IndexSelect,
    Linear,
    LinearResize,
    Lookup,
    LookupPerChannel,
    MaskedSoftmax,
    MatMul,
    MaxPool,
    Multiply,
    Normalize,
    Pad,
    PadChannels,
    PixelShuffle,
    PixelUnshuffle,
    Quantize,
    Reduce,
    Requantize,
    Reshape,
    Slice,
    Softmax,
    Subtract,
    SumOfProducts,
    Transpose,
    UnevenAveragePool,
    Upsample,
)
from lowbit.integer.result import Mismatch
from lowbit.integer.validate import validate
from lowbit.lowering.convert import convert
from lowbit.lowering.proof import Exact, Proof, random_inputs, trial, trial_inputs

OUTCOMES = ("caught", "missed", "same", "invalid")


class Various(nn.Module):
    """Operations that the networks by name lack: differences, upsampling, windows of unequal sides, a clamp, lone batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2), bias=False), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.slopes = nn.PReLU(8)
        nn.init.normal_(self.slopes.weight)
        self.lone, self.pool = nn.BatchNorm2d(8), nn.MaxPool2d((3, 2), (1, 2), padding=(1, 0))
        self.mean, self.squeeze, self.head = nn.AvgPool2d((2, 3), (2, 1)), nn.Conv2d(8, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu6(self.norm(self.first(x))))
        x = F.silu(self.second(x)) - F.relu(self.third(x))
        x = F.interpolate(self.mean(x), scale_factor=(2, 3))
        x = F.interpolate(F.interpolate(x, (13, 9)), (17, 11), mode="bilinear")
        x = F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False)
        x = torch.cat([self.lone(x)[:, 2:], x[:, :2]], 1)
        x = self.slopes(x * torch.sigmoid(x.mean((2, 3), keepdim=True))) + 0.25
        b, c, h, w = x.shape
        x = x.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(F.relu(self.squeeze(x)).mean((2, 3)))


class Tokens(nn.Module):
    """What transformers and sequences have: norms, attention with a mask and without, a class token, extrema, a GRU, pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.groups = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8)
        self.embed, self.token = nn.Linear(16, 12), nn.Parameter(torch.randn(1, 1, 12))
        self.position, self.norm, self.rms = nn.Parameter(torch.randn(1, 13, 12)), nn.LayerNorm(12), nn.RMSNorm(12)
        self.qkv, self.mix, self.state = nn.Linear(12, 36), nn.Linear(12, 12), nn.GRU(12, 6, batch_first=True)
        self.head = nn.Linear(30, 5)
        for norm in (self.groups, self.norm, self.rms):
            nn.init.normal_(norm.weight, 1.0, 0.3)
        for norm in (self.groups, self.norm):
            nn.init.normal_(norm.bias, 0.0, 0.3)
        self.register_buffer("hidden", torch.ones(13, 13, dtype=torch.bool).triu(2))

    def attention(self, x: Tensor, *, masked: bool) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.matmul(q, k.transpose(-2, -1)) * 6**-0.5
        scores = scores.masked_fill(self.hidden, -torch.inf) if masked else scores
        return torch.matmul(scores.softmax(-1), v).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.groups(self.first(x)), (0, 1, 2, 0))
        x = F.interpolate(x, (6, 8), mode="bicubic")
        x = F.pixel_unshuffle(F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2)[:, :4], 2)
        x = self.embed(x.flatten(2).transpose(1, 2))
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.mix(self.attention(self.norm(x), masked=False))
        x = x + self.mix(self.attention(self.rms(x), masked=True))
        state = self.state(x[:, :3])[0][:, -1]
        return self.head(torch.cat([state, x.amax(1) + x.amin(1), x.mean(1) - x.sum(1)], 1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "various": (Various, (3, 24, 22)),
    "tokens": (Tokens, (3, 8, 10)),
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
    return lowbit.round_zero_points(lowbit.calibrate(model, [x])).eval(), x


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
    if isinstance(node, LookupPerChannel):
        yield "tables of the next channel", replace(node, tables=node.tables.roll(1, 0))
        yield "one table for all", replace(node, tables=node.tables[:1].expand_as(node.tables).clone())
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
    if isinstance(node, UnevenAveragePool):
        axis, start, stop, divisor = node.windows[-1]
        if stop - start > 1:
            yield "last window shorter", replace(node, windows=(*node.windows[:-1], (axis, start + 1, stop, divisor)))
        yield "another divisor", replace(node, windows=(*node.windows[:-1], (axis, start, stop, divisor + 1)))
    if isinstance(node, LinearResize):
        swapped = tuple(
            (axis, first, *reversed(weights)) if weights[-1] else (axis, first, *weights)
            for axis, first, *weights in node.points
        )
        yield "weights swapped", replace(node, points=swapped)
    if isinstance(node, IndexSelect):
        yield "order reversed", replace(node, places=node.places[::-1])
        yield "one place further", replace(node, places=node.places[1:] + node.places[:1])
    if isinstance(node, GlobalAveragePool):
        x = graph.input_types(node)[0]
        yield "sum of one window less", _part_of_mean(node, x)
    yield from _of_sequences(node)
    if isinstance(node, _ON_A_GRID):
        y = node.codes_of()
        yield "scale of another grid", replace(node, type=replace(y, scale=float(torch.tensor(y.scale * 1.02))))
    if isinstance(node, Reshape) and len(node.shape_of()) == 1 and len(graph.by_name[node.inputs[0]].shape_of()) > 1:
        channels, *space = graph.by_name[node.inputs[0]].shape_of()
        if channels > 1 and max(space) > 1:
            yield "channels last", ChannelShuffle(name=node.name, inputs=node.inputs, groups=channels)


_ON_A_GRID = (Quantize, Requantize, Add, Multiply, Subtract, AveragePool, GlobalAveragePool, MatMul, Softmax, MaskedSoftmax,
              Normalize, Reduce, SumOfProducts)  # fmt: skip


def _of_sequences(node: Node) -> Iterator[Change]:
    """Mutations of what transformers, sequences and pixels have."""
    if isinstance(node, Softmax | MaskedSoftmax):
        yield "another dimension", replace(node, axis=node.axis - 1)
        table = node.entries()
        yield (
            "exponentials of twice the step",
            replace(node, table=torch.cat([table[::2], table.new_zeros(len(table))])[: len(table)]),
        )
    if isinstance(node, MaskedSoftmax):
        yield (
            "mask dropped",
            Softmax(name=node.name, inputs=node.inputs[:1], type=node.type, axis=node.axis, table=node.table),
        )
    if isinstance(node, Normalize):
        yield "γ dropped", replace(node, gain=None)
        yield "β dropped", replace(node, shift=None)
        yield "γ of the next element", replace(node, gain=None if node.gain is None else _next(node.gain))
        yield "β of the next element", replace(node, shift=None if node.shift is None else _next(node.shift))
        yield "mean taken, or not", replace(node, centered=not node.centered)
        yield "half as many elements", replace(node, count=max(node.count // 2, 1))
        yield "ε a million times larger", replace(node, eps=node.eps * 1e6)
    if isinstance(node, Reduce | Extremum):
        (other,) = set(node.functions) - {node.function}
        yield f"{other} for {node.function}", replace(node, function=other)
    if isinstance(node, Constant):
        yield "the next element's", replace(node, codes=_next(node.codes))
    if isinstance(node, SumOfProducts):
        a, b, c, d = node.inputs
        yield "factors swapped", replace(node, inputs=(a, c, b, d))
        yield "first product twice", replace(node, inputs=(a, b, a, b))
    if isinstance(node, Transpose | PixelShuffle | PixelUnshuffle):
        yield "reshaped", Reshape(name=node.name, inputs=node.inputs, shape=node.shape_of())
    if isinstance(node, Pad):
        yield "before and after swapped", replace(node, padding=tuple(pair[::-1] for pair in node.padding))


def _next(x: Tensor) -> Tensor:
    """Moved by one along the last dimension that has several elements."""
    return x.roll(1, max((axis for axis, size in enumerate(x.shape) if size > 1), default=0))


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


def alike(a: Any, b: Any) -> bool:
    """Whether two nodes, or what they are made of, are equal."""
    if a is b:
        return True
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    if is_dataclass(a):
        return type(a) is type(b) and all(alike(getattr(a, each.name), getattr(b, each.name)) for each in fields(a))
    return a == b


def same_function(graph: Graph, other: Graph, inputs: dict[str, Tensor]) -> bool:
    """Whether the two compute the same codes everywhere, on many inputs."""
    one, two = (lowbit.IntegerNetwork(each).codes(inputs) for each in (graph, other))
    return all(torch.equal(two[name], one[name]) for name in two)


class _Part(NamedTuple):
    """Some nodes of a graph."""

    nodes: tuple[Node, ...]
    input_types: Callable[[Node], list[TensorType]]


class OneBatch(Proof):
    """The proof for many graphs of one network on one batch, for which the trained network runs once."""

    def __init__(self, *network: Any) -> None:
        super().__init__(*network)
        self.original = self.graph
        self.found: dict[bool, tuple[Mapping[str, Tensor], Mapping[str, Tensor | None]]] = {}

    def expected(
        self, inputs: Mapping[str, Tensor], given: Mapping[str, Tensor] | None, scrambled: bool
    ) -> tuple[Mapping[str, Tensor], Exact]:
        if scrambled not in self.found:
            codes, exact = super().expected(inputs, given, scrambled)
            self.found[scrambled] = codes, dict(exact)
        codes, values = self.found[scrambled]
        return codes, iter(values.items())

    def _compare_nodes(
        self,
        inputs: Mapping[str, Tensor],
        codes: Mapping[str, Tensor],
        exact: Exact,
        local_differ: Counter[str] | None = None,
    ) -> list[Mismatch]:
        """Only what differs from the original graph, and what computes with it until the next codes that are given."""
        whole = self.graph
        if whole is self.original:
            return super()._compare_nodes(inputs, codes, exact, local_differ)
        before = self.original.by_name
        reached: set[str] = set()
        retyped: set[str] = set()
        for node in whole.nodes:
            follows = any((name in reached and name not in codes) or name in retyped for name in node.inputs)
            if node.name not in before or not alike(node.type, before[node.name].type):
                retyped.add(node.name)  # another grid for the same codes
            if follows or node.name not in before or not alike(node, before[node.name]):
                reached.add(node.name)
        for node in reversed(whole.nodes):  # and what they take that is not given
            if node.name in reached:
                reached |= {name for name in node.inputs if name not in codes and name not in inputs}
        given = dict(inputs)
        for name in codes.keys() & whole.by_name.keys():
            given[name] = codes[name].to(code_dtype(whole.by_name[name].codes_of()))
        self.graph = cast(Graph, _Part(tuple(n for n in whole.nodes if n.name in reached), whole.input_types))
        try:
            return super()._compare_nodes(given, codes, exact, local_differ)
        finally:
            self.graph = whole

    def catches(self, graph: Graph, inputs: Mapping[str, Tensor]) -> bool:
        """Whether another graph differs from the network."""
        self.graph = graph
        return bool(trial(self, inputs))


def outcomes(name: str, bits: int, done: Container[tuple[str, str]] = ()) -> Iterator[Row]:
    """What becomes of every mutation of one network, those in `done` (node, mutation) left out."""
    model, x = prepared(name, bits)
    graph, places = convert(model, x[:1])
    (entry,) = graph.inputs
    inputs = trial_inputs(graph, dict.fromkeys(graph.inputs, x))
    many = {entry: torch.cat([x, random_inputs(graph, 8)[entry]])}
    proof = OneBatch(model, graph, places)
    assert not proof.catches(graph, inputs), f"{name}: the network itself is not proved"
    for node in graph.nodes:
        for what, change in changes(node, graph):
            if (node.name, what) in done or (change is None and node.name in places.values()):
                continue
            other = mutated(graph, node, change)
            if change is not None and alike(node, change):  # no dilation to drop, say
                found = "same"
            elif other is None:
                found = "invalid"
            elif proof.catches(other, inputs):
                found = "caught"
            else:
                found = "same" if same_function(graph, other, many) else "missed"
            yield Row(name, bits, node.name, type(node).__name__, what, found)


# ---------------------------------------------------------------- what is kept, and the table


class Row(NamedTuple):
    """A mutation and what became of it: caught, missed, same (no other function) or invalid (no graph of the same shapes)."""

    network: str
    bits: int
    node: str
    operation: str
    mutation: str
    found: str


def sources() -> str:
    """The first digits of the SHA-256 of what rows are measured with: lowbit, this file, and torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in (Path(__file__), *sorted(Path(lowbit.__file__).parent.rglob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def stored(path: Path, measured_with: str) -> list[Row]:
    """The rows of a file that were measured with these sources; its last line may be cut off."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        lines = [line for line in csv.reader(file) if len(line) == 1 + len(Row._fields) and line[-1] in OUTCOMES]
    return [Row(network, int(bits), *rest) for with_, network, bits, *rest in lines if with_ == measured_with]


def table(rows: Sequence[Row]) -> str:
    """Counts by operation and mutation, as Markdown. What is the same function, or no valid graph, is not counted."""
    counts = Counter((row.operation, row.mutation, row.found) for row in rows)
    lines = ["| operation | mutation | tried | caught |", "|---|---|---|---|"]
    for operation, what in sorted({(row.operation, row.mutation) for row in rows}):
        caught, missed = counts[operation, what, "caught"], counts[operation, what, "missed"]
        if caught + missed:
            lines.append(f"| {operation} | {what} | {caught + missed} | {caught} |")
    total = Counter(row.found for row in rows)
    lines.append(f"| all | | {total['caught'] + total['missed']} | {total['caught']} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m campaigns.mutations", description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--outcomes", type=Path, default=Path("mutations.csv"), help="kept as they come")
    parser.add_argument("--report", type=Path, default=None, metavar="FILE", help="write the table as Markdown")
    options = parser.parse_args(argv)
    measured_with = sources()
    kept = stored(options.outcomes, measured_with)
    rows = []
    with open(options.outcomes, "a", newline="") as file:
        writer = csv.writer(file)
        if file.tell():
            file.write("\r\n")  # ends a line that was cut off
        for name in options.networks:
            for bits in options.bits:
                before = [row for row in kept if (row.network, row.bits) == (name, bits)]
                rows += before
                for row in outcomes(name, bits, {(row.node, row.mutation) for row in before}):
                    writer.writerow((measured_with, *row))
                    file.flush()
                    rows.append(row)
                    if row.found == "missed":
                        print(f"{name} W{bits}A{bits}: {row.node} ({row.operation}): {row.mutation}", flush=True)
    print(table(rows))
    if options.report is not None:
        with atomic_write(options.report) as temporary:
            temporary.write_text(report(rows, options))
    return int(any(row.found == "missed" for row in rows))


def report(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """The table as a page of the documentation."""
    chosen = "" if options.networks == list(NETWORKS) else f"--networks {' '.join(options.networks)} "
    networks = ", ".join(f"{name} ({sum(row.network == name for row in rows)})" for name in options.networks)
    total = Counter(row.found for row in rows)
    return f"""# Wrong conversions, and whether the proof sees them

    python -m campaigns.mutations {chosen}--report {options.report}

torch {torch.__version__}, Python {platform.python_version()}. Networks, and how many changes to a node of each: {networks};
at {" and ".join(f"W{bits}A{bits}" for bits in options.bits)}.

{table(rows)}

Of {len(rows)} changes, {total["invalid"]} made no valid graph of the same shapes, and {total["same"]} computed the same codes
everywhere on sixteen inputs, as a dropped bias of zeros does; neither is a wrong conversion. All others are in the table. What
the changes are: `campaigns/mutations.py`.
"""


if __name__ == "__main__":
    sys.exit(main())
