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


SIZES = {
    "range": lambda self, x: x + 0.1 * torch.arange(x.shape[-1]),
    "zeros of a size": lambda self, x: x + torch.zeros(x.shape[3]),
    "cast": lambda self, x: self.one(x.float()).to(torch.float32),
    "normalized shape": lambda self, x: F.layer_norm(x, x.shape[1:]),
    "list": lambda self, x: torch.stack(x.unbind(1), 1),
    "part of chunks": lambda self, x: torch.cat(x.chunk(3, 1)[1:], 1).repeat(1, 2, 1, 1)[:, :6],
    "part of a list": lambda self, x: torch.stack(x.unbind(1)[::-1], 1),
    "zeros": lambda self, x: x + torch.zeros_like(x),
}


@pytest.mark.parametrize("name", SIZES)
def test_what_shapes_alone_tell_waits_for_the_first_batch(name):
    """Without an example these were refused, or a traceback; with one they have an integer form."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    model = Shared(lambda self, x: SIZES[name](self, x) if name == "cast" else SIZES[name](self, self.one(x)))
    networks = [lowbit.prepare(model, integer_only=True, example_input=each) for each in (x, None)]
    graphs = [lowbit.to_integer(lowbit.calibrate(each, [x]).eval(), x).graph.nodes for each in networks]
    assert [type(node) for node in graphs[0]] == [type(node) for node in graphs[1]]
