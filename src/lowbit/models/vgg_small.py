"""VGG-Small, the plain network that papers on low bits train on CIFAR-10."""

from __future__ import annotations

from torch import Tensor, nn


class VggSmall(nn.Module):
    """Six 3x3 convolutions with 128, 128, 256, 256, 512 and 512 channels, a pooling after each pair, one linear layer.

    The layers are LQ-Nets' (Zhang et al., ECCV 2018, arXiv 1807.10029, section 4), 4.66 million parameters. Batch-norm
    and ReLU come right behind every convolution here, so that they fold into it; LQ-Nets pool before them where they
    pool, which for γ > 0 computes the same from the same statistics.

    [B, 3, 32, 32] to [B, num_classes].
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in (128, 256, 512):
            for _ in range(2):
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(512 * 4 * 4, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.features(images).flatten(1))
