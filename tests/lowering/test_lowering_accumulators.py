"""Biases that pass 32 bits on the accumulator's grid: a channel that is one code whatever its inputs is that code."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError
from lowbit.integer.graph import FloatType, TensorType
from lowbit.integer.ops import Convolution
from lowbit.integer.roundings import ROUNDINGS
from lowbit.lowering.accumulators import weight_and_bias
from tests.lowering.networks import Forward, finish, images

X = TensorType(2.0**-10, 0, 8, False, shape=(2, 3, 3))
Y = TensorType(0.5, 10, 6, False)
SCALE = torch.full((4,), 2.0**-20)
CODES = torch.tensor([[3, -2], [1, 1], [7, 7], [-8, 5]], dtype=torch.int8).reshape(4, 2, 1, 1)


def fitted(bias: list[float], y: TensorType | FloatType = Y):
    return weight_and_bias("layer 'a'", CODES, SCALE, 4, torch.tensor(bias, dtype=torch.float64), X, y)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_channels_that_are_one_code(rounding):
    """2^29 units of the accumulator are a step of the output: ±2^40 saturate, and 2^32 + 2^30 are 10 steps."""
    bias = [2.0**40, -(2.0**40), 1000.0, 2.0**32 + 2.0**30]
    weight, on_grid = fitted(bias)
    assert weight.codes[2].flatten().tolist() == [7, 7] and not bool(weight.codes[[0, 1, 3]].any())
    ones = {"stride": (1, 1), "padding": ((0, 0),) * 2, "dilation": (1, 1)}
    node = Convolution(
        name="c",
        inputs=("x",),
        type=TensorType(0.5, 10, 6, False, shape=(4, 3, 3)),
        weight=weight,
        bias=on_grid,
        **ones,
    )
    x = torch.randint(0, 256, (5, 2, 3, 3)).to(torch.uint8)
    got = node.execute([x], [X], ROUNDINGS[rounding])
    real = (F.conv2d(x.double(), CODES.double()) + torch.tensor(bias).reshape(-1, 1, 1)) * 2.0**-30 / 0.5
    assert torch.equal(got.double(), (real.round() + 10).clamp(0, 63))
    assert node.accumulator_bound([X]) < 2**13


def test_biases_that_fit_stay_as_they_are():
    weight, on_grid = fitted([2.0**31 - 20_000, -(2.0**30), 0.0, 5.0])
    assert torch.equal(weight.codes, CODES) and weight.scale.ndim == 0
    assert on_grid.tolist() == [2**31 - 20_000, -(2**30), 0, 5]


@pytest.mark.parametrize(
    ("bias", "y"),
    [
        (2.0**32 + 2.0**28, Y),  # 8.5 steps: the sum decides which way it goes
        (2.0**40, FloatType()),
        (float("inf"), Y),
        (float("nan"), Y),
    ],
)
def test_channels_that_are_more_than_one_code_are_refused(bias, y):
    with pytest.raises(LowbitError, match=r"layer 'a': its bias does not fit 32 bits"):
        fitted([0.0, bias, 0.0, 0.0], y=y)


def test_binary_weights_have_room_for_a_zero():
    codes = torch.ones(4, 2, 1, 1, dtype=torch.int8)
    weight, _ = weight_and_bias("a", codes, SCALE, 1, torch.tensor([2.0**40, 0, 0, 0], dtype=torch.float64), X, Y)
    assert weight.bits == 2 and weight.codes.flatten(1).sum(1).tolist() == [0, 2, 2, 2]
    weight, _ = weight_and_bias("a", codes, SCALE, 1, torch.zeros(4, dtype=torch.float64), X, Y)
    assert weight.bits == 1


def test_a_network_whose_batch_norm_dwarfs_its_layer(tmp_path):
    """What the layer gives is 10^-12 of what its batch-norm adds."""
    x = images(4, 3, 8, 8)
    model = Forward(lambda self, x: finish(self, F.relu6(self.norm(self.first(x)))))
    with torch.no_grad():
        model.first.weight.mul_(1e-9)
        model.norm.running_var.fill_(1.0)
        model.norm.bias.copy_(torch.tensor([1e3, -1e3, 1e4, 5e3, -1.0, 7e2, 1e3, 1e3]))
    model.eval()
    prepared = lowbit.calibrate(lowbit.prepare(model, weights=4, activations=4, integer_only=True), [x]).eval()
    network = lowbit.to_integer(prepared, x)
    report = lowbit.export(network, tmp_path / "network.onnx")
    assert report.ok and report.differ == 0
    assert lowbit.verify(prepared, tmp_path / "network.onnx", [x]).ok
