"""SqueezeNext: Gholami et al., SqueezeNext: Hardware-Aware Neural Network Design, arXiv 1803.10615."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeNext(nn.Module):
    """SqueezeNext-23 for 227x227 (or 224x224) images.

    6, 6, 8 and 1 blocks of 32, 64, 128 and 256 channels times `width`.

    One 7x7 convolution of 64 channels, the blocks, a 1x1 convolution to 128 channels, average, and a linear layer
    without bias, as the authors' own network definitions have it. `width` 2 is the paper's 2.0-SqNxt-23.

    [B, 3, H, W] to [B, num_classes].
    """

    def __init__(self, num_classes: int = 1000, *, width: int = 2) -> None:
        super().__init__()
        self.stem = ConvNormReLU(3, 64, 7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        channels, blocks = 64, []
        for stage, count in enumerate((6, 6, 8, 1)):
            for number in range(count):
                out = 32 * 2**stage * width
                # Every second block has its two separable convolutions in the other order.
                blocks.append(SqueezeNextBlock(channels, out, first=number == 0, halve=stage > 0 and number == 0,
                                               tall_first=number % 2 == 0))  # fmt: skip
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNormReLU(channels, 128, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, num_classes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.maxpool(self.stem(images)))
        return self.fc(self.avgpool(self.head(x)).flatten(1))


class SqueezeNextBlock(nn.Module):
    """Two 1x1 convolutions to a half and a quarter of C', a 3x1 and a 1x3 with a half, a 1x1 to C', and a shortcut.

    [B, C, H, W] to [B, C', H, W], or to half the height and width where `halve`. In the `first` block of a stage the
    shortcut is a 1x1 convolution. `tall_first`: 3x1 comes before 1x3.
    """

    def __init__(self, in_channels: int, out_channels: int, *, first: bool, halve: bool, tall_first: bool) -> None:
        super().__init__()
        stride, half, quarter = 2 if halve else 1, out_channels // 2, out_channels // 4
        tall, wide = (3, 1), (1, 3)
        self.squeeze1 = ConvNormReLU(in_channels, half, 1, stride=stride)
        self.squeeze2 = ConvNormReLU(half, quarter, 1)
        self.separable1 = ConvNormReLU(quarter, half, tall if tall_first else wide)
        self.separable2 = ConvNormReLU(half, half, wide if tall_first else tall)
        self.expand = ConvNormReLU(half, out_channels, 1)
        self.shortcut = ConvNormReLU(in_channels, out_channels, 1, stride=stride) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.squeeze2(self.squeeze1(x))
        y = self.expand(self.separable2(self.separable1(y)))
        return F.relu(y + self.shortcut(x))


class ConvNormReLU(nn.Module):
    """Convolution without bias, batch-norm, ReLU. Only 3x1 and 1x3 kernels are padded."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], *, stride: int = 1) -> None:
        super().__init__()
        padding = 0 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))
