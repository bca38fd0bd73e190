"""Weights that something computes before each call, and layer classes of others: what is prepared, what is refused in words."""

from __future__ import annotations

import copy
import pickle
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import lowbit
from lowbit import LowbitError


def hooked(change, *arguments, **options):
    def make():
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 3)
        change(layer, *arguments, **options)
        return layer

    return make


COMPUTED = {
    "weight norm": (
        hooked(nn.utils.weight_norm),
        lambda layer: nn.utils.remove_weight_norm(layer),
        "remove_weight_norm",
    ),
    "spectral norm": (
        hooked(nn.utils.spectral_norm),
        lambda layer: nn.utils.remove_spectral_norm(layer),
        "remove_spectral_norm",
    ),
    "pruning": (
        hooked(prune.l1_unstructured, "weight", amount=0.5),
        lambda layer: prune.remove(layer, "weight"),
        "prune.remove",
    ),
    "pruned twice": (
        lambda: prune.l1_unstructured(prune.random_structured(nn.Conv2d(3, 4, 3), "weight", 0.5, dim=0), "weight", 0.1),
        lambda layer: prune.remove(layer, "weight"),
        "prune.remove",
    ),
    "pruned bias": (
        hooked(prune.l1_unstructured, "bias", amount=1),
        lambda layer: prune.remove(layer, "bias"),
        "prune.remove",
    ),
    "parametrized weight norm": (
        hooked(parametrizations.weight_norm),
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
        r"parametrization \(WeightNorm\).*remove_parametrizations",
    ),
    "parametrized spectral norm": (
        hooked(parametrizations.spectral_norm),
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
        r"parametrization \(SpectralNorm\).*remove_parametrizations",
    ),
    "parametrized orthogonal": (
        hooked(parametrizations.orthogonal),
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
        r"parametrization \(Orthogonal\).*remove_parametrizations",
    ),
}
ignored = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")


@ignored
@pytest.mark.parametrize("state", ["fresh", "run", "loaded"])
@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weights_are_refused_by_name_with_the_remedy(kind, state):
    make, undo, words = COMPUTED[kind]
    model = nn.Sequential(nn.Sequential(make()), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(2, 3, 4, 4)
    if state == "run":
        model(x)
    if state == "loaded":
        model.load_state_dict(copy.deepcopy(model.state_dict()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(LowbitError, match=rf"layer '0.0' \(Conv2d\): its (weight|bias) is computed .*{words}"):
        lowbit.prepare(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    undo(model[0][0])  # the remedy, after which steps start from the weight that the network computes with
    prepared = lowbit.calibrate(lowbit.prepare(model, first_last=4), [x])
    weight = model.eval()[0][0].weight
    assert float(prepared[0][0].weight_quantizer.step) == pytest.approx(float(2 * weight.abs().mean() / 7**0.5))


@ignored
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_rule_leaves_such_a_layer_as_it_is(kind):
    make, *_ = COMPUTED[kind]
    model = nn.Sequential(make(), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(2, 3, 4, 4)
    model(x)
    prepared = lowbit.prepare(model, rules=[lowbit.Rule("0", skip=True)])
    model.eval(), prepared.eval()
    assert torch.equal(prepared[0](x), model[0](x))
    prepared[0](x).sum().backward()
    assert all(p.grad is None for p in model.parameters())


@ignored
def test_other_modules_of_an_integer_network_are_looked_at_too():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.utils.spectral_norm(nn.BatchNorm2d(4), dim=0), nn.Flatten(), nn.Linear(16, 2)
    )
    with pytest.raises(LowbitError, match=r"layer '1' \(BatchNorm2d\): its weight .*remove_spectral_norm"):
        lowbit.prepare(model, integer_only=True)


def test_pruning_of_a_prepared_network_is_to_be_made_permanent_before_conversion():
    x = torch.randn(4, 3, 4, 4)
    model = lowbit.prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)), integer_only=True)
    lowbit.calibrate(model, [x]).eval()
    layer = model.get_submodule("0")
    prune.l1_unstructured(layer, "weight", amount=0.5)
    model(x)
    with pytest.raises(LowbitError, match=r"layer '0' .*torch.nn.utils.prune.remove\(layer, 'weight'\)"):
        lowbit.to_integer(model, x)
    prune.remove(layer, "weight")
    weight = lowbit.to_integer(model, x).graph.by_name["_0"].weight.codes
    assert int((weight == 0).sum()) >= 54


class PropertyWeight(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.raw = nn.Parameter(self._parameters.pop("weight").detach())

    @property
    def weight(self):
        return self.raw.tanh()


class Keeps(nn.Conv2d):
    """A class that torchvision's Conv3DSimple is like: torch's forward, its own constructor, and things of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def doubled(self) -> int:
        return 2 * self.in_channels


class KeepsTransposed(nn.ConvTranspose2d):
    pass


class OtherConvolution(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean(), bias)


class OtherCall(nn.Linear):
    def __call__(self, x):
        return super().__call__(x) * 2


def patched() -> nn.Linear:
    layer = nn.Linear(3, 3)
    layer.forward = types.MethodType(lambda self, x: x, layer)
    return layer


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (PropertyWeight, "its weight is not a parameter of its own"),
        (lambda: OtherConvolution(3, 3, 1), "OtherConvolution with a _conv_forward of its own"),
        (lambda: OtherCall(3, 3), "OtherCall with a __call__ of its own"),
        (patched, "Linear with a forward of its own"),
    ],
)
def test_what_computes_in_another_way_is_refused(layer, words):
    model = nn.Sequential(layer())
    with pytest.raises(LowbitError, match=f"layer '0' .*{words}.*skip=True"):
        lowbit.prepare(model)


@pytest.mark.parametrize(
    ("own", "plain", "integer_only"),
    [
        (lambda: Keeps(4), lambda: nn.Conv2d(4, 4, 3, padding=1), False),
        (lambda: Keeps(4), lambda: nn.Conv2d(4, 4, 3, padding=1), True),
        (lambda: KeepsTransposed(4, 4, 3), lambda: nn.ConvTranspose2d(4, 4, 3), False),
    ],
)
def test_a_class_that_keeps_torchs_forward_is_prepared_and_stays_itself(own, plain, integer_only):
    x = torch.randn(2, 3, 6, 6)
    networks = []
    for make in (own, plain):
        torch.manual_seed(0)
        model = lowbit.prepare(nn.Sequential(nn.Conv2d(3, 4, 1), make()), integer_only=integer_only)
        networks.append(lowbit.calibrate(model, [x]).eval())
    prepared, expected = networks
    layer = prepared.get_submodule("1")
    assert torch.equal(prepared(x), expected(x))
    if isinstance(layer, Keeps):
        assert layer.doubled() == 8
    for again in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(again(x), prepared(x)) and type(again.get_submodule("1")) is type(layer)
    assert isinstance(layer, type(own()))
    rows = [[(row.name, row.kind) for row in lowbit.layer_table(each)] for each in networks]
    assert rows[0] == rows[1]
    if integer_only:
        codes, theirs = (lowbit.to_integer(each, x).codes(x) for each in networks)
        assert all(torch.equal(codes[name], theirs[name]) for name in theirs)


def test_the_layers_of_torchvisions_video_networks_are_prepared():
    from lowbit._torchvision import import_torchvision

    video = import_torchvision().models.video.resnet
    model = nn.Sequential(video.Conv3DSimple(3, 4), video.Conv3DNoTemporal(4, 4), video.Conv2Plus1D(4, 4, 4))
    x = torch.randn(1, 3, 3, 5, 5)
    prepared = lowbit.calibrate(lowbit.prepare(model), [x])
    assert [row.kind for row in lowbit.layer_table(prepared)] == ["Conv3d"] * 4
    assert prepared[0].get_downsample_stride(2) == (2, 2, 2)


@pytest.mark.parametrize("keep", [lambda y: y, lambda y: [y], lambda y: {"of": (y, y)}])
def test_what_cannot_be_copied_is_named(keep):
    class Remembers(nn.Sequential):
        def forward(self, x):
            y = super().forward(x)
            self.seen = keep(y)
            return y

    model = nn.Sequential(Remembers(nn.Linear(3, 3)))
    model(torch.randn(2, 3))
    words = (
        r"module '0' \(Remembers\): its attribute 'seen' can't be copied \(Only Tensors .*\), and prepare makes a copy"
    )
    with pytest.raises(LowbitError, match=words):
        lowbit.prepare(model)
    model[0].seen = None
    lowbit.prepare(model)
