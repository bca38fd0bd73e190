"""From a prepared network to integers: the integer network computes what the trained one does in evaluation."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError, Rule, models
from lowbit._torchvision import import_torchvision
from lowbit.integer.ops import Add, ChannelShuffle, Concatenate, Convolution, Lookup, Multiply, Reshape
from lowbit.lowering import foresee
from lowbit.quantizer.methods import lsq_plus
from tests.lowering.networks import Forward, agreement, finish, images, start, trained


class Everything(nn.Module):
    """One of each: folded and lone batch-norm (γ of both signs, and 0), bias, groups, pooling, shuffle, gate, lookups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.wide = nn.Conv2d(8, 8, 1)
        self.joined_norm = nn.BatchNorm2d(16)
        self.mix = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.act = nn.ReLU6()
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.pool(F.relu(self.norm(self.stem(x))))
        x = torch.cat([self.deep(x), self.act(self.wide(x))], dim=1)
        x = F.silu(self.joined_norm(x))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        left, right = self.mix(x).chunk(2, dim=1)
        x = torch.cat((right, left), 1)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = x * gate + F.pad(x[:, 4:12], (0, 0, 0, 0, 4, 4))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_integer_network_agrees_with_the_trained_one(bits, granularity):
    x = images(4, 3, 20, 20)
    model = Everything()
    nn.init.zeros_(model.norm.weight[3:4].data)
    prepared = trained(model, x, weights=bits, activations=bits, granularity=granularity)
    with torch.no_grad():
        prepared.norm.weight[3] = 0  # a channel that batch-norm switches off
    compared, differ = agreement(prepared, x)
    # Ties and float summation order move a code now and then; one that moves early moves others behind it.
    assert compared > 10_000 and differ <= 0.002 * compared
    network = lowbit.to_integer(prepared, x)
    expected = prepared(x).detach()
    torch.testing.assert_close(network(x), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
    kinds = {type(node) for node in network.graph.nodes}
    assert {Add, Concatenate, Convolution, Lookup, Multiply} <= kinds


@pytest.mark.parametrize("method", ["lsq", "lsq+", "lg-lsq", "pact", "dorefa", "minmax", "ewgs", "dsq", lsq_plus(3)])
def test_every_method_converts(method):
    x = images(4, 1, 8, 8)
    compared, differ = agreement(trained(models.create("digits-cnn"), x, method=method), x)
    assert differ <= 0.001 * compared


def test_relu6_clips_where_the_grid_reaches_beyond_it():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    x = 40 * images(8, 1, 8, 8)
    prepared = trained(model, x, weights=8, activations=8)
    with torch.no_grad():
        prepared.get_submodule("2").input_quantizer.raw_step.mul_(4)
    assert agreement(prepared, x)[1] == 0
    assert any(isinstance(node, Lookup) for node in lowbit.to_integer(prepared, x).graph.nodes)


@pytest.mark.parametrize("name", ["cifar-resnet20", "digits-cnn"])
def test_own_networks(name):
    x = images(2, *((1, 8, 8) if name == "digits-cnn" else (3, 32, 32)))
    compared, differ = agreement(trained(models.create(name), x, weights=3, activations=3), x)
    assert differ <= 0.001 * compared


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_timm_networks(name):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, num_classes=10, **({"zero_init_last": False} if name == "resnet18" else {}))
    x = images(2, 3, 32, 32)
    compared, differ = agreement(trained(model, x), x)
    assert differ <= 0.01 * compared


def test_shufflenet_shares_one_step_per_stage():
    torchvision = import_torchvision()
    x = images(2, 3, 32, 32)
    prepared = trained(torchvision.models.shufflenet_v2_x0_5(weights=None), x)
    assert (
        prepared.get_submodule("stage2.1.branch2.0").input_quantizer
        is prepared.get_submodule("stage2.3.branch2.0").input_quantizer
    )
    compared, differ = agreement(prepared, x)
    assert differ <= 0.01 * compared
    # Its shuffle is written as reshapes around a transposition: one node, nothing in a fifth dimension.
    nodes = lowbit.to_integer(prepared, x).graph.nodes
    assert sum(isinstance(node, ChannelShuffle) for node in nodes) == 16
    assert not any(isinstance(node, Reshape) and len(node.shape) > 1 for node in nodes)


def test_evaluation_sees_the_rounded_bias_and_training_does_not():
    x = images(4, 3, 20, 20)
    prepared = trained(Everything(), x, weights=2, activations=2)
    plain = lowbit.prepare(Everything(), weights=2, activations=2)
    assert type(prepared.norm) is not nn.BatchNorm2d and type(plain.norm) is nn.BatchNorm2d
    out = F.conv2d(x, prepared.stem.weight)
    prepared.norm.train()
    torch.testing.assert_close(
        prepared.norm(out), F.batch_norm(out, None, None, prepared.norm.weight, prepared.norm.bias, True)
    )


def test_rules_reach_the_inserted_quantizers():
    x = images(2, 3, 32, 32)
    model = models.create("cifar-resnet20")
    prepared = lowbit.prepare(model, integer_only=True, rules=[Rule(r"activation_quantizers\.layer1.*", activations=6)])
    widths = {name: module.bits for name, module in prepared.activation_quantizers.named_children()}
    assert {bits for name, bits in widths.items() if name.startswith("layer1")} == {6}
    assert {bits for name, bits in widths.items() if not name.startswith("layer1")} == {8}
    assert set(model.state_dict()) <= set(lowbit.calibrate(prepared, [x]).state_dict())


def test_a_checkpoint_of_an_integer_only_network_loads():
    x = images(4, 1, 8, 8)
    prepared = trained(models.create("digits-cnn"), x, method="lsq+")
    fresh = lowbit.prepare(models.create("digits-cnn"), method="lsq+", integer_only=True)
    fresh.load_state_dict(prepared.state_dict())
    assert torch.equal(lowbit.to_integer(fresh.eval(), x)(x), lowbit.to_integer(prepared, x)(x))


def test_snapping_makes_zero_points_whole_and_they_stay_so_in_training():
    x = images(64, 16)
    model = nn.Sequential(nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 4))
    prepared = lowbit.calibrate(lowbit.prepare(model, method="lsq+", first_last=4), [x])
    quantizer = prepared[2].input_quantizer
    assert quantizer.uses_offset and float(quantizer.zero_point) != round(float(quantizer.zero_point))
    lowbit.round_zero_points(prepared)
    before = quantizer.offset.clone()
    optimizer = torch.optim.SGD(lowbit.parameter_groups(prepared, weight_decay=0.0), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()
    assert not torch.equal(quantizer.offset, before)  # still learned
    assert float(quantizer.zero_point) == round(float(quantizer.zero_point))
    codes = quantizer(F.silu(x)) / quantizer.step + quantizer.zero_point
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)


class Cumulative(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.cumprod(torch.cumsum(self.inner(x), -1), -1))


def test_operations_without_integer_form_are_all_named():
    with pytest.raises(LowbitError, match=r"no integer form:\n  cumsum in .*\n  cumprod in "):
        lowbit.prepare(Cumulative(), integer_only=True)


def gate_by_channel_mean(self, x):
    y = start(self, x)
    return finish(self, y * y.mean(1, keepdim=True))


def shuffled_by_permutation(self, x):
    y = start(self, x)
    b, c, h, w = y.shape
    return finish(self, y.view(b, 2, c // 2, h, w).permute(0, 2, 1, 3, 4).reshape(b, c, h, w))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda self, x: finish(self, start(self, x).flip(0)), "flip .* along .* the batch"),
        (lambda self, x: finish(self, start(self, x).imag), "imag is not implemented"),
    ],
)
def test_operations_that_only_shapes_tell_apart(function, words):
    x = images(4, 3, 9, 7)
    prepared = lowbit.prepare(Forward(function), integer_only=True)
    with pytest.raises(LowbitError, match=words):
        lowbit.to_integer(lowbit.calibrate(prepared, [x]), x)


@pytest.mark.parametrize(
    "function",
    [
        shuffled_by_permutation,
        gate_by_channel_mean,
        lambda self, x: self.head(start(self, x).mean(2).mean(2)),
        lambda self, x: finish(self, start(self, x).mT),
        lambda self, x: finish(self, torch.cat(start(self, x).chunk(2, 1), 1)),
        lambda self, x: finish(self, sum(layer(start(self, x)) for layer in (self.second, self.second))),
        lambda self, x: self.head(F.adaptive_avg_pool2d(start(self, x), 1).squeeze()),
        lambda self, x: self.head(torch.flatten(input=F.adaptive_avg_pool2d(start(self, x), 1), start_dim=1)),
        lambda self, x: finish(self, torch.cat(tensors=list(start(self, x).chunk(2, 1)), axis=1)),
        lambda self, x: finish(self, torch.cat([part for part in torch.split(start(self, x), [3, 5], 1)], -3)),
        lambda self, x: self.head(self.second(input=self.norm(input=self.first(input=x))).mean(axis=(2, 3))),
        lambda self, x: finish(self, F.max_pool2d(input=start(self, x), kernel_size=2, padding=1, ceil_mode=True)),
        lambda self, x: finish(self, F.softplus(start(self, x), 3.0)),
    ],
)
def test_ways_to_write_it(function):
    x = images(4, 3, 9, 7)
    prepared = trained(Forward(function), x)
    compared, differ = agreement(prepared, x)
    assert differ <= 0.01 * compared
    # No dimension of size one is taken for the batch.
    assert torch.equal(lowbit.to_integer(prepared, x[:1])(x), lowbit.to_integer(prepared, x)(x))


@pytest.mark.parametrize("gamma", [1e-9, -1e-12, 1e-30, 1e-42])
def test_a_channel_that_weight_decay_has_switched_off(gamma):
    x = images(4, 3, 9, 7)
    prepared = trained(Forward(lambda self, x: self.head(start(self, x).mean((2, 3)))), x)
    with torch.no_grad():
        prepared.norm.weight[2], prepared.norm.bias[2] = gamma, 0.5
    assert agreement(prepared, x)[1] == 0
    codes = lowbit.to_integer(prepared, x).codes(x)["first"]
    step = prepared.get_submodule("activation_quantizers.relu").step
    assert bool((codes[:, 2] == torch.round(0.5 / step)).all())


def test_what_training_alone_does_is_not_in_the_graph():
    def function(self, x):
        y = self.head(F.dropout(start(self, x).mean((2, 3)), 0.5, training=self.training))
        return (y, x) if self.training else y

    x = images(4, 3, 9, 7)
    for mode in (True, False):
        prepared = lowbit.prepare(Forward(function).train(mode), integer_only=True)
        assert prepared.training == prepared.norm.training == mode
        lowbit.calibrate(prepared, [x])
        torch.testing.assert_close(prepared.eval()(x), lowbit.to_integer(prepared, x)(x), rtol=0.02, atol=0.02)
        prepared.train()
        assert not torch.equal(prepared(x), prepared(x))  # dropped anew


def test_layers_that_stay_in_evaluation_do_so():
    model = Forward(lambda self, x: finish(self, start(self, x))).train()
    model.norm.eval()
    prepared = lowbit.prepare(model, integer_only=True)
    assert prepared.training and not prepared.norm.training
    x = images(2, 3, 9, 7)
    lowbit.to_integer(lowbit.calibrate(prepared, [x]), x)
    assert prepared.training and prepared.second.training and not prepared.norm.training


def test_a_batch_norm_with_a_forward_of_its_own():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = Forward(lambda self, x: finish(self, start(self, x)), norm=Doubled(8))
    with pytest.raises(LowbitError, match=r"batch_norm in 'norm' \(Doubled\)"):
        lowbit.prepare(model, integer_only=True, example_input=images(4, 3, 9, 7))


def test_a_name_that_a_library_uses_says_nothing_about_an_own_class():
    class DropPath(nn.Module):
        def forward(self, x):
            return x + x

    class Swish(nn.Module):
        def forward(self, x):
            return F.relu(x)

    model = Forward(lambda self, x: finish(self, self.swish(self.path(start(self, x)))), path=DropPath(), swish=Swish())
    x = images(4, 3, 9, 7)
    integer = lowbit.to_integer(trained(model, x, weights=8, activations=8), x)
    expected = model.eval()(x)
    torch.testing.assert_close(integer(x), expected, rtol=0, atol=0.2 * float(expected.detach().abs().max()))


def test_torchvision_efficientnet():
    model = import_torchvision().models.efficientnet_b0(weights=None, num_classes=10)
    prepared = lowbit.prepare(model, integer_only=True)
    assert any(type(module).__name__ == "StochasticDepth" for module in prepared.modules())


def small(**options) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    return lowbit.prepare(model, integer_only=True, **options)


X = images(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: None, "input of layer '0' has no step yet|weight of layer '0' has no step yet"),
        (lambda m: lowbit.calibrate(m, [X]).get_submodule("0").weight_quantizer.raw_step.data.fill_(float("nan")),
         r"weight of layer '0' \(Conv2d\) has a step that is not finite"),
        (lambda m: nn.init.constant_(lowbit.calibrate(m, [X]).get_submodule("4").bias, 1e30),
         r"layer '4' \(Linear\): its bias does not fit 32 bits"),
        (lambda m: nn.init.constant_(lowbit.calibrate(m, [X]).get_submodule("0").weight, float("nan")),
         r"layer '0' \(Conv2d\): its weight holds NaN or infinity"),
        (lambda m: nn.init.constant_(lowbit.calibrate(m, [X]).get_submodule("1").running_var, float("inf")),
         r"layer '1' \(BatchNorm2d\): its running_var holds NaN or infinity"),
        (lambda m: lowbit.calibrate(m, [X]).double(), r"layer '0' \(Conv2d\): its weight is torch.float64, not float32: call model.float"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_converted(spoil, words):
    model = small()
    spoil(model)
    with pytest.raises(LowbitError, match=words):
        lowbit.to_integer(model, X)


def test_a_network_prepared_without_integer_only():
    with pytest.raises(LowbitError, match="integer_only=True"):
        lowbit.to_integer(lowbit.prepare(models.create("digits-cnn")), images(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activations": None}, "full-precision inputs"),
        ({"rules": [Rule("0", skip=True)]}, r"layer '0' \(Conv2d\) is in full precision"),
    ],
)
def test_full_precision_layers_are_refused(options, words):
    with pytest.raises(LowbitError, match=words):
        small(**options)


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (X.double(), "float32 inputs .* in one tensor, not torch.float64"),
        ([X, X], "2 example inputs, but the network's forward takes 1: input"),
        ({"y": X}, "no input 'y'; it has 'input'"),
        (X[:, :2], r"does not take inputs of shape \(2, 8, 8\).*: Given groups=1"),
        (X[0], r"does not take inputs of shape \(8, 8\)"),
    ],
)
def test_examples_that_the_network_does_not_take(example, words):
    with pytest.raises(LowbitError, match=words):
        lowbit.to_integer(lowbit.calibrate(small(), [X]), example)


def layers_and(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *layers, nn.Flatten(), nn.LazyLinear(3))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            [nn.BatchNorm2d(4, track_running_stats=False), nn.LPPool2d(2, 2)],
            r"layer '2' \(BatchNorm2d\): it keeps no running statistics, .*\n  layer '3' \(LPPool2d\)\n",
        ),
        ([nn.BatchNorm2d(4, track_running_stats=False)], r"layer '2' \(BatchNorm2d\): it keeps no running statistics"),
        ([nn.LocalResponseNorm(2)], r"no integer form:\n  layer '2' \(LocalResponseNorm\)\nreplace"),
    ],
)
def test_layers_without_an_integer_form_are_named_before_training(layers, words):
    model = layers_and(*layers)
    model(X)
    with pytest.raises(LowbitError, match=words):
        lowbit.prepare(model, integer_only=True)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda self, x: finish(self, start(self, x).clamp(max=self.norm.bias)), "clamp in the network's forward"),
    ],
)
def test_forwards_without_an_integer_form_are_named_before_training(function, words):
    with pytest.raises(LowbitError, match=words):
        lowbit.prepare(Forward(function), integer_only=True)


def test_groups_within_an_output_channel_are_refused():
    with pytest.raises(LowbitError, match="layer '4' has several steps within an output channel"):
        small(rules=[Rule("4", granularity="group:36")])
    small(rules=[Rule("0", granularity="channels:2"), Rule("4", granularity="group:144")])  # one each


def test_an_offset_far_from_zero_says_what_to_do():
    x = images(4, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 36, 3))
    nn.init.constant_(model[1].bias, 6.0)  # nothing near 0
    prepared = lowbit.prepare(model, method="lsq+4", first_last=4, integer_only=True)
    lowbit.round_zero_points(lowbit.calibrate(prepared, [x]))
    with pytest.raises(LowbitError, match=r"input of layer '4' .* has the zero point -.*by a rule"):
        lowbit.to_integer(prepared, x)


def test_a_fractional_offset_says_how_to_snap():
    model = nn.Sequential(nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 4))
    prepared = lowbit.prepare(model, method="lsq+", first_last=4, integer_only=True)
    x = images(64, 16)
    lowbit.calibrate(prepared, [x])
    with pytest.raises(LowbitError, match="round_zero_points"):
        lowbit.to_integer(prepared, x)


def test_a_pickled_network_is_the_same_network(tmp_path):
    """timm's batch-norms with an activation inside are taken apart once, not again by whoever loads the network."""
    model = pytest.importorskip("timm").create_model("mobilenetv3_small_050", num_classes=5)
    x = images(2, 3, 32, 32)
    prepared = trained(model, x)
    torch.save(prepared, tmp_path / "network.pt")
    for other in (pickle.loads(pickle.dumps(prepared)), torch.load(tmp_path / "network.pt", weights_only=False)):
        assert torch.equal(other(x), prepared(x)) and len(other.graph.nodes) == len(prepared.graph.nodes)
    assert torch.equal(lowbit.to_integer(other, x)(x), lowbit.to_integer(prepared, x)(x))


def test_the_trial_before_training_takes_the_networks_own_weights(monkeypatch):
    """And initializes quantizers of its own: a copy of every weight would take as much memory again."""
    tried = []
    converter = foresee.Converter
    monkeypatch.setattr(foresee, "Converter", lambda model, *others: tried.append(model) or converter(model, *others))
    network = Forward(lambda self, x: finish(self, start(self, x)))
    prepared = lowbit.prepare(network, integer_only=True, example_input=images(2, 3, 9, 7))
    (trial,) = tried
    assert trial.second is not prepared.second and trial.second.weight is prepared.second.weight
    found = [
        [quantizer.initialized for quantizer in dict(lowbit.quantizers(each)).values()] for each in (trial, prepared)
    ]
    assert all(found[0]) and not any(found[1])
