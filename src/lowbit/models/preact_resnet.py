"""Pre-activation ResNets: He et al., Identity Mappings in Deep Residual Networks, arXiv 1603.05027."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.errors import LowbitError

# Depth: blocks per stage, and whether blocks are bottlenecks (He et al., arXiv 1512.03385, table 1).
_LAYOUTS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class PreActResNet(nn.Module):
    """The pre-activation ResNets for 224x224 images that the LSQ paper quantizes.

    Batch-norm and ReLU come before each convolution, and nothing after the addition. As in the paper's appendix the
    first activation stands right behind the first convolution, before the paths split, and one more follows the last
    addition. Where a block changes the shape, its shortcut is a 1x1 convolution of the activated input. Bottlenecks
    halve the image in their 3x3 convolution.

    [B, 3, H, W] to [B, num_classes].

    Raises:
        LowbitError: a depth other than 18, 34, 50, 101 and 152.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, depth: int, num_classes: int = 1000) -> None:
        super().__init__()
        if depth not in _LAYOUTS:
            raise LowbitError(f"depth of a pre-activation ResNet must be one of {sorted(_LAYOUTS)}, got {depth}")
        blocks, bottleneck = _LAYOUTS[depth]
        kind, expansion = (PreActBottleneck, 4) if bottleneck else (PreActBlock, 1)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for stage, count in enumerate(blocks):
            width = 64 * 2**stage
            layers: list[nn.Module] = []
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                activated = stage == 0 and number == 0
                layers.append(kind(channels, width * expansion, stride, activated=activated))
                channels = width * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.bn2 = nn.BatchNorm2d(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(F.relu(self.bn2(x))).flatten(1))


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each behind batch-norm and ReLU: [B, C, H, W] to [B, C', H/stride, W/stride].

    activated: the input went through batch-norm and ReLU already.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, activated: bool) -> None:
        super().__init__()
        self.activation1 = _activation(in_channels, activated)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.activation2 = _activation(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation1(x)
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(self.activation2(self.conv1(y))) + shortcut


class PreActBottleneck(nn.Module):
    """Convolutions 1x1, 3x3, 1x1 with a quarter of the output's channels between, each behind batch-norm and ReLU.

    [B, C, H, W] to [B, C', H/stride, W/stride]. activated: the input went through batch-norm and ReLU already.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, activated: bool) -> None:
        super().__init__()
        width = out_channels // 4
        self.activation1 = _activation(in_channels, activated)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.activation2 = _activation(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.activation3 = _activation(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation1(x)
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(self.activation2(self.conv1(y)))
        return self.conv3(self.activation3(y)) + shortcut


def _activation(channels: int, activated: bool = False) -> nn.Module:
    return nn.Identity() if activated else nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
