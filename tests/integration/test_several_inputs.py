"""Networks of several inputs, from batches as data loaders give them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowbit
from lowbit import LowbitError
from lowbit.batches import parts_of, required_inputs


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 6)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, a, b, scale=None):
        return self.head(torch.abs(self.trunk(a) - self.trunk(b)))


A, B, LABELS = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.arange(4) % 3
BATCHES = {
    "tuple": (A, B),
    "list": [A, B],
    "with labels": (A, B, LABELS),
    "pair": ((A, B), LABELS),
    "names": {"a": A, "b": B},
    "names and labels": ({"a": A, "b": B}, LABELS),
}


@pytest.mark.parametrize("how", BATCHES)
@pytest.mark.parametrize("integer_only", [False, True])
def test_calibration_takes_several_inputs(how, integer_only):
    torch.manual_seed(0)
    model = Siamese()
    expected, found = (lowbit.prepare(model, integer_only=integer_only) for _ in range(2))
    lowbit.calibrate(expected, [{"a": A, "b": B}])
    lowbit.calibrate(found, [BATCHES[how]])
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in expected.state_dict().items())


def test_a_network_of_two_inputs_goes_the_whole_way_with_tuples(tmp_path):
    torch.manual_seed(0)
    prepared = lowbit.prepare(Siamese(), weights=4, activations=4, integer_only=True, example_input=(A, B))
    lowbit.calibrate(prepared, [(A, B)])
    integer = lowbit.to_integer(prepared.eval(), (A, B))
    report = lowbit.export(integer, tmp_path / "siamese.onnx", batches=[(A, B), ((A, B), LABELS)])
    assert report.ok and report.samples == 8
    report = lowbit.verify(prepared, tmp_path / "siamese.onnx", [(A, B, LABELS)])
    assert report.ok and report.top1 is not None
    with pytest.raises(LowbitError, match="a batch must be a tensor of inputs"):
        lowbit.verify(prepared, tmp_path / "siamese.onnx", [(A, B, LABELS, LABELS)])


def test_a_pair_of_one_input_is_input_and_label():
    assert required_inputs(Siamese()) == ["a", "b"] and required_inputs(nn.Linear(2, 2)) == ["input"]
    assert parts_of((A, LABELS), ["x"]) == (A, [LABELS])
    assert parts_of([A], ["x"]) == (A, []) and parts_of(A, ["x"]) == (A, [])
    assert parts_of((), ["x"]) == ((), [])
