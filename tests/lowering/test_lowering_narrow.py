"""Accumulators of a given width: no sum of codes can pass it, training improves under it, and what would is named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError
from lowbit.layers.quantized import QuantizedLayer

LAYERS = {
    "linear": (lambda: nn.Linear(24, 5), (24,)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5)),
}


def worst_sums(layer: QuantizedLayer, x: torch.Tensor) -> torch.Tensor:
    """Of every output, over all inputs on the grid of the input's quantizer: the layer itself, on the codes that are worst."""
    codes, grid = layer.weight_quantizer.codes(layer.quantized_from()).double(), layer.input_quantizer.grid
    zero = layer.input_quantizer.zero_point.double()
    reach = torch.maximum((grid.qn - zero).abs(), (grid.qp - zero).abs())
    plain = {k: getattr(layer, k) for k in ("stride", "padding", "groups") if hasattr(layer, k)}
    function = {nn.Linear: F.linear, nn.Conv2d: F.conv2d, nn.ConvTranspose2d: F.conv_transpose2d}
    compute = next(f for kind, f in function.items() if isinstance(layer, kind))
    return compute(torch.ones_like(x, dtype=torch.float64) * reach, codes.abs(), **plain)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 8), st.integers(2, 8), st.integers(8, 18), st.integers(0, 10**6), st.floats(0.05, 20), st.booleans()
)
def test_no_sum_passes_the_accumulator(kind, granularity, bits, activations, width, seed, spread, signed):
    build, shape = LAYERS[kind]
    generator = torch.Generator().manual_seed(seed)
    layer = build()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * spread)
        layer.weight *= torch.exp(
            torch.randn(layer.weight.shape[0], *[1] * (layer.weight.dim() - 1), generator=generator)
        )
    x = torch.rand(4, *shape, generator=generator) - 0.3 * signed
    options = {"weights": bits, "activations": activations, "first_last": bits, "granularity": granularity}
    free, bound = (
        lowbit.calibrate(lowbit.prepare(nn.Sequential(layer), accumulator_bits=each, **options), [x])[0]
        for each in (None, width)
    )
    most = 2 ** (width - 1) - 1
    assert float(worst_sums(bound, x).max()) <= most
    one, other = (each.weight_quantizer.codes(each.quantized_from()) for each in (free, bound))
    assert bool((other.abs() <= one.abs()).all()) and bool((other * one >= 0).all())  # only ever nearer to 0
    if float(worst_sums(free, x).max()) <= most:
        assert torch.equal(one, other)


def test_a_channel_uses_what_there_is():
    """The threshold is the least: a channel beyond the bound ends less than what one more step of its weights would add below it."""
    torch.manual_seed(0)
    prepared = lowbit.prepare(nn.Sequential(nn.Linear(64, 32)), weights=8, activations=4, first_last=None, accumulator_bits=12,
                              rules=[lowbit.Rule("0", weights=8, activations=4)])  # fmt: skip
    x = torch.rand(16, 64)
    (layer,) = lowbit.calibrate(prepared, [x])
    norms = layer.weight_quantizer.codes(layer.quantized_from()).abs().sum(1)
    most = (2**11 - 1) // 15
    assert bool((norms <= most).all()) and bool((norms > most - 4).all())


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16),
            nn.ReLU(), nn.Flatten(), nn.Linear(256, 4),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Which quarter of a picture is brighter."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (256,), generator=generator)
    x = torch.rand(256, 1, 8, 8, generator=generator) * 0.7
    for k, label in enumerate(y.tolist()):
        x[k, 0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 0.3
    return x, y


@pytest.mark.parametrize("scales", ["free", "power-of-two"])
def test_training_keeps_to_it_and_improves(scales, tmp_path):
    torch.manual_seed(0)
    x, y = data()
    network = Small()
    for _ in range(10):
        network(x)
    prepared = lowbit.prepare(
        network, weights=4, activations=4, first_last=4, integer_only=True, accumulator_bits=12, scales=scales
    )
    lowbit.calibrate(prepared, [x])
    optimizer = torch.optim.SGD(lowbit.parameter_groups(prepared, weight_decay=1e-4), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(prepared(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    prepared.eval()
    integer = lowbit.to_integer(prepared, x[:1], accumulator_bits=12)
    for node in integer.graph.nodes:
        if hasattr(node, "weight"):
            assert node.accumulator_bound(integer.graph.input_types(node)) <= 2**11 - 1
    assert {row.accumulator_bits for row in integer.costs() if row.macs} <= set(range(2, 13))
    assert lowbit.export(integer, tmp_path / "net.onnx", batches=[x]).ok
    assert lowbit.verify(prepared, tmp_path / "net.onnx", [x]).ok
    codes = integer.codes(x)  # and the sums that there really are
    assert all(int(codes[node.name].abs().max()) < 2**11 for node in integer.graph.nodes if hasattr(node, "weight"))


def test_without_it_the_layers_that_would_overflow_are_named():
    torch.manual_seed(0)
    x, _ = data()
    prepared = lowbit.calibrate(lowbit.prepare(Small().eval(), weights=8, activations=8, integer_only=True), [x]).eval()
    with pytest.raises(
        LowbitError,
        match=r"overflow accumulators of 16 bits: .*body_7 needs \d+ bits \([\d,]+, [\d.]+ times.*accumulator_bits=16",
    ):
        lowbit.to_integer(prepared, x[:1], accumulator_bits=16)
    rows = lowbit.to_integer(prepared, x[:1], accumulator_bits=24).costs()
    assert max(row.accumulator_bits for row in rows) > 16


def test_the_gradient_goes_to_all_weights():
    torch.manual_seed(0)
    x = torch.rand(16, 24)
    prepared = lowbit.prepare(nn.Sequential(nn.Linear(24, 5)), first_last=4, accumulator_bits=9)
    (layer,) = lowbit.calibrate(prepared, [x])
    moved = layer.quantized_from()
    assert bool((moved == 0).any())
    gradient = torch.randn_like(moved)
    moved.backward(gradient)
    assert torch.equal(layer.weight.grad, gradient)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accumulator_bits": 1}, r"layer '0': accumulator_bits must be .* from 2 to 32"),
        ({"accumulator_bits": 16, "activations": None}, "layer '0' has a side in full precision"),
        ({"accumulator_bits": 16, "method": "dorefa"}, "layer '0': method 'dorefa' sets"),
        ({"accumulator_bits": 16, "weights": 1, "first_last": 1}, "layer '0': codes of one bit"),
    ],
)
def test_what_has_no_bound_is_refused(options, words):
    with pytest.raises(LowbitError, match=words):
        lowbit.prepare(nn.Sequential(nn.Linear(4, 4)), **options)


def test_a_rule_leaves_a_layer_out_and_it_compiles():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)), torch.rand(16, 24)
    rules = [lowbit.Rule("2", accumulator_bits=None)]
    prepared = lowbit.calibrate(lowbit.prepare(network, first_last=4, accumulator_bits=9, rules=rules), [x])
    assert (prepared[0].accumulator_bits, prepared[2].accumulator_bits) == (9, None)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(prepared, fullgraph=True, backend="aot_eager")(x), prepared(x))
