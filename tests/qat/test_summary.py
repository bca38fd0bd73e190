"""The table of layers: multiply-accumulates against torch's own counter, and what is known before calibration."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lowbit
from lowbit import models

META = torch.device("meta")


@pytest.mark.parametrize("name", ["resnet152", "mixnet-s", "shufflenetv2-x0.5", "deit-tiny", "squeezenext-23-2x", "ds-cnn"])  # fmt: skip
def test_multiply_accumulates_of_whole_networks_without_calibration_or_memory(name: str) -> None:
    pytest.importorskip("timm")
    with META:
        network = models.create(name).eval()
        example = torch.empty(1, *models.NETWORKS[name].input_shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example)
    rows = lowbit.layer_table(lowbit.prepare(network), example)
    assert 2 * sum(row.macs for row in rows) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, groups=2), (4, 9)),
        (nn.Conv3d(2, 4, 3), (2, 5, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), (4, 5, 5)),
        (nn.Linear(5, 7), (3, 5)),
    ],
)
def test_multiply_accumulates_of_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, *shape))
    for example in (torch.zeros(1, *shape), torch.zeros(1, *shape, device=META)):
        [row] = lowbit.layer_table(lowbit.prepare(nn.Sequential(layer)), example)
        assert 2 * row.macs == counter.get_total_flops()


def test_counting_leaves_the_network_as_it_was() -> None:
    model = lowbit.prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    lowbit.layer_table(model, torch.empty(1, 3, 3, 3, device=META))
    lowbit.layer_table(model, torch.randn(1, 3, 3, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert all(module.training for module in model.modules()) and not model[0]._forward_hooks


def test_grids_that_are_known_before_any_data() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    for method, activations in (("lsq", "from data"), ("lsq+2", "3-bit signed [-4, 3]"), ("lsq+4", "3-bit unsigned [0, 7]")):  # fmt: skip
        row = lowbit.layer_table(lowbit.prepare(network, weights=2, activations=3, method=method, narrow=False))[1]
        assert (row.weight_grid, row.activation_grid) == ("2-bit signed [-2, 1]", activations)
    row = lowbit.layer_table(lowbit.prepare(network, weights=2, activations=3, method="lsq+3", narrow=True))[1]
    assert (row.weight_grid, row.activation_grid) == ("2-bit narrow signed [-1, 1]", "3-bit narrow signed [-3, 3]")
    model = lowbit.prepare(network, weights=2, activations=3)
    lowbit.calibrate(model, [torch.randn(16, 8)])
    assert [row.activation_grid for row in lowbit.layer_table(model)][1] == "3-bit unsigned [0, 7]"


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:4", "channels:2"])
def test_granularity_is_read_back_from_the_steps(granularity: str) -> None:
    network = nn.Sequential(nn.Conv2d(4, 6, 2), nn.Flatten(), nn.Linear(6, 6))
    rules = [] if granularity != "group:4" else [lowbit.Rule("2", granularity="tensor")]
    model = lowbit.prepare(network, granularity=granularity, rules=rules)
    row = lowbit.layer_table(model)[0]
    assert row.granularity == row.as_dict()["granularity"] == granularity


def test_granularity_of_a_transposed_layer() -> None:
    [row] = lowbit.layer_table(lowbit.prepare(nn.Sequential(nn.ConvTranspose2d(4, 6, 3)), granularity="channel"))
    assert (row.steps, row.granularity) == (6, "channel")


def test_layers_in_full_precision_have_rows() -> None:
    network = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    for model in (network, lowbit.prepare(network, rules=[lowbit.Rule("0", skip=True)])):
        row = lowbit.layer_table(model, torch.zeros(1, 8))[0]
        assert (row.kind, row.weight_bits, row.activation_grid, row.steps, row.method) == (
            "Linear",
            None,
            "float",
            0,
            "-",
        )
        assert (row.macs, row.bit_operations, row.size_bits, row.granularity) == (32, 32 * 1024, 1024, "-")


class Tied(nn.Module):
    """Words in, words out, with one matrix of 100 × 8 for both."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 8)
        self.middle = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 100, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.middle(self.embedding(x)))


@pytest.mark.filterwarnings("ignore::lowbit.UnquantizedWarning")
def test_a_weight_shared_with_a_layer_in_full_precision_is_stored_in_both_forms() -> None:
    model = lowbit.prepare(Tied(), weights=4, activations=None, first_last=4)
    assert lowbit.model_size_bits(model) == 800 * (32 + 4) + 64 * 4 + 2 * 32  # and two steps
    assert lowbit.model_size_bits(Tied()) == 864 * 32


def test_a_weight_of_two_layers_is_stored_once_for_each_of_its_quantizers() -> None:
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    second.weight = first.weight
    once = lowbit.prepare(nn.Sequential(first, first), weights=4, activations=None, first_last=4)
    twice = lowbit.prepare(
        nn.Sequential(first, second), weights=4, activations=None, first_last=4, rules=[lowbit.Rule("1", weights=2)]
    )
    assert lowbit.model_size_bits(once) == 64 * 4 + 32
    assert lowbit.model_size_bits(twice) == 64 * (4 + 2) + 2 * 32
