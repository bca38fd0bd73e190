"""What is written out while a network is recorded computes what torch does, and goes into integers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError
from lowbit.integer.ops import Constant, Convolution, Linear, Lookup, MatMul
from lowbit.qat.calibrate import observed
from tests.lowering.networks import Forward, agreement, finish, images, start

X = images(4, 3, 6, 6)


def proved(model: nn.Module, tmp_path, x: torch.Tensor = X, ties: float = 0.002) -> lowbit.IntegerNetwork:
    """Recorded as it computes, trained form against integers (but for a share of ties), integers against their ONNX file."""
    torch.manual_seed(0)
    expected = model.eval()(x)
    prepared = lowbit.prepare(model, weights=8, activations=8, integer_only=True, example_input=x[:1])
    lowbit.calibrate(prepared, [x])
    with observed(prepared, []):  # in full precision
        torch.testing.assert_close(prepared.eval()(x), expected, rtol=1e-4, atol=1e-4)
    compared, differ = agreement(prepared, x)
    assert compared > 400 and differ <= ties * compared
    prepared.train()(x).square().mean().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in prepared.parameters())
    network = lowbit.to_integer(prepared.eval(), x)
    report = lowbit.export(network, tmp_path / "network.onnx")
    assert report.ok and report.differ == 0
    return network


def tokens(self, x):
    """Features in the shape (batch, 36, 8)."""
    return start(self, x).flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: start(self, x).unfold(2, 4, 2).unfold(3, 3, 3).flatten(2).mean(2),
        lambda self, x: F.unfold(start(self, x), 3, padding=1, stride=2).mean(2)[:, ::9],
        lambda self, x: F.unfold(start(self, x), (2, 3), dilation=(2, 1)).mean(2)[:, ::6],
        lambda self, x: F.unfold(start(self, x), 2, stride=2).mean(2)[:, ::4],
        lambda self, x: F.fold(F.unfold(start(self, x), 3, padding=1, stride=2), (6, 6), 3, padding=1, stride=2).mean(
            (2, 3)
        ),
        lambda self, x: F.fold(F.unfold(start(self, x), 2, stride=2), (6, 6), 2, stride=2).mean((2, 3)),
        lambda self, x: F.pad(start(self, x), (1, 0, 0, 2), value=1.5).mean((2, 3)),
        lambda self, x: start(self, x).flatten(2).max(2)[0],
        lambda self, x: torch.min(self.second(start(self, x)).flatten(2), dim=2).values,
        lambda self, x: torch.maximum(start(self, x), self.second(start(self, x))).mean((2, 3)),
        lambda self, x: torch.cat([tokens(self, x)[:, :0], tokens(self, x)], 1).mean(1),
        lambda self, x: torch.cat(tensors=[tokens(self, x)[:, :0], tokens(self, x), tokens(self, x)], dim=1).mean(1),
    ],
)
def test_windows_padding_and_maxima(function, tmp_path):
    proved(Forward(lambda self, x: self.head(function(self, x))), tmp_path)


def test_layers_for_windows(tmp_path):
    def forward(self, x):
        return finish(self, self.fold(self.unfold(start(self, x))))

    how = dict(kernel_size=3, padding=1, stride=2)
    proved(Forward(forward, unfold=nn.Unfold(**how), fold=nn.Fold((6, 6), **how)), tmp_path)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: torch.add(x, y, alpha=-0.5),
        lambda x, y: torch.sub(input=x, other=y, alpha=3).add(2, alpha=0.25),
        lambda x, y: x.clone().sub_(y, alpha=2),
        lambda x, y: torch.lerp(x, end=y, weight=0.3),
        lambda x, y: x.lerp(y, y.sigmoid()),
        lambda x, y: torch.addcdiv(x, x, y + 2, value=0.5),
        lambda x, y: x.addcmul(x, y, value=-1),
    ],
)
def test_sums_with_factors(function, tmp_path):
    proved(
        Forward(lambda self, x: finish(self, function(start(self, x), self.second(start(self, x)).relu()))), tmp_path
    )


class Einsum(nn.Module):
    """An equation on features of a sequence, with a parameter or with other features."""

    def __init__(self, equation: str, *shape: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.LazyLinear(5)
        self.equation, self.table = equation, nn.Parameter(torch.randn(*shape)) if shape else None

    def forward(self, x):
        q = self.embed(x)
        other = self.table if self.table is not None else q * 0.5
        return self.head(torch.einsum(self.equation, q, other).flatten(1))


SEQUENCE = torch.randn(4, 6, 6, 6, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("bhwc,hkc->bhwk", (6, 3, 8)),
        ("bhwc,wkc->bhwk", (6, 3, 8)),
        ("bhwc,cd->bhwd", (8, 7)),
        ("bhwc, kdc -> bkdhw", (2, 3, 8)),
        ("bhwc,bhvc->bhwv", ()),
        ("bhwc,bhwc->bhw", ()),
        ("bhwc,c->bhwc", (8,)),
        ("...c,cd->...d", (8, 3)),
        ("bhwc,hv", (6, 4)),
        ("bhwc,dc->bd", (3, 8)),
    ],
)
def test_einsum(equation, shape, tmp_path):
    model = Einsum(equation, *shape)
    model(SEQUENCE)
    network = proved(model, tmp_path, SEQUENCE)
    weight = shape and equation.replace(" ", "").startswith(("bhwc,cd", "bhwc,kdc", "...c"))
    assert not (weight and any(isinstance(node, MatMul) for node in network.graph.nodes)), (
        "a product with a weight is a layer"
    )


def test_einsum_of_three_and_of_a_list(tmp_path):
    def forward(self, x):
        y = tokens(self, x)
        return self.head(torch.einsum("bnc,cd,de->bne", [y, self.a, self.b]).mean(1))

    model = Forward(forward)
    model.a, model.b = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4, 8))
    proved(model, tmp_path)


def test_einsum_with_a_letter_twice_is_refused():
    model = Forward(lambda self, x: self.head(torch.einsum("bcii->bc", start(self, x))))
    with pytest.raises(LowbitError, match="letter of a tensor twice"):
        lowbit.prepare(model, integer_only=True, example_input=X)


def scores(self, x):
    y = tokens(self, x)
    attention = y @ y.transpose(1, 2)
    attention[:, 1:, :3] = attention[:, 1:, :3] + 1.0
    return (attention.softmax(-1) @ y).mean(1)


def number(self, x):
    y = self.second(start(self, x))
    z = y + start(self, x)
    z[..., 0, 1:3] = 0.25
    z[:, 2] = y[:, 3]
    return z.mean((2, 3))


@pytest.mark.parametrize("function", [scores, number])
def test_assignment_to_a_part(function, tmp_path):
    proved(Forward(lambda self, x: self.head(function(self, x))), tmp_path)


def seen_before(self, x):
    y = start(self, x) + self.second(start(self, x))
    part = y[:, 1:]
    y[:, 1:] = 0
    return y.mean((2, 3)) + part.mean()


def of_a_view(self, x):
    y = start(self, x).flatten(2)
    y[:, 1:] = 0
    return y.mean(2)


@pytest.mark.parametrize("function", [seen_before, of_a_view])
def test_assignment_that_others_would_see_is_refused(function):
    model = Forward(lambda self, x: self.head(function(self, x)))
    with pytest.raises(LowbitError, match=r"torch\.fx cannot follow .* part of a"):
        lowbit.prepare(model, integer_only=True, example_input=X)


class Bounded(nn.Module):
    """Clamps whose bounds are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        for name, value in (("low", -0.3), ("high", 0.5), ("open", float("inf"))):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x):
        x = torch.clamp(self.first(x), self.low, self.high).clamp(max=self.open)
        return self.head(x.mean((2, 3)).clamp(min=self.low))


def test_clamps_at_numbers_that_the_network_holds(tmp_path):
    network = proved(Bounded(), tmp_path)
    assert not any(isinstance(node, Constant) for node in network.graph.nodes)


class LinearNorm(nn.Module):
    """Batch-norm of a linear layer on a sequence, flattened for it, as LeViT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.other, self.head = nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.linear(x.flatten(1, 2))
        batch, count, _ = x.shape
        x = self.norm(x.flatten(0, 1)).reshape_as(x).relu()
        x = x + self.other(x.reshape(batch * count, 8)).view(batch, count, 8)
        return self.head(x.mean(1))


def test_batch_norm_of_a_flattened_sequence(tmp_path):
    model = LinearNorm()
    for norm in (model.norm, model.other):
        nn.init.uniform_(norm.weight, -1, 1)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
    network = proved(model, tmp_path, SEQUENCE)
    assert (
        sum(isinstance(node, (Linear, Convolution)) for node in network.graph.nodes) == 3
    )  # the first is in its layer


class PositionNorm(nn.Module):
    """Batch-norm of the positions behind a linear layer on features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(36), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.norm(self.linear(x.flatten(1, 2))).mean(1))


def test_batch_norm_of_another_dimension_than_features(tmp_path):
    model = PositionNorm()
    nn.init.normal_(model.norm.bias)
    proved(model, tmp_path, SEQUENCE)


def test_a_layer_on_constants_alone(tmp_path):
    def forward(self, x):
        y = start(self, x)
        grid = torch.linspace(-1, 1, 36).reshape(1, 1, 6, 6).repeat(1, 3, 1, 1)
        return finish(self, y + self.position(grid).repeat(x.shape[0], 1, 1, 1))

    proved(Forward(forward, position=nn.Conv2d(3, 8, 1)), tmp_path)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 6, (1, 2), stride=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="reflect", bias=False),
    ],
)
def test_convolutions_of_heads_that_are_folded_into_the_batch(layer, tmp_path):
    def forward(self, x):
        y = self.pool(start(self, x).reshape(-1, 4, 6, 6))
        return self.head(self.last(y).reshape(x.shape[0], -1, 8, 4).mean((1, 3)))

    network = proved(Forward(forward, pool=layer, last=nn.Conv2d(layer.out_channels, 16, 1)), tmp_path)
    assert sum(isinstance(node, Convolution) for node in network.graph.nodes) == 3


def test_convolutions_of_too_many_windows_are_refused():
    def forward(self, x):
        y = self.wide(start(self, x).permute(0, 2, 3, 1).reshape(-1, 8, 1, 1))
        return self.head(y.reshape(x.shape[0], -1, 8).mean(1))

    model = Forward(forward, wide=nn.Conv2d(8, 16384, 1))
    with pytest.raises(LowbitError, match=r"layer 'wide' \(Conv2d\) takes 36 windows that are folded into the batch"):
        lowbit.prepare(model, integer_only=True, example_input=X)


def test_samples_repeated_for_their_windows(tmp_path):
    def forward(self, x):
        y = start(self, x)
        windows = y.unflatten(2, (2, 3)).permute(0, 2, 3, 1, 4).reshape(-1, 3, 8, 6)
        y = y.mean((2, 3)).repeat_interleave(2, 0)
        y = (windows + y[:, None, :, None]).mean((1, 3)).repeat_interleave(3, dim=0)
        return self.head(y.reshape(-1, 6, 8).mean(1))

    proved(Forward(forward), tmp_path)


def test_products_of_parameters_that_start_at_zero(tmp_path):
    class Zeros(Forward):
        def __init__(self) -> None:
            super().__init__(lambda self, x: None)
            self.zeros = nn.Parameter(torch.zeros(1, 36, 8))

        def forward(self, x):
            y = tokens(self, x)
            return self.head((y + (y @ y.transpose(1, 2)) @ self.zeros).mean(1))

    proved(Zeros(), tmp_path)


def normalized(self, x):
    """Rows over their sum, some of which are nearly nothing; differences over themselves, of either sign."""
    y = tokens(self, x) * torch.linspace(1e-4, 1, 36)[:, None]
    rows = y / y.sum(-1, keepdim=True)
    z = tokens(self, x) - 0.5
    return (rows + 0.01 * (y / z)).mean(1)


def lengths(self, x):
    y = tokens(self, x) * torch.linspace(1e-4, 1, 36)[:, None]
    return (y + y.norm(dim=-1, keepdim=True)).mean(1)


@pytest.mark.parametrize("function", [normalized, lengths])
def test_quotients_and_norms_of_codes_that_are_0(function, tmp_path):
    network = proved(Forward(lambda self, x: self.head(function(self, x))), tmp_path, ties=0.01)  # squares make ties
    codes = network.codes(X)
    assert any(
        isinstance(node, Lookup)
        and bool((codes[node.inputs[0]] == network.graph.input_types(node)[0].zero_point).any())
        for node in network.graph.nodes
    ), "no code is 0"
