"""hls4ml's files: types and refusals without hls4ml, and its C simulation against the reference where it is installed."""

from __future__ import annotations

import shutil
import tarfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.lowering.test_lowering_powers import Residual, block, trained
from torch import nn

import lowbit
from lowbit import LowbitError
from lowbit.formats.hls4ml.fixed import holding, of_codes
from lowbit.formats.hls4ml.layers import layer_name, project
from lowbit.integer.graph import TensorType


def integer(network: nn.Module, *shape: int, bits: int = 4, **options) -> tuple[lowbit.IntegerNetwork, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.rand(16, *shape)
    network(x)
    options = {"scales": "power-of-two", "integer_only": True, **options}
    prepared = lowbit.prepare(network, weights=bits, activations=bits, **options)
    return lowbit.to_integer(lowbit.calibrate(prepared, [x]).eval(), x[:1]), x


def parsed(kind: str) -> tuple[bool, int, int]:
    """(signed, width, integer)."""
    width, whole, *_ = kind.partition("<")[2].rstrip(">").split(",")
    return not kind.startswith("u"), int(width), int(whole)


@given(st.integers(0, 10**6), st.integers(-30, 30), st.booleans())
def test_a_type_holds_its_bound_and_no_more(multiple, last, signed):
    signed_, width, whole = parsed(holding(multiple * 2.0**last, last, signed=signed))
    assert signed_ == signed and whole - width == last
    largest = 2 ** (width - signed) - 1
    assert multiple <= largest and (multiple > largest // 2 or width - signed == 1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (TensorType(0.25, 0, 4, False), "ufixed<4,2,RND_CONV,SAT>"),
        (TensorType(2.0**-9, 0, 8, True), "fixed<8,-1,RND_CONV,SAT>"),
        (TensorType(8.0, 0, 2, True, True), "fixed<2,5,RND_CONV,SAT_SYM>"),
    ],
)
def test_types_of_codes(kind, expected):
    assert of_codes("x", kind) == expected


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (TensorType(0.3, 0, 4, False), "node 'x': its step 0.3 is not a power of two.*scales='power-of-two'"),
        (TensorType(0.25, 2, 4, False), "node 'x': its zero point is 2"),
    ],
)
def test_grids_that_fixed_point_numbers_lack(kind, words):
    with pytest.raises(LowbitError, match=words):
        of_codes("x", kind)


def test_accumulators_are_as_wide_as_the_bound():
    network, _ = integer(Residual(), 3, 8, 8)
    made, costs = project(network.graph), {row.name: row for row in network.costs()}
    for node in network.graph.nodes:
        if hasattr(node, "weight") and node.weight.scale.ndim == 0:
            _, width, _ = parsed(made.settings[layer_name(node.name)]["Precision"]["accum"])
            assert width == costs[node.name].accumulator_bits, node.name


@pytest.mark.parametrize(
    ("layers", "shape", "words"),
    [
        ([nn.Conv2d(4, 4, 3, groups=2)], (4, 6, 6), "has 2 groups"),
        ([nn.Conv2d(1, 4, 3, dilation=2)], (1, 8, 8), "dilation"),
        ([nn.Conv3d(1, 2, 2)], (1, 4, 4, 4), "in 3 dimensions"),
        ([nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(4, 2, 1)], (1, 8, 8), "padding"),
        ([nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 1)], (1, 8, 8), "no form of Lookup"),
        ([nn.Linear(6, 4)], (3, 6), "over leading dimensions"),
    ],
)
def test_what_has_no_form_is_refused_by_name(layers, shape, words, tmp_path):
    network, _ = integer(nn.Sequential(*layers), *shape)
    with pytest.raises(LowbitError, match=rf"node '.*{words}|{words}"):
        lowbit.export(network, tmp_path / "net.fml", "hls4ml")
    assert not list(tmp_path.iterdir())


def test_free_steps_are_refused_with_the_remedy(tmp_path):
    network, _ = integer(nn.Sequential(nn.Linear(6, 4)), 6, scales="free")
    with pytest.raises(
        LowbitError, match=r"node 'input_codes'.*not a power of two.*--quantization.scales power-of-two"
    ):
        lowbit.export(network, tmp_path / "net.fml", "hls4ml")


installed = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: apt install g++")


def simulated(network, x, folder):
    pytest.importorskip("hls4ml", reason="hls4ml is not installed: pip install 'lowbit[hls4ml]'")
    report = lowbit.export(network, folder / "net.fml", "hls4ml", batches=[x])
    assert report.ok and report.compared > 0, report.text()
    return report


@installed
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_multilayer_perceptron(tmp_path):
    layers = [
        nn.Flatten(),
        nn.Linear(24, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    ]
    network, x = integer(nn.Sequential(*layers), 1, 4, 6, granularity="channel", narrow=True)
    simulated(network, x, tmp_path)
    with pytest.raises(LowbitError, match="was not exported from this network"):
        lowbit.verify(integer(nn.Sequential(nn.Linear(6, 4)), 6)[0], tmp_path / "net.fml", [torch.rand(1, 6)])
    with tarfile.open(tmp_path / "net.fml", "w:gz") as archive:
        archive.add(__file__, arcname="../elsewhere")
    with pytest.raises(LowbitError, match="lies elsewhere"):
        lowbit.verify(network, tmp_path / "net.fml", [x])


@installed
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_residual_network(tmp_path):
    """Streams: padded, strided and depthwise convolutions, a sum, a change of grid, averages of 4, 16 and 9 positions, flattening."""
    prepared, x = trained()
    report = simulated(lowbit.to_integer(prepared, x[:1]), x[:2], tmp_path)
    assert report.conversion_differ == 0
    torch.manual_seed(1)
    network, x = integer(
        nn.Sequential(
            block(2, 4, 2), nn.MaxPool2d(2), block(4, 8), nn.AvgPool2d(3), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(16, 3),
        ),
        2, 24, 24,
    )  # fmt: skip
    simulated(network, x[:2], tmp_path)
