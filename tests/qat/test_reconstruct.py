"""Low bits without labels: blocks, soft rounding, and what reconstruction makes of a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit.layers.quantized import QuantizedLayer
from lowbit.qat.blocks import Blocks, gathered
from lowbit.qat.soft_rounding import SoftRounding


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(1)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.last_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.last_norm(self.second(F.relu(self.norm(self.first(x))))))


def residual_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), Residual(8), Residual(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


class Forked(nn.Module):
    """A U: what the first layer gives is used at the end again; two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(9)),
        )
        self.up, self.side = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(1, 4, 1)

    def forward(self, image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        wide = F.relu(self.down(image))
        x = wide
        for layer in self.deep:
            x = F.relu(layer(x))
        x = self.up(torch.cat([x, wide], 1))
        return x, (x + self.side(other)).mean((2, 3))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 12, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 4, 12) * 0.1)
        self.norm, self.mix, self.widen, self.narrow = (
            nn.LayerNorm(12),
            nn.Linear(4, 4),
            nn.Linear(12, 24),
            nn.Linear(24, 12),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        x = x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return (x + self.narrow(F.gelu(self.widen(x)))).mean(1)


def quantized(network: nn.Module, batches: list, bits: int = 3, **options: object) -> nn.Module:
    options = {"init_weights": "least-squares", "init_activations": "least-squares", **options}
    return lowbit.calibrate(lowbit.prepare(network.eval(), weights=bits, activations=bits, **options), batches)


def images(count: int = 48) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("integer_only", [False, True])
def test_a_block_ends_where_one_tensor_alone_goes_on(integer_only: bool) -> None:
    model = quantized(residual_network(), [images()], integer_only=integer_only)
    blocks = Blocks(model, images(2)).blocks
    assert [block.layers for block in blocks] == [("0",), ("2.first", "2.second"), ("3.first", "3.second"), ("6",)]


def test_a_block_of_many_layers_is_cut_into_layers() -> None:
    x = images()
    model = quantized(Forked(), [{"image": x, "other": x}])
    blocks = Blocks(model, {"image": x[:2], "other": x[:2]}).blocks
    assert [block.layers for block in blocks] == [
        ("down",), *[(f"deep.{i}",) for i in range(9)], ("up",), ("side",)
    ]  # fmt: skip


@pytest.mark.parametrize("integer_only", [False, True])
@pytest.mark.parametrize("kind", [residual_network, Forked, Encoder])
def test_blocks_one_after_the_other_are_the_network(kind: type, integer_only: bool) -> None:
    x = images()
    batch = {"image": x, "other": x.flip(0)} if kind is Forked else x
    model = quantized(kind(), [batch], integer_only=integer_only).eval()
    blocks = Blocks(model, batch)
    values = gathered(blocks, [batch])
    with torch.no_grad():
        for block in blocks.blocks:
            values |= blocks.through(block, values)
        expected = model(**batch) if isinstance(batch, dict) else model(batch)
    (returned,) = next(node for node in blocks.model.graph.nodes if node.op == "output").args
    nodes = returned if isinstance(returned, (tuple, list)) else [returned]
    for node, wanted in zip(nodes, expected if isinstance(expected, tuple) else [expected], strict=True):
        assert torch.equal(values[node], wanted)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_soft_rounding_starts_as_the_weight_and_ends_on_a_level_beside_it(granularity: str) -> None:
    layer = quantized(nn.Sequential(nn.Conv2d(1, 4, 3)), [images()], 2, first_last=2, granularity=granularity)[0]
    quantizer, w = layer.weight_quantizer, layer.weight.detach()
    soft = SoftRounding(quantizer, w)
    s = quantizer.step.expand(w.shape if granularity == "channel" else ())
    inside = (w / s > -2) & (w / s < 1)
    # The fraction is kept 0.01 away from 0 and 1, where the sigmoid has no gradient.
    assert torch.all((soft(w) - w).abs()[inside] <= 0.0101 * s.expand(w.shape)[inside])
    assert soft.undecided(2.0) > 0
    with torch.no_grad():
        soft.v.copy_(torch.where(torch.arange(w.numel()).reshape(w.shape) % 2 == 0, 9.0, -9.0))
    assert soft.undecided(2.0) == 0
    up = (torch.arange(w.numel()).reshape(w.shape) % 2 == 0).float()
    levels = (torch.floor(w / s).clamp(-2, 1) + up).clamp(-2, 1)
    decided = soft.decided(w)
    assert torch.equal(quantizer.codes(decided).float(), levels)
    # Where it was rounded that way anyway it stays, unless it is near the edge; else it goes to the near side of the level.
    apart = (w / s - levels).abs() < 0.45
    torch.testing.assert_close(decided[apart], w[apart])
    moved = (w / s - levels).abs()[inside] > 0.45
    torch.testing.assert_close((decided / s - levels).abs()[inside][moved], torch.full((int(moved.sum()),), 0.45))


def trained_digits() -> tuple[nn.Module, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    x = x.float().reshape(-1, 1, 8, 8) / 16
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Residual(8),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(3):
        for images, labels in zip(x[:1500].split(50), y[:1500].split(50)):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
    return network.eval(), x, y


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model.eval()(x).argmax(1) == y).float().mean())


def test_two_bits_without_labels_are_nearer_to_full_precision() -> None:
    network, x, y = trained_digits()
    model = quantized(network, [x[:300]], 2, integer_only=True).train()
    rounded = accuracy(model, x[1500:], y[1500:])
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = lowbit.reconstruct(model, x[:300].split(50), steps=120)
    assert all(module.training for module in model.modules())
    assert [block.layers for block in found] == [("0",), ("3.first", "3.second"), ("6",)]
    assert found[1].after < 0.7 * found[1].before
    for name, value in model.state_dict().items():
        if name.endswith(("bias", "norm.weight")):
            assert torch.equal(value, state[name]), name
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLayer):
            before, grid = state[f"{name}.weight"] / layer.weight_quantizer.step, layer.weight_quantizer.grid
            distance = (layer.weight / layer.weight_quantizer.step - before).abs()
            inside = (before >= grid.qn) & (before <= grid.qp)
            # To the other side of the nearest edge, and the margin behind it.
            assert 0 < float(distance[inside].max()) < 0.56
    full = accuracy(network, x[1500:], y[1500:])
    learned = accuracy(model, x[1500:], y[1500:])
    assert learned >= rounded + 0.5 * (full - rounded)
    lowbit.to_integer(model.eval(), x[:1])


def test_an_interrupted_reconstruction_leaves_the_model_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    x, network = images(), residual_network()
    whole, broken = quantized(network, [x]), quantized(network, [x])
    before = {name: value.clone() for name, value in broken.state_dict().items()}
    expected = lowbit.reconstruct(whole, [x], steps=8, seed=3)

    def interrupt(done: int, blocks: int, _: object) -> None:
        assert blocks == 4
        if done == 2:
            raise KeyboardInterrupt

    file = tmp_path / "reconstruction.pt"
    with pytest.raises(KeyboardInterrupt):
        lowbit.reconstruct(broken, [x], steps=8, seed=3, checkpoint=file, on_block=interrupt)
    assert all(torch.equal(value, before[name]) for name, value in broken.state_dict().items())
    with pytest.raises(lowbit.LowbitError, match="another reconstruction: its steps"):
        lowbit.reconstruct(broken, [x], steps=9, seed=3, checkpoint=file)
    done: list[int] = []
    found = lowbit.reconstruct(broken, [x], steps=8, seed=3, checkpoint=file, on_block=lambda n, *_: done.append(n))
    assert found == expected and done == [3, 4]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, broken.state_dict()[name]), name


def test_a_layer_called_twice_is_rounded_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.again(F.relu(self.again(F.relu(self.first(x)))))

    model, seen = quantized(Twice(), [images()]), []
    lowbit.reconstruct(model, [images()], steps=5, on_block=lambda *_: seen.append(model.again.weight.clone()))
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2])


def test_what_is_not_rounded_by_a_step_alone_is_left() -> None:
    """DoReFa's weights are transformed before they are quantized."""
    model = quantized(residual_network(), [images()], method="dorefa", init_weights=None, init_activations=None)
    before = model[2].first.weight.clone()
    lowbit.reconstruct(model, [images()], steps=2)
    assert torch.equal(model[2].first.weight, before)


@pytest.mark.parametrize(
    "batches, options, message",
    [
        ([], {}, "no batches to reconstruct with"),
        (images(), {}, "got one tensor"),
        ([images(0)], {}, "no samples"),
        ([images()], {"steps": 0}, "steps must be at least 1"),
        ([images()], {"batch_size": 0}, "batch_size must be at least 1"),
        ([images()], {"drop": 1.0}, "drop is a share"),
        ([images()], {"checkpoint": "/nowhere/file.pt"}, "nowhere"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_has_changed(batches: list, options: dict, message: str) -> None:
    model = quantized(residual_network(), [images()])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(lowbit.LowbitError, match=message):
        lowbit.reconstruct(model, batches, **{"steps": 1, **options})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_network_has_to_be_prepared_and_calibrated(tmp_path: Path) -> None:
    with pytest.raises(lowbit.LowbitError, match="no quantizers"):
        lowbit.reconstruct(residual_network(), [images()])
    prepared = lowbit.prepare(residual_network(), weights=4, activations=4)
    with pytest.raises(lowbit.LowbitError, match="no step yet"):
        lowbit.reconstruct(prepared, [images()])
    file = tmp_path / "other.pt"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(lowbit.LowbitError, match="not a checkpoint of"):
        lowbit.reconstruct(quantized(residual_network(), [images()]), [images()], checkpoint=file)


def test_batchnorm_has_the_statistics_of_what_the_quantized_network_gives() -> None:
    images = torch.randn(70, 1, 6, 6)
    network = residual_network().eval()
    model = lowbit.calibrate(lowbit.prepare(network, weights=3, activations=3), [images])
    lowbit.reconstruct(model, [images[:50], images[50:]], 3)
    seen: list[Tensor] = []
    norm = model.get_submodule("3.norm")
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images)
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not model.training and not norm.training


def test_each_block_learns_what_the_network_of_before_gives() -> None:
    """Not what a network gives whose weights and statistics are those that have been learned."""
    from lowbit.qat import reconstruct

    x, network, seen = images(), residual_network(), []
    model = quantized(network, [x], 2)
    blocks = {"2.first": 2, "3.first": 3, "6": 6}  # what stands before "6" goes with the block of 3
    full_precision = reconstruct._Learning._full_precision

    def looked_at(learning, block):
        found = full_precision(learning, block)
        seen.append((block.layers[0], *found.values()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruct._Learning, "_full_precision", looked_at)
        lowbit.reconstruct(model, [x], steps=5)
    with torch.no_grad():
        for first, *values in seen:
            if first in blocks:
                wanted = network[: blocks[first] + 1](x) if first != "3.first" else network[:6](x)
                torch.testing.assert_close(values, [wanted])
    assert [first for first, *_ in seen] == [
        each for first in ("0", "2.first", "3.first", "6") for each in (first, first)
    ]


def test_batchnorm_is_taken_again_before_the_next_block_learns() -> None:
    x, network, seen = images(), residual_network(), []
    model = quantized(network, [x], 2)
    before = model[2].norm.running_mean.clone()
    lowbit.reconstruct(model, [x], steps=5, on_block=lambda *_: seen.append(model[2].norm.running_mean.clone()))
    assert torch.equal(seen[0], before)
    assert not torch.equal(seen[1], before)
    assert torch.equal(seen[1], seen[3])


def test_of_one_sample_batchnorm_keeps_its_statistics() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    model = lowbit.calibrate(lowbit.prepare(network, weights=3, activations=3), [torch.randn(8, 3)])
    lowbit.reconstruct(model, [torch.randn(1, 3)], 2)
    assert torch.equal(model.get_submodule("1").running_mean, torch.zeros(4))
