"""Bits within a budget: what choices cost, what they are expected to lose, and the rules that come out."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError, Rule
from lowbit.allocation import costs
from lowbit.allocation.allocate import SENSITIVITIES
from lowbit.allocation.sensitivity import Member, Side, by_gradients, by_measurement
from lowbit.quantizer.initialization import Statistics

pytestmark = pytest.mark.filterwarnings("ignore:.*expected to do as well:UserWarning")


class Network(nn.Module):
    """A residual block whose first layer and shortcut take one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.first, self.second, self.short = (
            nn.Conv2d(8, 12, 3, padding=1),
            nn.Conv2d(12, 12, 3, padding=1),
            nn.Conv2d(8, 12, 1),
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.second(F.relu(self.first(x))) + self.short(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Network().eval()


def images(count: int = 32) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_rules_within_the_budget_for_every_layer(network: nn.Module, sensitivity: str) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = lowbit.allocate(network, [images()], "average_bits=3.2", sensitivity=sensitivity, steps=5)
    assert found.costs["average_bits"] <= 3.2
    assert not network.training and all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    prepared = lowbit.prepare(network, rules=found)
    rows = {row.name: (row.weight_bits, row.activation_bits) for row in lowbit.layer_table(prepared)}
    assert rows == found.bits
    assert rows["stem"] == rows["head"] == (8, 8)
    assert rows["first"][1] == rows["short"][1]  # one tensor
    sizes = {row.name: row.parameters for row in lowbit.layer_table(prepared)}
    assert found.costs["weights"] == sum(-(-sizes[name] * w // 8) for name, (w, _) in rows.items())
    assert found.loss == pytest.approx(
        sum(
            found.program.losses[side.name][
                {"weight": rows[side.layers[0]][0], "input": rows[side.layers[0]][1]}[side.name.partition(" ")[0]]
            ]
            for side in found.sides
        )
    )
    assert "second" in found.table()


def test_what_counts_is_counted_as_the_library_counts(network: nn.Module, tmp_path: Path) -> None:
    batches = [images()]
    found = lowbit.allocate(network, batches, "bit_operations=4M,file=7kB,activations=2.6kB")
    prepared = lowbit.prepare(network, rules=found, integer_only=True)
    lowbit.calibrate(prepared, batches)
    integer = lowbit.to_integer(prepared.eval(), images(1))
    integer.save(tmp_path / "network.safetensors")
    size = (tmp_path / "network.safetensors").stat().st_size
    assert abs(size - found.costs["file"]) <= 64 and size <= 7064
    rows = lowbit.layer_table(lowbit.prepare(network, rules=found), images(1))
    assert found.costs["bit_operations"] == sum(row.bit_operations or 0 for row in rows)
    live = costs.alive(integer.graph)
    kinds = {node.name: node.type for node in integer.graph.nodes}
    sizes = {
        name: -(-kind.shape.numel() * getattr(kind, "bits", 32) // 8)
        if isinstance(kind.shape, torch.Size)
        else -(-int(torch.tensor(kind.shape).prod()) * getattr(kind, "bits", 32) // 8)
        for name, kind in kinds.items()
    }
    assert found.costs["activations"] == max(sum(sizes[name] for name in each) for each in live)


def test_what_is_alive_while_a_node_is_computed(network: nn.Module) -> None:
    prepared = lowbit.calibrate(lowbit.prepare(network, integer_only=True), [images()])
    graph = lowbit.to_integer(prepared.eval(), images(1)).graph
    live = costs.alive(graph)
    for number, node in enumerate(graph.nodes):
        used_later = {name for later in graph.nodes[number + 1 :] for name in later.inputs}
        wanted = (
            {n.name for n in graph.nodes[:number] if n.name in used_later}
            | {node.name}
            | {i for i in node.inputs if i in graph.by_name}
        )
        aliases = {n.name for n in graph.nodes if type(n).__name__ == "Reshape"}
        assert {name for name in wanted if name not in aliases} <= set(live[number])
        assert len(live[number]) <= len(wanted) + len(aliases)


def linear_sides() -> tuple[nn.Module, list[Side], Tensor]:
    torch.manual_seed(1)
    model = lowbit.prepare(nn.Sequential(nn.Linear(6, 1, bias=False)), weights=2, activations=2, first_last=2).eval()
    x = torch.randn(512, 6)
    layer = model[0]
    statistics = Statistics(())
    statistics.update(x)
    weight = Side("weight of 0", ("0",), (Member(layer.weight_quantizer, layer.weight),), (2, 3))
    return model, [weight, Side("input of 0", ("0",), (Member(layer.input_quantizer, statistics),), (2, 3))], x


def test_measured_losses_of_a_linear_network_are_half_the_squared_difference() -> None:
    model, sides, x = linear_sides()
    found = by_measurement(model, sides, x.split(128), None)
    w = model[0].weight.detach()
    for side in sides:
        for bits in (2, 3):
            quantizer = side.members[0].of(bits)
            y = F.linear(x, quantizer(w)) if side.name.startswith("weight") else F.linear(quantizer(x), w)
            expected = float((y - F.linear(x, w)).square().sum()) / 2 / len(x)
            assert found[side.name][bits] == pytest.approx(expected, rel=1e-4)


def test_losses_by_gradients_are_the_diagonal_of_a_known_curvature() -> None:
    """Of y = w·x with variance 1, the Fisher information of w_j is E[x_j²], and of x_j it is w_j²."""
    model, sides, x = linear_sides()
    found = by_gradients(model, sides, list(x.split(4)) * 4, None, seed=0)
    w = model[0].weight.detach()
    for bits in (2, 3):
        on_weight = (x.square().mean(0) * (sides[0].members[0].of(bits)(w) - w).square()).sum() / 2
        on_input = (w.square() * (sides[1].members[0].of(bits)(x) - x).square()).sum() / 2 / len(x)
        assert found["weight of 0"][bits] == pytest.approx(float(on_weight), rel=0.15)
        assert found["input of 0"][bits] == pytest.approx(float(on_input), rel=0.15)


def test_a_loss_of_ones_own_takes_labels(network: nn.Module) -> None:
    labels = torch.arange(32) % 5
    found = lowbit.allocate(
        network, [(images(), labels)], "average_bits=3.2", loss=F.cross_entropy, sensitivity="measured"
    )
    assert all(loss >= 0 for by_bits in found.program.losses.values() for loss in by_bits.values())
    for sensitivity in SENSITIVITIES:
        with pytest.raises(LowbitError, match="takes labels"):
            lowbit.allocate(network, [images()], "average_bits=3.2", loss=F.cross_entropy, sensitivity=sensitivity)


def test_the_frontier_never_loses_more_for_more_and_uniform_bits_lie_on_or_above_it(
    network: nn.Module, tmp_path: Path
) -> None:
    found = lowbit.allocate(network, [images()], "weights=1kB", activation_choices=(4,))
    points = found.frontier(points=6)
    best = [point for point in points if point.uniform is None]
    assert [p.cost for p in best] == sorted(p.cost for p in best)
    assert all(a.loss >= b.loss for a, b in itertools.pairwise(best))
    assert [point.uniform for point in points if point.uniform] == [2, 3, 4, 8]
    found.save(tmp_path / "rules.json")
    saved = [Rule(**row) for row in json.loads((tmp_path / "rules.json").read_text())]
    rows = [
        [(r.name, r.weight_bits, r.activation_bits) for r in lowbit.layer_table(lowbit.prepare(network, rules=rules))]
        for rules in (saved, found)
    ]
    assert rows[0] == rows[1]


def test_the_frontier_as_a_plot(network: nn.Module, tmp_path: Path) -> None:
    found = lowbit.allocate(network, [images()], "weights=1kB", activation_choices=(4,))
    found.plot(tmp_path / "frontier.png", points=4)
    assert (tmp_path / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        found.plot(tmp_path / "frontier.svg", points=4)
    drawn = (tmp_path / "frontier.svg").read_text()
    assert all(f">{text}<" in drawn for text in ("weights (bytes)", "chosen bits", "uniform bits", " 2", " 8"))
    for path, cost, message in (("a.png", "file", "no cost 'file'"), ("a.docx", "weights", "docx")):
        with pytest.raises(LowbitError, match=message):
            found.plot(tmp_path / path, cost)
        assert not (tmp_path / path).exists()


def test_what_is_decided_already_stays(network: nn.Module) -> None:
    rules = [Rule("second", weights=4, activations=4), Rule("short", skip=True)]
    found = lowbit.allocate(network, [images()], "average_bits=3.9", rules=rules, first_last=4)
    assert found[:2] == tuple(rules)
    assert found.bits["second"] == found.bits["stem"] == found.bits["head"] == (4, 4)
    assert "short" not in found.bits
    weights_only = lowbit.allocate(network, [images()], "average_bits=3.9", activation_choices=())
    assert all(x is None for _, x in weights_only.bits.values())


def test_a_network_of_which_nothing_is_quantized(network: nn.Module) -> None:
    for options in (
        {"rules": [Rule(".*", skip=True)]},
        {"first_last": None, "rules": [Rule("first|second|short", skip=True)]},
    ):
        with pytest.raises(LowbitError, match="nothing of this network is quantized"):
            lowbit.allocate(network, [images()], "average_bits=3.9", **options)


def test_uniform_bits_that_do_as_well_are_said(network: nn.Module) -> None:
    with pytest.warns(UserWarning, match="8 bits for all layers are within the budget and expected to do as well"):
        lowbit.allocate(network, [images()], "weights=1MB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lowbit.allocate(network, [images()], "average_bits=3.2", activation_choices=(8,))


@pytest.mark.parametrize(
    "batches, budget, options, message",
    [
        ([], "weights=1kB", {}, "no batches"),
        ([images()], "weights=10B", {}, "weights is at least"),
        ([images()], "activations=1B", {}, "activations is at least"),
        ([images()], "weights=1kB", {"sensitivity": "guessed"}, "unknown sensitivity"),
        ([images()], "weights=1kB", {"sensitivity": "learned", "steps": 0}, "steps must be at least 1"),
        ([images() / 0], "weights=1kB", {"sensitivity": "learned"}, "NaN|infinite"),
        ([images()], "weights=1kB", {"choices": (2, 9)}, "bits"),
        ([images()], "weights=1kB", {"choices": ()}, "at least one number of bits"),
        ([images()], "file=9kB", {"activation_choices": ()}, "whose inputs have bits too"),
    ],
)
def test_bad_arguments(network: nn.Module, batches: list, budget: str, options: dict, message: str) -> None:
    with pytest.raises(LowbitError, match=message):
        lowbit.allocate(network, batches, budget, **options)


def test_what_batchnorm_takes_out_is_not_measured() -> None:
    """A weight at two bits that is its grid times a factor: batch-norm divides by the factor, if its statistics are taken again."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    x = torch.randn(512, 6)
    lowbit.reestimate_batchnorm(network, [x])
    model = lowbit.calibrate(lowbit.prepare(network, weights=4, activations=8, first_last=4), [x])
    layer = model.get_submodule("0")
    side = Side("weight of 0", ("0",), (Member(layer.weight_quantizer, layer.weight.detach()),), (2, 8))

    class Halved(nn.Module):
        def forward(self, w: torch.Tensor) -> torch.Tensor:
            return w / 2

    def losses(how: nn.Module) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Member, "of", lambda self, bits: how)
            return by_measurement(model, [side], x.split(128), None)["weight of 0"][2]

    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert losses(Halved()) < 1e-5 < losses(nn.Hardtanh(-0.1, 0.1))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
