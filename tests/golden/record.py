"""Write the golden files: what this version of lowbit computes and writes, for every later version to be held to.

    PYTHONPATH=src:. python -m tests.golden.record tests/golden/0.1.0

Run once with the code of version 0.1.0 (commit 1516403); `test_golden.py` compares with what it left. A graph is kept as the
file of an integer network; beside it the digests of the bytes that each format writes, and of every tensor of codes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit import models


class Mixed(nn.Module):
    """Folded and lone batch-norm, a bias, groups, a shuffle, a gate, a sum, pools, tables and a clamp."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.wide = nn.Conv2d(8, 8, 3, padding="same", groups=8), nn.Conv2d(8, 8, 1)
        self.joined_norm = nn.BatchNorm2d(16)
        self.mix = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.act, self.pool, self.average = nn.ReLU6(), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.stem(x))))
        x = torch.cat([self.deep(x), self.act(self.wide(x))], dim=1)
        x = F.silu(self.joined_norm(x))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        left, right = self.mix(x).chunk(2, dim=1)
        x = torch.cat((right, left), 1)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = x * gate + F.pad(x[:, 4:12], (0, 0, 0, 0, 4, 4))
        return self.head(F.adaptive_avg_pool2d(self.average(x), 1).flatten(1))


class Features(nn.Module):
    """One spatial dimension, then flat features: a sum, a table and a change of grid without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.one, self.two, self.head = nn.Linear(24, 12), nn.Linear(24, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.hardswish(self.norm(self.first(x))), 2).flatten(1)
        return torch.sigmoid(self.head(F.relu(self.one(x) + torch.tanh(self.two(x)))))


class Volume(nn.Module):
    """Three spatial dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu6(self.norm(self.first(x))).mean((2, 3, 4)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict]] = {
    "mixed-w1a2": (Mixed, (3, 20, 20), {"weights": 1, "activations": 2, "granularity": "channel"}),
    "mixed-w2a2": (Mixed, (3, 20, 20), {"weights": 2, "activations": 2, "method": "lg-lsq"}),
    "mixed-w3a4-lsq+": (Mixed, (3, 20, 20), {"weights": 3, "activations": 4, "method": "lsq+"}),
    "mixed-w4a4": (Mixed, (3, 20, 20), {"weights": 4, "activations": 4, "granularity": "channel"}),
    "mixed-w5a6": (Mixed, (3, 20, 20), {"weights": 5, "activations": 6, "narrow": True, "method": "ewgs"}),
    "mixed-w8a8": (Mixed, (3, 20, 20), {"weights": 8, "activations": 8, "method": "lsq+2"}),
    "features-w6a7": (Features, (2, 8), {"weights": 6, "activations": 7, "method": "lsq+"}),
    "features-w2a3": (Features, (2, 8), {"weights": 2, "activations": 3, "method": "pact"}),
    "volume-w7a5": (Volume, (1, 5, 6, 7), {"weights": 7, "activations": 5, "method": "dsq"}),
    "digits-cnn-w3a3": (lambda: models.create("digits-cnn"), (1, 8, 8), {"weights": 3, "activations": 3}),
    "resnet8-w2a2": (lambda: models.create("resnet8"), (3, 32, 32), {"weights": 2, "activations": 2}),
    "ds-cnn-w4a4": (lambda: models.create("ds-cnn"), (1, 49, 10), {"weights": 4, "activations": 4, "method": "minmax"}),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A prepared network after a few steps of training, and a batch of inputs: the same numbers every time."""
    make, shape, options = NETWORKS[name]
    torch.manual_seed(len(name))
    model = make()
    x = torch.randn(4, *shape)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.momentum = None
    model.train()
    for _ in range(2):
        model(x + 0.1 * torch.randn_like(x))
    prepared = lowbit.calibrate(lowbit.prepare(model, integer_only=True, **options), [x])
    lowbit.round_zero_points(prepared)
    optimizer = torch.optim.SGD(lowbit.parameter_groups(prepared, weight_decay=1e-4), lr=1e-3, momentum=0.9)
    prepared.train()
    for _ in range(3):
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        nn.utils.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
    return prepared.eval(), x


def inputs(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)) * 2


def digest(value: Tensor | bytes) -> str:
    if isinstance(value, Tensor):
        text = f"{value.dtype} {tuple(value.shape)} ".encode()
        value = text + value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(value).hexdigest()[:24]


def codes(integer: lowbit.IntegerNetwork, x: Tensor) -> dict[str, dict[str, str]]:
    """The digest of every tensor, for each rounding."""
    return {how: {name: digest(value) for name, value in integer.codes(x, how).items()} for how in ("float", "fixed")}


def written(integer: lowbit.IntegerNetwork, path: Path, formats: list[str]) -> dict[str, str]:
    """The digest of what each format writes, or the words with which it refuses."""
    found = {}
    for name in formats:
        try:
            lowbit.export(integer, path, name)
            found[name] = digest(path.read_bytes())
        except lowbit.LowbitError as error:
            found[name] = f"{type(error).__name__}: {error}"
    path.unlink(missing_ok=True)
    return found


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "onnx", "protobuf", "ai-edge-litert", "flatbuffers")}


def main(folder: Path) -> None:
    from safetensors.torch import save_file

    golden: dict = {"versions": versions(), "networks": {}}
    for name, (_, shape, _) in NETWORKS.items():
        model, x = network(name)
        integer = lowbit.to_integer(model, x)
        integer.save(folder / f"{name}.safetensors")
        entry: dict = {"codes": codes(integer, inputs(shape)), "summary": digest(integer.summary().encode())}
        entry["formats"] = written(integer, folder / "tried", ["onnx", "onnx-packed", "qonnx", "litert", "lowbit"])
        golden["networks"][name] = entry
    for name in ("mixed-w3a4-lsq+", "features-w6a7"):  # a checkpoint each, and what the network with it computes
        model, _ = network(name)
        save_file(model.state_dict(), folder / f"{name}.checkpoint.safetensors")
        golden["networks"][name]["output"] = model(inputs(NETWORKS[name][1])).tolist()
    weights = {name: {key: digest(value) for key, value in network(name)[0].state_dict().items()} for name in NETWORKS}
    print(json.dumps(weights))  # as trained here: other processors sum in other orders
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
