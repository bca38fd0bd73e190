"""Transformers in integers: attention however it is written, normalization and softmax over any dimension."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit.integer.ops import MatMul, Normalize, Softmax
from tests.lowering.networks import agreement

X = torch.randn(6, 9, 12, generator=torch.Generator().manual_seed(3))


class Block(nn.Module):
    """An embedding with class token and positions, one mixing function, a head on the class token."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.embed, self.cls = nn.Linear(12, 16), nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.zeros(1, 10, 16))
        self.mix, self.norm, self.head = mix, nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.positions
        return self.head(self.norm(self.mix(x))[:, 0])


class Attention(nn.Module):
    """By hand, or by torch's function, with layer-scale and an MLP."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.fused = nn.Linear(16, 48), nn.Linear(16, 16), fused
        self.norm, self.scale = nn.LayerNorm(16), nn.Parameter(torch.full((16,), 0.1))
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        batch, length, channels = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, length, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * 4**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        x = x + self.scale * self.proj(y.transpose(1, 2).reshape(batch, length, channels))
        return x + self.mlp(x)


class Multihead(nn.Module):
    """nn.MultiheadAttention, with or without the batch first, of one tensor or of two."""

    def __init__(self, *, batch_first: bool, cross: bool) -> None:
        super().__init__()
        self.attention, self.cross = nn.MultiheadAttention(16, 4, batch_first=batch_first), cross
        self.batch_first = batch_first

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        y, _ = self.attention(x, x.roll(1, -1) if self.cross else x, x)
        return y if self.batch_first else y.transpose(0, 1)


MIXES = {
    "by hand": lambda: Attention(fused=False),
    "sdpa": lambda: Attention(fused=True),
    "multihead": lambda: Multihead(batch_first=True, cross=False),
    "sequence first": lambda: Multihead(batch_first=False, cross=False),
    "cross": lambda: Multihead(batch_first=True, cross=True),
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True), 2
    ),
    "post-norm": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu"),
}


def prepared_for(model, x=X):
    model.train()
    network = lowbit.prepare(model, weights=4, activations=8, integer_only=True, example_input=x)
    lowbit.calibrate(network, [x])
    optimizer = torch.optim.Adam(lowbit.parameter_groups(network, weight_decay=0.0), 1e-3)
    network.train()
    first = None
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), torch.arange(len(x)) % 5)
        first = first or float(loss.detach())
        loss.backward()
        optimizer.step()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
    assert float(loss) < first
    return network.eval()


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_attention_however_it_is_written(name, tmp_path):
    torch.manual_seed(0)
    model = Block(MIXES[name]())
    names = set(model.state_dict())
    network = prepared_for(model)
    assert names <= set(network.state_dict())
    integer = lowbit.to_integer(network, X)
    kinds = [type(node) for node in integer.graph.nodes]
    assert kinds.count(Softmax) >= 1 and kinds.count(MatMul) >= 2 and Normalize in kinds
    compared, differ = agreement(network, X)
    assert differ <= 0.01 * compared
    assert lowbit.export(integer, tmp_path / "network.onnx", batches=[X]).differ == 0
    assert torch.allclose(integer(X), network(X), atol=0.05)


NORMS = {
    "layer": nn.LayerNorm((8, 6, 5)),
    "layer, last": nn.LayerNorm(5, elementwise_affine=False),
    "group": nn.GroupNorm(2, 8),
    "instance": nn.InstanceNorm2d(8, affine=True),
    "rms": nn.RMSNorm(5),
    "function": lambda x: F.layer_norm(x, (5,)),
    "l2": lambda x: F.normalize(x, dim=1),
    "l2, last": lambda x: F.normalize(x, dim=-1),
    "softmax of channels": nn.Softmax(1),
    "softmax of rows": lambda x: x.softmax(2),
}


class Convolutional(nn.Module):
    def __init__(self, norm) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.norm = norm if isinstance(norm, nn.Module) else None
        self.function = None if isinstance(norm, nn.Module) else norm

    def forward(self, x):
        x = self.first(x)
        x = self.norm(x) if self.function is None else self.function(x)
        return self.head(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("name", NORMS)
def test_normalizations(name, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 5)
    norm = NORMS[name]
    if isinstance(norm, nn.Module):
        for parameter in norm.parameters():
            nn.init.normal_(parameter, 1, 0.3)
    network = lowbit.prepare(Convolutional(norm), integer_only=True, example_input=x)
    lowbit.calibrate(network, [x]).eval()
    integer = lowbit.to_integer(network, x)
    compared, differ = agreement(network, x)
    assert differ <= 0.01 * compared
    assert lowbit.export(integer, tmp_path / "network.onnx", batches=[x]).differ == 0


def test_a_moved_tensor_on_one_grid_with_its_source_is_tried_with_the_codes_of_its_source():
    """Layer-norm, permuted for a convolution that happens to quantize it as the sum does that takes it too."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.depthwise = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, x):
            x = self.norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return self.head((x + self.depthwise(x)).mean((2, 3)))

    x = torch.randn(4, 3, 8, 8)
    network = lowbit.prepare(Block(), weights=4, activations=8, integer_only=True, example_input=x)
    lowbit.calibrate(network, [x]).eval()
    assert torch.allclose(lowbit.to_integer(network, x)(x), network(x), atol=1e-4)


class ResponseNorm(nn.Module):
    """Global response normalization as ConvNeXt v2 has it: a norm over positions, and a quotient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.weight, self.bias = nn.Parameter(torch.full((1, 1, 1, 8), 0.3)), nn.Parameter(torch.zeros(1, 1, 1, 8))

    def forward(self, x):
        x = F.relu(self.first(x)).permute(0, 2, 3, 1)
        of_channels = x.norm(p=2, dim=(1, 2), keepdim=True)
        relative = of_channels / (of_channels.mean(dim=-1, keepdim=True) + 1e-6)
        x = x + torch.addcmul(self.bias, self.weight, x * relative)
        return self.head(x.mean((1, 2)) / self.weight.flatten())


def test_norms_and_quotients_of_tensors(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 5)
    model = ResponseNorm()
    network = lowbit.prepare(model, weights=4, activations=8, integer_only=True)
    lowbit.calibrate(network, [x]).eval()
    assert float((network(x) - model(x)).abs().max()) < 0.2 * float(model(x).abs().max())
    integer = lowbit.to_integer(network, x)
    compared, differ = agreement(network, x)
    assert differ <= 0.01 * compared
    assert lowbit.export(integer, tmp_path / "network.onnx", batches=[x]).differ == 0
