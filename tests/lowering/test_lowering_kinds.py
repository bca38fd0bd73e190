"""What a call in a network is taken for, and that faults of our own are not taken for the network's."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError
from lowbit.lowering import kinds as k
from lowbit.lowering.calls import arguments
from lowbit.lowering.handlers import HANDLERS
from tests.lowering.networks import Forward, agreement, finish, images, start, trained

X = images(4, 3, 9, 7)
METHODS = sorted(method for kind in k.KINDS for method in kind.methods)


def test_every_kind_has_a_handler_or_is_the_walks_own():
    assert set(k.KINDS) - set(HANDLERS) == {k.INPUT, k.OUTPUT, k.CONSTANT, k.SHAPE}


def test_no_spelling_has_two_kinds():
    spellings = [s for kind in k.KINDS for s in (*kind.functions, *kind.methods, *kind.modules, *kind.library_modules)]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize("name", [*METHODS, "getitem", "getattr", "cat", "interpolate", "0"])
def test_a_module_is_what_its_class_is_whatever_its_name(name):
    module = nn.Sequential(nn.Flatten())
    module.add_module(name, nn.AvgPool2d(2))
    graph = fx.Graph()
    node = graph.call_module(name, (graph.placeholder("x"),))
    modules = dict(module.named_modules())
    assert k.kinds_of(graph, modules)[node] is k.AVERAGE
    assert arguments(node, modules)["kernel_size"] == 2


@pytest.mark.parametrize("name", ["mean", "view", "pad", "interpolate", "chunk", "add_"])
def test_modules_named_like_operations_convert(name):
    def function(self, x):
        return finish(self, getattr(self, name)(start(self, x)))

    model = Forward(function)
    setattr(model, name, nn.AvgPool2d(2))
    if name == "mean":
        model.function = lambda self, x: self.head(self.second(self.mean(start(self, x))).flatten(2).mean(2))
    assert agreement(trained(model, X), X)[1] == 0


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (lambda x: torch.flatten(x, 1), {"input": "x", "start_dim": 1, "end_dim": -1}),
        (lambda x: x.flatten(start_dim=1), {"input": "x", "start_dim": 1, "end_dim": -1}),
        (lambda x: torch.mean(x, axis=(2, 3), keepdims=True), {"input": "x", "dim": (2, 3), "keepdim": True}),
        (lambda x: x.permute(0, 2, 1), {"input": "x", "dims": (0, 2, 1)}),
        (lambda x: x.permute((0, 2, 1)), {"input": "x", "dims": (0, 2, 1)}),
        (lambda x: torch.permute(input=x, dims=(0, 2, 1)), {"input": "x", "dims": (0, 2, 1)}),
        (lambda x: x.transpose(dim0=1, dim1=2), {"input": "x", "dim0": 1, "dim1": 2}),
        (lambda x: x.chunk(2, dim=1)[0], {"input": "chunk", "other": 0}),
        (lambda x: torch.split(x, 2, 1), {"input": "x", "split_size_or_sections": 2, "dim": 1}),
        (lambda x: x.split(2, 1), {"input": "x", "split_size": 2, "dim": 1}),
        (lambda x: 1 - x, {"input": 1, "other": "x"}),
        (lambda x: x.sub_(x, alpha=2), {"input": "x", "other": "x", "alpha": 2}),
        (lambda x: torch.clamp(x, max=3), {"input": "x", "min": None, "max": 3}),
        (lambda x: F.max_pool2d(x, 2), {"input": "x", "kernel_size": 2, "stride": None, "ceil_mode": False}),
        (lambda x: F.softplus(x, 3.0), {"input": "x", "beta": 3.0, "threshold": 20}),
        (lambda x: F.pad(x, (0, 1)), {"input": "x", "pad": (0, 1), "mode": "constant", "value": None}),
        (lambda x: x.contiguous(), {"input": "x"}),
    ],
)
def test_arguments_by_name(written, expected):
    *_, node, _ = fx.symbolic_trace(written).graph.nodes
    given = arguments(node, {})
    assert {name: str(v) if isinstance(v, fx.Node) else v for name, v in given.items() if name in expected} == expected


def test_a_fault_of_our_own_surfaces_as_itself(monkeypatch):
    def faulty(converter, node):
        raise KeyError("a bug")

    prepared = trained(Forward(lambda self, x: finish(self, F.silu(start(self, x)))), X)
    monkeypatch.setitem(HANDLERS, k.LOOKUP, faulty)
    with pytest.raises(KeyError, match="a bug"):
        lowbit.to_integer(prepared, X)


def test_a_forward_is_recorded_with_its_defaults():
    class Optional(Forward):
        def forward(self, x, targets=None, *more, scale=2, pair=(1, 2), **options):
            y = finish(self, start(self, x))
            return y if targets is None and scale == 2 else y.softmax(1)

    prepared = trained(Optional(None), X)
    assert agreement(prepared, X)[1] == 0
    with pytest.raises(TypeError):
        prepared(X, X)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda self, x: finish(self, torch.sub(x, x, alpha=x.shape[0])),
            "sub in the network's forward: alpha that forward computes",
        ),
        (
            lambda self, x: finish(self, start(self, x) + start(self, x).cumsum(x.shape[0])),
            r"form:\n  cumsum in the network's forward\n",
        ),
    ],
)
def test_calls_without_an_integer_form_are_named_before_training(function, words):
    with pytest.raises(LowbitError, match=words):
        lowbit.prepare(Forward(function), integer_only=True)
