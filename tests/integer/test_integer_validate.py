"""validate(): every rule, each broken once."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from tests.integer_graphs import every_operation, resnet_like

from lowbit.errors import LowbitError
from lowbit.integer.graph import FloatType, Graph, Node, TensorType, Weight
from lowbit.integer.ops import (
    Add,
    Concatenate,
    Convolution,
    GlobalAveragePool,
    Linear,
    Lookup,
    MaxPool,
    PadChannels,
    Quantize,
    Requantize,
    Reshape,
    Slice,
)
from lowbit.integer.validate import ACCUMULATOR_MAX, validate

BYTE = TensorType(0.5, 0, 8, False)


def graph(*nodes: Node, shape: tuple[int, ...] = (4, 6, 6)) -> Graph:
    first = Quantize(name="in", inputs=("image",), type=BYTE)
    return Graph(inputs={"image": shape}, nodes=(first, *nodes), outputs=(nodes[-1].name if nodes else "in",))


def convolution(**changes) -> Convolution:
    fields = {
        "name": "conv",
        "inputs": ("in",),
        "type": TensorType(0.25, 0, 4, False),
        "weight": Weight(torch.ones(3, 4, 3, 3, dtype=torch.int8), torch.tensor(0.5), 4),
        "bias": torch.zeros(3, dtype=torch.int32),
        "stride": (1, 1),
        "padding": ((1, 1), (1, 1)),
        "dilation": (1, 1),
    }
    return Convolution(**(fields | changes))


def test_ranges_of_grids():
    assert (TensorType(1.0, 0, 4, False).qn, TensorType(1.0, 0, 4, False).qp) == (0, 15)
    assert (TensorType(1.0, 0, 4, True).qn, TensorType(1.0, 0, 4, True).qp) == (-8, 7)
    assert (TensorType(1.0, 0, 2, True, narrow=True).qn, TensorType(1.0, 0, 2, True, narrow=True).qp) == (-1, 1)


def test_shapes_and_types_are_filled_in():
    done = every_operation(0).graph()
    assert all(node.type.shape is not None for node in done.nodes)
    assert done.by_name["n2.MaxPool"].type == done.by_name["n1.Convolution"].type.__class__(
        **{**done.by_name["n1.Convolution"].type.__dict__, "shape": (16, 7, 7)}
    )
    assert done.by_name["n17.Convolution"].type.shape == (16, 3, 3)
    again = validate(done)
    assert [node.type for node in again.nodes] == [node.type for node in done.nodes]
    assert resnet_like(0).graph().by_name["n15.Linear"].type == FloatType((10,))


def test_asymmetric_padding_and_dilation_shape():
    node = convolution(padding=((2, 1), (0, 3)), stride=(2, 1), dilation=(1, 2))
    expected = torch.nn.functional.conv2d(
        torch.zeros(1, 4, 9, 9), torch.zeros(3, 4, 3, 3), stride=(2, 1), dilation=(1, 2)
    )
    assert validate(graph(node)).nodes[1].type.shape == tuple(expected.shape[1:])


BROKEN = {
    "used twice": (convolution(name="in"),),
    "no colon": (convolution(name="a:b"),),
    "no earlier node": (convolution(inputs=("later",)),),
    "has 2 inputs": (convolution(inputs=("in", "in")),),
    "must be codes, not floats": (convolution(inputs=("image",)),),
    "takes the graph's float input": (Quantize(name="q", inputs=("in",), type=BYTE),),
    "different grids": (convolution(), Concatenate(name="cat", inputs=("in", "conv"))),
    "must be that of its input": (Reshape(name="r", inputs=("in",), shape=(-1,), type=TensorType(0.25, 0, 8, False)),),
    "may have a float output": (convolution(type=FloatType()), convolution(name="b", inputs=("in",))),
    "has no type": (convolution(type=None),),
    "17 bits": (convolution(type=TensorType(0.5, 0, 17, False)),),
    "1 bits": (convolution(type=TensorType(0.5, 0, 1, True)),),
    "narrow": (convolution(type=TensorType(0.5, 0, 4, False, narrow=True)),),
    "scale nan": (convolution(type=TensorType(float("nan"), 0, 4, False)),),
    "scale 0.0": (convolution(type=TensorType(0.0, 0, 4, False)),),
    "scale -1.0": (convolution(type=TensorType(-1.0, 0, 4, False)),),
    "scale 0.1 is not a float32": (convolution(type=TensorType(0.1, 0, 4, False)),),
    "round it before conversion": (convolution(type=TensorType(0.5, 1.5, 4, False)),),
    "does not fit the byte": (convolution(type=TensorType(0.5, -1, 4, False)),),
    "do not fit 3 bits": (
        convolution(weight=Weight(torch.full((3, 4, 3, 3), 4).to(torch.int8), torch.tensor(1.0), 3)),
    ),
    "-1 and \\+1": (convolution(weight=Weight(torch.zeros(3, 4, 3, 3, dtype=torch.int8), torch.tensor(1.0), 1)),),
    "must be int8": (convolution(weight=Weight(torch.ones(3, 4, 3, 3), torch.tensor(1.0), 4)),),
    "one value or one per output channel": (
        convolution(weight=Weight(torch.ones(3, 4, 3, 3, dtype=torch.int8), torch.ones(4), 4)),
    ),
    "weight scale is 0": (
        convolution(weight=Weight(torch.ones(3, 4, 3, 3, dtype=torch.int8), torch.tensor([1.0, 0.0, 1.0]), 4)),
    ),
    "bias must be int32": (convolution(bias=torch.zeros(3)),),
    "does not fit 4 input channels": (convolution(groups=2),),
    "does not fit an input of shape": (
        Linear(
            name="l", inputs=("in",), type=BYTE, weight=Weight(torch.ones(2, 4, dtype=torch.int8), torch.tensor(1.0), 4)
        ),
    ),
    "at least 1": (convolution(stride=(0, 1)),),
    "2 entries": (convolution(stride=(1,)),),
    "does not fit": (convolution(padding=((0, 0), (0, 0)), dilation=(3, 3)),),
    "sizes must be equal or 1": (convolution(), Add(name="a", inputs=("in", "conv"), type=BYTE)),
    "no element in them": (
        MaxPool(name="m", inputs=("in",), kernel=(2, 2), stride=(1, 1), padding=((2, 0), (0, 0)), dilation=(1, 1)),
    ),
    "does not reshape": (Reshape(name="r", inputs=("in",), shape=(7, -1)),),
    "leaves shape": (Slice(name="s", inputs=("in",), axis=1, start=2, stop=5),),
    "int16 with 256 entries": (Lookup(name="t", inputs=("in",), type=BYTE, table=torch.zeros(16, dtype=torch.int16)),),
    "are not codes of its output": (
        Lookup(name="t", inputs=("in",), type=BYTE, table=torch.full((256,), 256, dtype=torch.int16)),
    ),
    "outside 1.17549e-38": (Requantize(name="r", inputs=("in",), type=TensorType(2.0**-40, 0, 8, False)),),
    "made by no node": (),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_rule_is_named(message):
    broken = graph(*BROKEN[message])
    if message == "made by no node":
        broken = replace(broken, outputs=("nothing",))
    with pytest.raises(LowbitError, match=message):
        validate(broken)


def test_padding_with_a_zero_point_that_is_no_code():
    outside = Requantize(name="r", inputs=("in",), type=TensorType(0.5, 20, 4, False))
    with pytest.raises(LowbitError, match="not a code of its grid"):
        validate(graph(outside, PadChannels(name="p", inputs=("r",), before=1, after=0)))


def test_fractional_zero_points_on_request():
    fractional = graph(convolution(type=TensorType(0.5, 1.5, 4, False)))
    assert validate(fractional, fractional_zero_points=True).nodes[1].type.zero_point == 1.5


def test_accumulator_bound_is_reached_and_checked():
    """The bound of a single-channel layer is the sum for the worst input; one more input overflows."""
    codes = torch.tensor([[-128, 127, 3]], dtype=torch.int8)
    node = Linear(name="l", inputs=("in",), type=FloatType(), weight=Weight(codes, torch.tensor(1.0), 8))
    kind = TensorType(0.5, 100, 8, False)
    assert node.accumulator_bound([kind]) == 258 * 155
    bias = torch.tensor([ACCUMULATOR_MAX - 255 * 258], dtype=torch.int32)
    fits = graph(replace(node, bias=bias), shape=(3,))
    validate(fits)
    with pytest.raises(LowbitError, match=r"'l'.*2147483648.*fewer bits or fewer inputs"):
        validate(graph(replace(node, bias=bias + 1), shape=(3,)))


def test_unknown_operation():
    class Strange(Node):
        pass

    with pytest.raises(LowbitError, match="Strange is not an operation"):
        validate(graph(Strange(name="s", inputs=("in",), type=BYTE)))


def test_average_over_nothing():
    with pytest.raises(LowbitError, match="no positions"):
        validate(graph(GlobalAveragePool(name="g", inputs=("in",), type=BYTE), shape=(4,)))


def test_what_is_valid_stays_as_it_is():
    """Validating twice changes nothing, and no field of a node is lost on the way."""
    for seed in range(3):
        b = every_operation(seed)
        graph = b.graph()
        for given, done, again in zip(b.nodes, graph.nodes, validate(graph).nodes):
            for field in fields(given):
                if field.name != "type":
                    assert getattr(done, field.name) is getattr(given, field.name)
            assert done.type == again.type and done.type.shape is not None
