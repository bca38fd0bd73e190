"""Where integers need quantizers, and what can't have one form in two places."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit


class Shared(nn.Module):
    """Two convolutions whose batch-norm or whose layer is one, used as a function says."""

    def __init__(self, function) -> None:
        super().__init__()
        self.one, self.two, self.norm, self.head = (
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.Linear(6, 3),
        )
        self.other_norm, self.function = nn.BatchNorm2d(6), function

    def forward(self, x):
        return self.head(F.relu(self.function(self, x)).mean((2, 3)))


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: self.norm(self.one(x)) + self.other_norm(self.two(x)),
        lambda self, x: self.norm(self.one(x)) + self.norm(self.one(x)),
        lambda self, x: self.norm(self.one(x)) + self.other_norm(self.one(x)),
        lambda self, x: self.norm(self.one(x)) + self.norm(self.two(x)),
        lambda self, x: self.norm(self.one(x)) + self.norm(self.two(x) + self.two(x)),
        lambda self, x: self.norm(self.one(x)) + self.one(x),
    ],
)
def test_what_has_one_form_is_proved(function):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    model = Shared(function)
    nn.init.normal_(model.norm.bias), nn.init.normal_(model.other_norm.bias)
    for _ in range(3):
        model(x)
    prepared = lowbit.calibrate(lowbit.prepare(model, integer_only=True, weights=2, activations=2), [x]).eval()
    assert lowbit.to_integer(prepared, x).proof({"x": x}) == {}
