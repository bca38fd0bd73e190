"""What ties become in a network: the codes that are moved, and what is counted of them."""

from __future__ import annotations

import torch
from torch import nn

import lowbit
from campaigns import ties
from lowbit.lowering.convert import convert


def test_ten_codes_are_moved_and_what_follows_is_counted():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    )
    x = torch.randn(2, 3, 12, 12)
    row = ties.row("small", network, x)
    assert row["codes"] == 2 * (3 * 12 * 12 + 6 * 10 * 10 + 4 * 8 * 8) and row["at ties"] <= 2

    prepared = lowbit.prepare(network.eval(), weights=4, activations=4, integer_only=True)
    graph, _ = convert(lowbit.calibrate(prepared, [x]).eval(), x)
    inputs = {next(iter(graph.inputs)): x[:1]}
    integers = lowbit.IntegerNetwork(graph).codes(inputs)
    first, second, *_, flat, _ = integers  # the convolution before flattening has these codes too
    moved = ties.with_moved(graph, inputs, second)
    assert torch.equal(moved[first], integers[first])
    apart = (moved[second].int() - integers[second].int()).abs()
    assert apart.sum() == 10 and apart.max() == 1
    behind = sum(int((moved[name] != integers[name]).sum()) for name in (second, flat))
    assert row["ten moved"] == f"{200 * behind / row['codes']:.4g} %"
