"""Layers whose owner reads their weight, against the same network with the layers called."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit.qat.blocks import Blocks


class Called(nn.Module):
    """Two layers and an attention's projection between them: [B, 5, 6] to [B, 5, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 9)
        self.mix = nn.ModuleList([nn.Conv1d(5, 5, 3, padding=1)])
        self.proj = nn.Linear(3, 4)

    def forward(self, x, mask=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2)
        scores = scores if mask is None else scores + mask
        return self.proj(self.mix[0](scores.softmax(-1) @ v))


class Read(Called):
    """The same, with the weights of two layers read by forward and one layer called, as Eva's attention does."""

    def forward(self, x, mask=None):
        if mask is False:
            return F.linear(x, self.proj.weight)
        bias = torch.cat((self.qkv.bias[:3], self.qkv.bias[3:]))
        q, k, v = F.linear(x, weight=self.qkv.weight, bias=bias).chunk(3, -1)
        scores = q @ k.transpose(1, 2)
        scores = scores if mask is None else scores + mask
        each = self.mix[0]
        return self.proj(F.conv1d(scores.softmax(-1) @ v, each.weight, each.bias, 1, padding=1))


def data(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(seed))


def both(**options) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    called, read = Called(), Read()
    read.load_state_dict(called.state_dict())
    one, two = (nn.Sequential(each, nn.Linear(4, 2)) for each in (called, read))
    two[1].load_state_dict(one[1].state_dict())
    return tuple(lowbit.calibrate(lowbit.prepare(each, **options), [data(), data(1)]) for each in (one, two))


@pytest.mark.parametrize("options", [{}, {"weights": None}, {"activations": None}, {"granularity": "channel"}])
def test_a_weight_that_is_read_is_quantized_as_its_layer_is_called(options):
    called, read = both(first_last=3, **options)
    assert {k: v.tolist() for k, v in called.state_dict().items()} == {
        k: v.tolist() for k, v in read.state_dict().items()
    }
    y = [model(data(2)) for model in (called, read)]
    assert torch.equal(*y)
    for each in y:
        each.square().sum().backward()
    gradients = [{name: p.grad for name, p in model.named_parameters()} for model in (called, read)]
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    tables = [lowbit.layer_table(model, data()) for model in (called, read)]
    assert tables[0] == tables[1] and all(row.macs for row in tables[1])


def test_a_transposed_convolution_whose_weight_is_read():
    class Up(nn.Module):
        def __init__(self, read: bool) -> None:
            super().__init__()
            self.read, self.up = read, nn.ConvTranspose1d(5, 4, 2, stride=2)

        def forward(self, x):
            return F.conv_transpose1d(x, self.up.weight, self.up.bias, stride=2) if self.read else self.up(x)

    called, read = Up(False), Up(True)
    read.load_state_dict(called.state_dict())
    one, two = (lowbit.calibrate(lowbit.prepare(model, first_last=4), [data()]) for model in (called, read))
    assert torch.equal(one(data(1)), two(data(1))) and not torch.equal(one(data(1)), called(data(1)))


def attend(x, weight, bias):
    return F.linear(x, weight, bias).softmax(-1)


class HandedOn(nn.Module):
    """An attention computed by a function that takes the layer's weight, as torchvision's Swin does."""

    def __init__(self, read: bool) -> None:
        super().__init__()
        self.layers, self.read = nn.ModuleList([nn.Linear(6, 4)]), read

    def forward(self, x):
        return self.inner(x) if self.read else self.layers[0](x).softmax(-1)

    def inner(self, x):
        return attend(x, self.layers[0].weight, bias=self.layers[0].bias)


def test_a_weight_that_is_handed_on_to_a_function():
    called, read = HandedOn(False), HandedOn(True)
    read.load_state_dict(called.state_dict())
    one, two = (lowbit.calibrate(lowbit.prepare(model, first_last=4), [data()]) for model in (called, read))
    assert torch.equal(one(data(1)), two(data(1))) and not torch.equal(one(data(1)), called(data(1)))


def test_the_owner_stays_what_it_was():
    _, read = both()
    owner = read[0]
    assert isinstance(owner, Read) and list(inspect.signature(owner.forward).parameters) == ["x", "mask"]
    for again in (copy.deepcopy(read), pickle.loads(pickle.dumps(read))):
        assert torch.equal(again(data()), read(data()))
        again[0].qkv.weight.data.zero_()
        assert not torch.equal(again(data()), read(data()))


def test_a_skipped_layer_stays_in_full_precision_and_a_changed_weight_is_named():
    torch.manual_seed(0)
    model = Read()
    prepared = lowbit.calibrate(
        lowbit.prepare(model, rules=[lowbit.Rule(name, skip=True) for name in ("qkv", r"mix\.0")]), [data()]
    )
    assert len(list(lowbit.quantizers(prepared))) == 2

    class Masked(Called):
        def forward(self, x):
            return self.proj(self.mix[0](F.linear(x, self.qkv.weight * 0.5, self.qkv.bias)[..., :3]))

    with pytest.raises(lowbit.LowbitError, match="no batch reaches the input of layer 'qkv'"):
        lowbit.calibrate(lowbit.prepare(Masked()), [data()])


def test_blocks_of_such_a_network_compute_what_it_does():
    _, read = both()
    blocks = Blocks(read, data())
    assert sorted(name for block in blocks.blocks for name in block.layers) == ["0.mix.0", "0.proj", "0.qkv", "1"]
    values = {node: data() for node in blocks.starts}
    for block in blocks.blocks:
        values |= blocks.through(block, values)
    torch.testing.assert_close(values[block.outputs[0]], read(data()))


def test_such_a_network_compiles(compiler):
    torch._dynamo.reset()
    _, read = both()
    y = torch.compile(read, fullgraph=True, backend="eager")(data())
    assert torch.equal(y, read(data()))
