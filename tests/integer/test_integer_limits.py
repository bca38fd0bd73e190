"""Sizes, values and names that a signed file may ask for, and that validation refuses before anything is run."""

from __future__ import annotations

import resource
import time
from dataclasses import replace

import pytest
import torch
from tests.format_graphs import two_inputs_and_two_outputs
from tests.integer_graphs import GraphBuilder, every_operation

from lowbit.errors import LowbitError
from lowbit.integer import limits
from lowbit.integer import run as run_file
from lowbit.integer.graph import FloatType, Graph, Node, TensorType, Weight
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import (
    AveragePool,
    Concatenate,
    Convolution,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Multiply,
    PadChannels,
    Quantize,
    Requantize,
    Reshape,
    Subtract,
    Upsample,
)
from lowbit.integer.ops import convolution as convolution_file
from lowbit.integer.run import run
from lowbit.integer.validate import validate

BYTE = TensorType(0.5, 0, 8, False)
WEIGHT = Weight(torch.ones(2, 4, 3, 3, dtype=torch.int8), torch.tensor(0.5), 8)


def graph(*nodes: Node, shape: tuple[int, ...] = (4, 8, 8), kind: TensorType = BYTE) -> Graph:
    first = Quantize(name="in", inputs=("image",), type=kind)
    return Graph(inputs={"image": shape}, nodes=(first, *nodes), outputs=(nodes[-1].name if nodes else "in",))


def convolution(**changes) -> Convolution:
    around = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    return Convolution(**{"name": "big", "inputs": ("in",), "type": BYTE, "weight": WEIGHT} | around | changes)


def pool(kind: type = MaxPool, **changes) -> Node:
    around = {"kernel": (3, 3), "stride": (1, 1), "padding": ((1, 1), (1, 1))}
    more = {"dilation": (1, 1), "type": None} if kind is MaxPool else {"type": BYTE}
    return kind(**{"name": "big", "inputs": ("in",)} | around | more | changes)


def linear(kind: FloatType | TensorType, scale: float, codes: int = 100) -> Linear:
    weight = Weight(torch.full((2, 4), codes, dtype=torch.int8), torch.tensor(scale), 8)
    return Linear(name="big", inputs=("in",), type=kind, weight=weight)


def chain(count: int) -> list[Node]:
    return [Reshape(name=f"n{i}", inputs=(f"n{i - 1}" if i else "in",), shape=(-1,)) for i in range(count)]


FAR = ((20_000, 20_000), (20_000, 20_000))
TINY = 2.0**-126
TOO_LARGE = {
    "padded convolution": (graph(convolution(padding=FAR, stride=(20_000, 20_000))), "padded to .* too large"),
    "padded average": (graph(pool(AveragePool, padding=FAR, stride=(20_000, 20_000))), "padded to .* too large"),
    "padded maximum": (graph(pool(padding=((5_000, 5_000),) * 2, kernel=(9_999, 9_999))), "padded to .* too large"),
    "pool's kernel": (graph(pool(kernel=(2_000, 2_000), padding=((1_000, 1_000),) * 2)), "kernel .* too large"),
    "average's kernel": (graph(pool(AveragePool, kernel=(200, 200), padding=((99, 99),) * 2)), "kernel .* too large"),
    "windows": (graph(pool(kernel=(128, 128), padding=((127, 127),) * 2), shape=(4, 300, 300)), "meets more than"),
    "kernel beyond the input": (graph(pool(kernel=(11, 11))), "does not fit"),
    "upsampled": (graph(Upsample(name="big", inputs=("in",), factors=(2**31 - 1, 1))), "positions"),
    "upsampled twice": (graph(Upsample(name="big", inputs=("in",), factors=(2_000, 2_000))), "too large"),
    "channels": (graph(PadChannels(name="big", inputs=("in",), before=2**31 - 1, after=0)), "too large"),
    "joined": (graph(Concatenate(name="big", inputs=("in",) * 1_001)), "1,001 inputs"),
    "nodes": (graph(*chain(limits.NODES_MAX)), "10,001 nodes"),
    "input": (graph(shape=(4, 4097, 4097)), "input 'image'.*too large"),
    "all tensors": (
        graph(*[Requantize(name=f"r{i}", inputs=("in",), type=BYTE) for i in range(40)], shape=(4, 4096, 4096)),
        "'r31'.*the tensors of a sample",
    ),
    "float output": (
        graph(linear(FloatType(), 1e36), kind=replace(BYTE, scale=2.0**-2), shape=(4,)),
        "'big'.*float output can reach",
    ),
    "codes' values": (graph(kind=replace(BYTE, scale=2.0**121)), "'in'.*largest value"),
    "smallest scale": (graph(kind=replace(BYTE, scale=TINY)), "'in'.*at least 2.35"),
    "a layer's scale": (
        graph(linear(replace(BYTE, scale=2.0**-100), 2.0**-50), kind=replace(BYTE, scale=2.0**-80), shape=(4,)),
        "'big': the scale of its accumulator",
    ),
    "a product's scale": (
        graph(
            Multiply(name="big", inputs=("in", "in"), type=replace(BYTE, scale=2.0**-100)),
            kind=replace(BYTE, scale=2.0**-80),
        ),
        "'big': the scale of its accumulator",
    ),
    "a mean's scale": (
        graph(
            GlobalAveragePool(name="big", inputs=("in",), type=replace(BYTE, scale=2.0**119)),
            shape=(1, 512, 513),
            kind=replace(BYTE, scale=2.0**110),
        ),
        "'big': the scale of its accumulator",
    ),
    "a window's scale": (
        graph(pool(AveragePool, type=replace(BYTE, scale=2.0**-125)), kind=replace(BYTE, scale=2.0**-125)),
        "'big': the scale of its accumulator",
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_no_network_meets_is_refused_by_name_at_once(name):
    broken, words = TOO_LARGE[name]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(LowbitError, match=words):
        validate(broken)
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    "fits",
    [
        graph(convolution(padding=((2_000, 2_000),) * 2)),
        graph(pool(AveragePool, kernel=(112, 112), padding=((0, 0),) * 2), shape=(64, 112, 112)),
        graph(
            convolution(weight=Weight(torch.ones(2, 4, 101, 101, dtype=torch.int8), torch.tensor(0.5), 8)),
            shape=(4, 112, 112),
        ),
        graph(Upsample(name="u", inputs=("in",), factors=(32, 32)), shape=(21, 16, 16)),
        graph(*chain(limits.NODES_MAX - 1)),
        graph(linear(FloatType(), 1e36, codes=1), kind=replace(BYTE, scale=2.0**-2), shape=(4,)),
        graph(kind=replace(BYTE, scale=2.0**-125)),
        graph(Requantize(name="r", inputs=("in",), type=BYTE), shape=(32, 1080, 1920)),
    ],
)
def test_large_networks_that_exist_are_accepted(fits):
    validate(fits)


def test_multiply_accumulates_are_counted_over_all_nodes(monkeypatch):
    each = 2 * 8 * 8 * 4 * 9
    monkeypatch.setattr(limits, "MACS_MAX", 2 * each)
    two, three = ([convolution(name=f"c{i}") for i in range(count)] for count in (2, 3))
    validate(graph(*two))
    with pytest.raises(LowbitError, match=f"'c2'.*{3 * each:,} multiply-accumulates"):
        validate(graph(*three))


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\0", "\x7f", "\x85", "a\u2028b", "\u202e", "\ud800", "a\udfff"])
@pytest.mark.parametrize("place", ["node", "input"])
def test_names_that_steer_a_terminal_or_no_file_can_hold(name, place, tmp_path):
    inputs = {name if place == "input" else "image": (4,)}
    node = Quantize(name=name if place == "node" else "q", inputs=tuple(inputs), type=BYTE)
    with pytest.raises(LowbitError, match="control characters") as error:
        validate(Graph(inputs=inputs, nodes=(node,), outputs=(node.name,)))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["layer1.0.conv1", "größe", "層", "a b", "naïve/é", "x'\"y"])
def test_other_names_are_kept(name, tmp_path):
    network = IntegerNetwork(
        Graph({name: (4,)}, (Quantize(name=f"{name}.q", inputs=(name,), type=BYTE),), (f"{name}.q",))
    )
    network.save(tmp_path / "file")
    assert list(IntegerNetwork.load(tmp_path / "file").graph.by_name) == [f"{name}.q"]


@pytest.mark.parametrize("budget", [1, 50, 700])
def test_convolutions_in_blocks_of_rows_are_the_same(budget, monkeypatch):
    """Also blocks within the padding, with strides, dilations and uneven padding, in one to three dimensions."""
    for seed in range(6):
        b = every_operation(seed)
        network, x = IntegerNetwork(b.graph()), b.input(3)
        whole = network.codes(x)
        monkeypatch.setattr(convolution_file, "_WINDOW_ELEMENTS", budget)
        assert all(torch.equal(found, whole[name]) for name, found in network.codes(x).items())
        monkeypatch.undo()
    for shape in ((3, 11), (2, 5, 7), (2, 4, 3, 5)):
        for kernel, stride, dilation, padding in (
            (3, 1, 1, (1, 1)),
            (3, 2, 2, (9, 4)),
            (1, 3, 1, (7, 0)),
            (2, 5, 1, (0, 6)),
        ):
            b = GraphBuilder(shape, kernel)
            b.conv(b.quantize(8), 4, kernel, stride=stride, dilation=dilation, padding=padding, zero=3)
            network, x = IntegerNetwork(b.graph()), b.input(3)
            whole = network.codes(x)
            monkeypatch.setattr(convolution_file, "_WINDOW_ELEMENTS", budget)
            assert all(torch.equal(found, whole[name]) for name, found in network.codes(x).items())
            monkeypatch.undo()


@pytest.mark.parametrize("budget", [1, 37, 500])
def test_operations_in_blocks_are_the_same(budget, monkeypatch):
    """Blocks along whichever dimension is the longest, with operands that broadcast."""
    builders = [every_operation(seed) for seed in range(3)] + [two_inputs_and_two_outputs()]
    for b in builders:
        network, x = IntegerNetwork(b.graph()), b.input(3)
        for rounding in ("float", "fixed"):
            whole = network.codes(x, rounding)
            monkeypatch.setattr(run_file, "_BLOCK_ELEMENTS", budget)
            assert all(torch.equal(found, whole[name]) for name, found in network.codes(x, rounding).items())
            monkeypatch.undo()


def test_a_large_tensor_takes_little_more_than_its_codes():
    """66 million codes through a pool and a difference: 128 MB of codes, and not 2 GB of floats."""
    far = ((1, 26), (10_781, 1), (1, 6))
    big = pool(AveragePool, kernel=(7, 3, 1), stride=(1, 1, 1), padding=far)
    after = Subtract(name="after", inputs=("big", "big"), type=BYTE)
    network = IntegerNetwork(graph(big, after, shape=(10, 1, 2, 21)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in run(network.graph, torch.rand(1, 10, 1, 2, 21)):
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # kB
