"""The four networks of MLPerf Tiny: Banbury et al., NeurIPS 2021 Datasets and Benchmarks, arXiv 2106.07597.

Layers, widths and biases are those of the reference models (github.com/mlcommons/tiny). What pads there on the right
and at the bottom pads here on the left and at the top: the networks are mirror images, so that the reference's weights
serve with input and kernels flipped. Softmax belongs to the loss.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class ResNet8(nn.Module):
    """Image classification: three residual blocks with 16, 32 and 64 channels; shortcuts without batch-norm.

    [B, 3, 32, 32] to [B, num_classes].
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block1 = ResNet8Block(16, 16, 1)
        self.block2 = ResNet8Block(16, 32, 2)
        self.block3 = ResNet8Block(32, 64, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        _he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.stem(images))))
        return self.linear(self.avgpool(x).flatten(1))


class ResNet8Block(nn.Module):
    """Two 3x3 convolutions, and a 1x1 convolution as shortcut where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class MobileNetV1Tiny(nn.Module):
    """Visual wake words: MobileNetV1 (Howard et al. 2017, arXiv 1704.04861) of width 0.25.

    [B, 3, 96, 96] to [B, num_classes].
    """

    # (output channels, stride) of the 13 depthwise-separable blocks
    _BLOCKS = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1))

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
        channels = 8
        for out, stride in self._BLOCKS:
            layers.append(_separable(channels, out, stride))
            channels = out
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)
        _he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.avgpool(self.features(images)).flatten(1))


class DsCnn(nn.Module):
    """Keyword spotting: a 10x4 convolution and four depthwise-separable blocks of 64 channels.

    Zhang et al. 2017, Hello Edge, arXiv 1711.07128. [B, 1, 49, 10], 49 frames of 10 mel-frequency cepstral
    coefficients, to [B, num_classes].
    """

    def __init__(self, num_classes: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 64, (10, 4), stride=2, padding=(5, 1)), nn.BatchNorm2d(64), nn.ReLU(), nn.Dropout(0.2)
        )
        self.blocks = nn.Sequential(*(_separable(64, 64, 1) for _ in range(4)))
        self.dropout = nn.Dropout(0.4)
        self.avgpool = nn.AvgPool2d((25, 5))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        x = self.dropout(self.blocks(self.stem(features)))
        return self.linear(self.avgpool(x).flatten(1))


class Autoencoder(nn.Module):
    """Anomaly detection: linear layers 640-128-128-128-128-8-128-128-128-128-640, batch-norm and ReLU between.

    [B, 640], five frames of 128 log-mel energies, to their reconstruction [B, 640].
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], widths[0]))

    def forward(self, frames: Tensor) -> Tensor:
        return self.layers(frames)


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution of every channel by itself and a 1x1 convolution, each with batch-norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, 1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _he_normal(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
