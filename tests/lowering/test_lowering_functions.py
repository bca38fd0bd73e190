"""Functions of one value in every spelling: the table is the function between its grids, and the ONNX file has its codes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError
from lowbit.integer.ops import Lookup, LookupPerChannel
from lowbit.lowering.functions import FUNCTIONS, METHODS
from tests.lowering.networks import Forward, agreement, finish, images, start, trained

X = images(4, 3, 6, 5)


def in_place(x):
    x = x.clone()
    x += 1
    x *= 0.5
    return x.neg_()


FUNCTIONS_OF_ONE = {
    "x + 1": lambda x: x + 1,
    "1 + x": lambda x: 1 + x,
    "torch.add": lambda x: torch.add(x, 2, alpha=3),
    "2 - x": lambda x: 2 - x,
    "x.sub(2)": lambda x: x.sub(2),
    "torch.rsub": lambda x: torch.rsub(x, 2, alpha=0.5),
    "x * 0.3": lambda x: x * 0.3,
    "torch.mul": lambda x: torch.mul(input=x, other=-2.5),
    "x.multiply": lambda x: x.multiply(1 / 3),
    "x / 6": lambda x: x / 6,
    "3 / (x + 1)": lambda x: 3 / (x + 1),
    "x.div_": lambda x: x.clone().div_(4),
    "-x": lambda x: -x,
    "in place": in_place,
    "x ** 2": lambda x: x**2,
    "2 ** x": lambda x: 2 ** (x / 4),
    "x.pow(3)": lambda x: x.pow(3),
    "torch.pow": lambda x: torch.pow(x + 0.1, 0.5),
    "abs": lambda x: (x - 1).abs(),
    "torch.abs": lambda x: torch.abs(x - 1),
    "sqrt": lambda x: torch.sqrt(x + 0.1),
    "rsqrt": lambda x: (x + 0.5).rsqrt(),
    "exp": lambda x: torch.exp(-x),
    "log": lambda x: x.clamp_min(0.1).log(),
    "log1p": torch.log1p,
    "square": lambda x: F.relu(x - 0.5).square(),
    "reciprocal": lambda x: torch.reciprocal(x + 1),
    "erf": lambda x: torch.erf(x),
    "sin": lambda x: torch.sin(3 * x).cos(),
    "clamp_min": lambda x: torch.clamp_min(x, 0.3),
    "clamp_max": lambda x: x.clamp_max(0.7),
    "clip": lambda x: torch.clip(x, 0.2, 0.9),
    "clip_": lambda x: x.clone().clip_(max=0.9),
    "hardtanh_": lambda x: F.hardtanh_(x - 1, -0.5, 0.5),
    "relu6": lambda x: x * F.relu6(x + 3) / 6,
    "leaky": lambda x: F.leaky_relu(x - 1, 0.2),
    "celu": lambda x: F.celu(x - 1, 0.7),
    "selu": lambda x: F.selu(x - 1),
    "softsign": lambda x: F.softsign(x - 1),
    "logsigmoid": lambda x: F.logsigmoid(x),
    "threshold": lambda x: F.threshold(x, 0.4, -1),
    "hardshrink": lambda x: F.hardshrink(x - 1, 0.3),
    "softshrink": lambda x: F.softshrink(x - 1, 0.3),
    "tanhshrink": lambda x: F.tanhshrink(x),
    "tanh_": lambda x: x.clone().tanh_(),
    "hand-made swish": lambda x: x * (1 / (1 + (-x).exp())),
    "hand-made gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
}


@pytest.mark.parametrize("name", FUNCTIONS_OF_ONE)
def test_functions(name, tmp_path):
    """Trained against integers (which `to_integer` also proves node by node), and integers against their file."""
    function = FUNCTIONS_OF_ONE[name]
    prepared = trained(Forward(lambda self, x: finish(self, function(start(self, x)))), X)
    compared, differ = agreement(prepared, X)
    assert compared > 1000 and differ <= 0.002 * compared
    network = lowbit.to_integer(prepared, X)
    assert any(isinstance(node, Lookup) for node in network.graph.nodes)
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0
    prepared.train()(X).square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in prepared.parameters() if p.grad is not None)


LAYERS = [
    nn.LeakyReLU(0.2, inplace=True), nn.CELU(), nn.SELU(inplace=True), nn.Softsign(), nn.LogSigmoid(), nn.Hardshrink(),
    nn.Softshrink(), nn.Tanhshrink(), nn.Threshold(0.1, -2), nn.RReLU(), nn.PReLU(),
]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_layers(layer, tmp_path):
    prepared = trained(Forward(lambda self, x: finish(self, self.act(self.norm(self.first(x)))), act=layer), X)
    network = lowbit.to_integer(prepared, X)
    assert any(isinstance(node, Lookup) for node in network.graph.nodes)
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0


def test_prelu_per_channel(tmp_path):
    layer = nn.PReLU(8)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 2, 8))
    prepared = trained(Forward(lambda self, x: finish(self, self.act(self.norm(self.first(x)))), act=layer), X)
    network = lowbit.to_integer(prepared, X)
    (node,) = (node for node in network.graph.nodes if isinstance(node, LookupPerChannel))
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0
    path = network.save(tmp_path / "network.lowbit") or tmp_path / "network.lowbit"
    assert torch.equal(lowbit.IntegerNetwork.load(path).graph.by_name[node.name].tables, node.tables)
    (x,), y = network.graph.input_types(node), node.type
    real = x.scale * (torch.arange(x.qn, x.qp + 1) - x.zero_point)
    want = (F.prelu(real[:, None].expand(-1, 8), layer.weight.detach()).T / y.scale).round() + y.zero_point
    assert torch.equal(node.tables.float(), want.clamp(y.qn, y.qp))


@pytest.mark.parametrize(("slopes", "operation"), [(1, Lookup), (8, LookupPerChannel)])
def test_prelu_as_a_function(slopes, operation, tmp_path):
    """The slopes are the network's parameter: no quantizer stands on them."""
    model = Forward(lambda self, x: finish(self, F.prelu(self.norm(self.first(x)), self.slopes)))
    model.slopes = nn.Parameter(torch.linspace(-0.5, 1, slopes))
    prepared = trained(model, X)
    network = lowbit.to_integer(prepared, X)
    assert any(isinstance(node, operation) for node in network.graph.nodes)
    assert lowbit.export(network, tmp_path / "network.onnx").differ == 0
    prepared.train()(X).square().mean().backward()
    assert bool(prepared.slopes.grad.any())


def test_one_after_the_other_is_one_table():
    """Nothing stands between them: no quantizer, no table of their own."""
    prepared = trained(Forward(lambda self, x: finish(self, ((start(self, x) + 3).clamp(1, 5) / 6).sqrt())), X)
    network = lowbit.to_integer(prepared, X)
    (node,) = (node for node in network.graph.nodes if isinstance(node, Lookup))
    (x,), y = network.graph.input_types(node), node.type
    real = x.scale * (torch.arange(x.qn, x.qp + 1) - x.zero_point)
    want = (((real + 3).clamp(1, 5) / 6).sqrt() / y.scale).round() + y.zero_point
    assert torch.equal(node.table.float(), want.clamp(y.qn, y.qp))


def shared(function):
    """The function of a tensor that is never 0, and that is on a grid with 0 because something else takes it too."""

    def of(self, x):
        x = self.norm(self.first(x)).clamp(0.5, 3)
        return finish(self, x + function(x))

    return of


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: 1 / x, r"truediv in the network's forward has no finite value at 0, which is one of the 256 values"),
        (lambda x: x.log(), "log in .* has no finite value at 0"),
        (lambda x: (x - 0.4).sqrt(), r"root in .* has no finite value at 0, .*\(\d+ have none\).*by a clamp"),
    ],
)
def test_codes_without_a_value_are_refused(function, words):
    prepared = trained(Forward(shared(function)), X)
    with pytest.raises(LowbitError, match=words):
        lowbit.to_integer(prepared, X)


def test_sum_begins_with_nothing():
    network = lowbit.to_integer(trained(Forward(lambda self, x: finish(self, sum([start(self, x)]))), X), X)
    assert not any(isinstance(node, Lookup) for node in network.graph.nodes)


def test_every_spelling_takes_one_value():
    """Each gives a tensor of the shape that it is given, element by element: what a table can say."""
    x = torch.linspace(0.1, 0.9, 7)
    numbers = {"pow": (2,), "rsub": (2,), "threshold": (0.5, 1), "truediv": (2,), "itruediv": (2,), "ipow": (2,)}
    numbers |= dict.fromkeys(("div", "divide", "true_divide"), (2,))
    for spelled in (*FUNCTIONS, *METHODS):
        name = spelled if isinstance(spelled, str) else spelled.__name__
        call = (lambda v, *rest, m=spelled: getattr(v, m)(*rest)) if isinstance(spelled, str) else spelled
        more = numbers.get(name.strip("_"), ())
        whole = call(x.clone(), *more)
        assert whole.shape == x.shape, name
        torch.testing.assert_close(whole.flip(0), call(x.flip(0), *more), equal_nan=True, msg=name)


ROOTS = {
    "torch.sqrt": torch.sqrt,
    "x.sqrt": lambda x: x.sqrt(),
    "in place": lambda x: x.clone().sqrt_(),
    "x ** 0.5": lambda x: x**0.5,
    "torch.pow": lambda x: torch.pow(x, 0.5),
    "torch.norm": lambda x: torch.norm(x, p=2, dim=(2, 3), keepdim=True),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True),
}


@pytest.mark.parametrize("spelling", ROOTS)
def test_a_root_of_what_rounds_to_zero_has_a_gradient(spelling):
    root = Forward(lambda self, x: self.second(ROOTS[spelling](F.relu(self.first(x)))))
    prepared = lowbit.prepare(root, weights=4, activations=4, integer_only=True, example_input=X)
    lowbit.calibrate(prepared, [X]).train()
    prepared(torch.cat([X[:1] * 0, X])).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in prepared.parameters() if p.grad is not None)
    assert bool(prepared.first.weight.grad.any())
    agreement(prepared.eval(), X)
