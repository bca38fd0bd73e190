"""Networks for images of 32×32 that no library has by name, by torchvision's builders.

campaigns.accuracy.networks:efficientnet    EfficientNet's blocks (Tan & Le, ICML 2019, arXiv 1905.11946): SiLU and
                                            squeeze-and-excitation, for what LSQ+ claims of activations that go negative
campaigns.accuracy.networks:mobilenetv2     MobileNetV2's (Sandler et al., CVPR 2018, arXiv 1801.04381): depthwise, where
                                            weights oscillate
"""

from __future__ import annotations

from functools import partial

from torch import nn

from lowbit._torchvision import import_torchvision

EFFICIENTNET = "campaigns.accuracy.networks:efficientnet"
MOBILENETV2 = "campaigns.accuracy.networks:mobilenetv2"


def efficientnet(num_classes: int = 10) -> nn.Module:
    """Seven blocks, of which the last four are at 8×8 positions; without dropout."""
    import_torchvision()
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    block = partial(MBConvConfig, width_mult=1.0, depth_mult=1.0)
    return EfficientNet(
        [block(1, 3, 1, 24, 16, num_layers=1), block(4, 3, 1, 16, 24, num_layers=2), block(4, 3, 2, 24, 40, num_layers=2),
         block(4, 3, 1, 40, 56, num_layers=2)],
        dropout=0.0, stochastic_depth_prob=0.0, num_classes=num_classes, last_channel=192,
    )  # fmt: skip


def mobilenetv2(num_classes: int = 10) -> nn.Module:
    """Seven inverted residuals, of which the last four are at 8×8 positions; without dropout."""
    import_torchvision()
    from torchvision.models.mobilenetv2 import MobileNetV2

    blocks = [[1, 16, 1, 1], [4, 24, 2, 1], [4, 32, 2, 2], [4, 48, 2, 1]]
    return MobileNetV2(num_classes, width_mult=1.0, inverted_residual_setting=blocks, dropout=0.0)
