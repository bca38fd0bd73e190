"""A small network for 8x8 grey digits: what the demo trains in seconds."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class DigitsCnn(nn.Module):
    """Convolutions with batch-norm and ReLU, one residual addition, global average pool, linear; 28,538 parameters.

    [B, 1, 8, 8] to [B, num_classes].
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.conv4 = nn.Conv2d(32, 48, 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(48)
        self.linear = nn.Linear(48, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(x + self.bn3(self.conv3(x)))
        x = F.relu(self.bn4(self.conv4(x)))
        return self.linear(x.mean((2, 3)))
