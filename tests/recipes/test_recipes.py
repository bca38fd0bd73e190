"""Every recipe gives a config that prepares, with the paper's settings and the paper's figures."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch

import lowbit
from lowbit import models
from lowbit.errors import LowbitError
from lowbit.recipes import RECIPES, Recipe, get_recipe
from lowbit.recipes.common import MACS
from lowbit.train import TrainConfig
from lowbit.train.build import build_float, prepare

RESNETS = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
LSQ_NETWORKS = [*RESNETS, *(f"preact-{name}" for name in RESNETS), "vgg16-bn", "squeezenext-23-2x"]
DISTILL = ("", "-distill")
OWN = ("own-fp", "own")  # of no network of their own


def test_the_promised_recipes_are_there() -> None:
    cifar = {f"cifar10-{net}{suffix}" for net in (*(f"resnet{d}" for d in (20, 32, 44, 56, 110)), "vgg-small") for suffix in ("", "-fp")}  # fmt: skip
    lsq = {f"lsq-{net}-w{bits}a{bits}{d}" for net in LSQ_NETWORKS for bits in (2, 3, 4, 8) for d in DISTILL}
    lsq_plus = {
        f"lsq+{configuration}-{net}-w{bits}a{bits}"
        for net in ("efficientnet-b0", "mixnet-s", "resnet18")
        for configuration in ("", 1, 2, 3, 4)
        for bits in (2, 3, 4)
    }
    lg_lsq = {f"lg-lsq-{net}-w3a3" for net in ("resnet18", "resnet34", "resnet50")} | {
        f"lg-lsq-{net}-w4a4" for net in ("mobilenetv2", "shufflenetv2-x1.0", "shufflenetv2-x0.5")
    }
    deit = {f"deit-tiny-w{bits}a{bits}{end}" for bits in (2, 3, 4) for end in ("", "-distill")}
    own = {f"imagenet-{net}-fp" for net in LSQ_NETWORKS if net.startswith(("preact", "squeezenext"))}
    assert cifar | lsq | lsq_plus | lg_lsq | deit | own | {"digits-cnn", "digits-cnn-fp", *OWN} == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_config_is_whole(name: str) -> None:
    recipe = RECIPES[name]
    config = recipe()
    assert config.recipe == name == recipe.name
    assert TrainConfig.from_dict(config.as_dict()) == config
    assert (config.quantization is None) == name.endswith("-fp")
    assert (config.task == "distill") == name.endswith("-distill")
    assert recipe.published and recipe.group and recipe.about
    assert recipe.start == ("random" if name.endswith("-fp") else "published" if config.model.pretrained else "--init")
    if widths := re.search(r"w(\d)a(\d)", name):
        assert (config.quantization.weights, config.quantization.activations) == tuple(map(int, widths.groups()))
    if not name.startswith(("digits", "cifar10", "own")):
        assert (config.model.num_classes, config.data.batch_size) == (1000, 512 if name.startswith("deit") else 256)


@pytest.mark.parametrize(
    ("name", "published", "source"),
    [
        # The LSQ paper's tables, cell by cell in what they say of two networks, and here and there of the others.
        *(
            (f"lsq-{net}-w{bits}a{bits}", f"{top1} (FP {full})", rf"Table 1, row {row} at {bits} bits: {top1} %")
            for net, row, full, figures in (
                ("resnet18", "ResNet-18", 70.5, (67.6, 70.2, 71.1, 71.1)),
                ("preact-resnet18", "ResNet-18", 70.5, (67.6, 70.2, 71.1, 71.1)),
                ("squeezenext-23-2x", "SqueezeNext-23-2x", 67.3, (53.3, 63.7, 67.4, 67.0)),
            )
            for bits, top1 in zip((2, 3, 4, 8), figures)
        ),
        ("lsq-resnet34-w3a3", "73.4 (FP 74.1)", "Table 1"),
        ("lsq-resnet50-w4a4", "76.7 (FP 76.9)", "Table 1"),
        ("lsq-resnet101-w8a8", "78.1 (FP 78.2)", "Table 1"),
        ("lsq-preact-resnet152-w2a2", "76.9 (FP 78.9)", "Table 1"),
        ("lsq-vgg16-bn-w4a4", "74.0 (FP 73.4)", "Table 1"),
        ("lsq-resnet50-w4a4-distill", "77.6 (FP 76.9)", "Table 4"),
        ("lsq-resnet34-w2a2-distill", "72.4 (FP 74.1)", "Table 4"),
        ("lsq-resnet101-w2a2-distill", "-", "Table 4.*no figure is known"),
        ("lsq+-efficientnet-b0-w4a4", "73.8", r"EfficientNet-B0 at W4A4.*73.8 % top-1, 1.8 points above LSQ"),
        ("lsq+-efficientnet-b0-w2a2", "up to 5.6 points above LSQ", "5.6"),
        ("lsq+-mixnet-s-w4a4", "71.7", "71.7 % top-1"),
        ("lsq+3-resnet18-w2a2", "-", "configuration 3, activations signed with offset: no figure is known"),
        ("lg-lsq-resnet34-w3a3", "as FP", "abstract.*our reconstruction"),
        ("lg-lsq-mobilenetv2-w4a4", "FP - 1", "less than 1 point.*our reconstruction"),
        ("imagenet-preact-resnet50-fp", "76.9", "76.9 % top-1 in LSQ's Table 1"),
        ("cifar10-resnet56-fp", "93.03 (He et al. 2015)", "published: 93.03"),
        ("cifar10-vgg-small", "-", "no figure is known"),
    ],
)
def test_figures_and_where_they_are_from(name: str, published: str, source: str) -> None:
    recipe = RECIPES[name]
    assert recipe.published == published
    assert re.search(source, recipe.build.__doc__, re.DOTALL)


@pytest.mark.parametrize("network", MACS)
def test_multiply_accumulates_are_those_of_the_network_at_its_recipes_size(network: str) -> None:
    recipe = next(r for r in RECIPES.values() if r.macs == MACS[network] and _short(r().model.name) == network)
    config = recipe()
    with torch.device("meta"):
        model = build_float(config.model.without_weights())
        size = config.data.image_size or (224 if recipe.images > 10**6 else 32)
        shape = (1, 8, 8) if network == "digits-cnn" else (3, size, size)
        rows = lowbit.layer_table(model, torch.empty(1, *shape))
    assert sum(row.macs for row in rows) == MACS[network]


def _short(name: str) -> str:
    name = name if name in models.names() else name.rpartition(".")[0]
    name = name.replace("_patch16_224", "").replace("deit_", "deit-")
    return name.replace("resnetv2_", "preact-resnet")  # timm's name


def test_every_recipes_network_is_counted() -> None:
    recipes = [recipe for name, recipe in RECIPES.items() if name not in OWN]
    assert {_short(recipe().model.name) for recipe in recipes} == MACS.keys()
    assert all(recipe.macs == MACS[_short(recipe().model.name)] for recipe in recipes)


def test_preactivation_networks_start_from_weights_that_timm_knows() -> None:
    """And see pixels as those weights did; each has the parameters of lowbit's network of the same depth."""
    import timm

    found = {name: recipe() for name, recipe in RECIPES.items() if name.startswith("lsq-preact")}
    for name, config in found.items():
        assert config.data.mean == config.data.std == (0.5,) * 3
        assert RECIPES[f"imagenet-{name.split('-w')[0].removeprefix('lsq-')}-fp"]().data.mean == (0.5,) * 3
        assert config.model.pretrained != ("152" in name)
    for named in {config.model.name for config in found.values() if config.model.pretrained}:
        weights = timm.get_pretrained_cfg(named)
        assert weights is not None and weights.hf_hub_id, named
        assert weights.mean == weights.std == (0.5,) * 3
        with torch.device("meta"):
            theirs, ours = models.create(named), models.create(_short(named))
        assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())


def test_work_is_the_passes_of_all_images() -> None:
    plain, distilled = (RECIPES[f"lsq-resnet18-w2a2{suffix}"].work for suffix in DISTILL)
    assert plain == 3 * 1_814_073_344 * 1_281_167 * 90 and distilled == plain / 3 * 4
    assert Recipe("mine", RECIPES["digits-cnn"].build).work is None


# With and without distillation it is the same network at the same bits.
@pytest.mark.parametrize(
    "name", [name for name in RECIPES if not name.endswith(("-fp", "-distill")) and name not in OWN]
)
def test_network_of_a_recipe_prepares(name: str) -> None:
    config = RECIPES[name]()
    with torch.device("meta"):
        prepared = prepare(_float_network(config.model.name), config.quantization)
    assert f"{name}-distill" not in RECIPES or RECIPES[f"{name}-distill"]().quantization == config.quantization
    widths = {(row.weight_bits, row.activation_bits) for row in lowbit.layer_table(prepared)[1:-1]}
    assert widths == {(config.quantization.weights, config.quantization.activations)}


@cache
def _float_network(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return models.create(name)


@pytest.mark.parametrize("network", LSQ_NETWORKS)
@pytest.mark.parametrize(
    ("bits", "epochs", "lr", "decay"), [(2, 90, 0.01, 0.25e-4), (3, 90, 0.01, 0.5e-4), (4, 90, 0.01, 1e-4), (8, 1, 0.001, 1e-4)]
)  # fmt: skip
@pytest.mark.parametrize("distill", DISTILL)
def test_lsq_on_imagenet_is_the_papers(
    network: str, bits: int, epochs: int, lr: float, decay: float, distill: str
) -> None:
    config = RECIPES[f"lsq-{network}-w{bits}a{bits}{distill}"]()
    assert config.quantization.first_last == 8 and config.quantization.method == "lsq"
    assert (config.epochs, config.optimizer.lr, config.optimizer.weight_decay) == (epochs, lr, decay)
    assert (config.optimizer.name, config.optimizer.momentum, config.schedule.kind) == ("sgd", 0.9, "cosine")
    assert config.data.augment == "imagenet-crop"
    assert config.data.image_size == (227 if network.startswith("squeezenext") else None)


def test_what_the_recipes_start_from() -> None:
    starts = {recipe().model.name for recipe in RECIPES.values() if recipe.start == "published"}
    assert starts == {
        *(f"{name}.tv_in1k" for name in RESNETS),
        *(f"resnetv2_{depth}.ra4_e3600_r224_in1k" for depth in (18, 34)),
        *(f"resnetv2_{depth}.a1h_in1k" for depth in (50, 101)),
        "vgg16-bn",
        "mobilenetv2.ra_in1k",
        "shufflenetv2-x1.0",
        "shufflenetv2-x0.5",
        "efficientnet-b0.ra_in1k",
        "mixnet-s.ft_in1k",
        "deit_tiny_patch16_224.fb_in1k",
    }
    import timm
    import torchvision

    for name in starts:
        base, _, tag = name.partition(".")
        known = models.NETWORKS.get(name) or models.NETWORKS.get(base)
        build = f"timm:{base}" if known is None else known.build
        library, _, there = build.partition(":")
        if library == "timm":
            assert f"{there}.{tag}" in timm.list_pretrained(f"{there}.*")
        else:
            assert torchvision.models.get_model_weights(there)


@pytest.mark.parametrize(("name", "method"), [("lsq+-mixnet-s-w2a2", "lsq+"), ("lsq+3-mixnet-s-w2a2", "lsq+3")])
def test_configurations_of_lsq_plus(name: str, method: str) -> None:
    assert RECIPES[name]().quantization.method == method
    assert lowbit.METHODS[method].for_activations.offset == ("negative" if method == "lsq+" else "always")
    assert RECIPES[name](method="ewgs").quantization.method == "ewgs"


def test_lg_lsq_has_symmetric_grids() -> None:
    quantization = RECIPES["lg-lsq-resnet18-w3a3"]().quantization
    assert quantization.narrow and quantization.method == "lg-lsq"


@pytest.mark.parametrize(
    ("weights", "decay"), [(None, 1e-4), (8, 1e-4), (4, 1e-4), (3, 0.5e-4), (2, 0.25e-4), (1, 0.25e-4)]
)
def test_cifar_decays_weights_by_their_width_and_learns_all_alike(weights: int | None, decay: float) -> None:
    optimizer = RECIPES["cifar10-resnet20"](weights=weights, activations=8).optimizer
    assert (optimizer.weight_decay, optimizer.lr) == (decay, 0.05)


@pytest.mark.parametrize("method", sorted(lowbit.METHODS))
@pytest.mark.parametrize("network", ["resnet20", "resnet56", "vgg-small"])
def test_cifar_takes_every_method(network: str, method: str) -> None:
    config = RECIPES[f"cifar10-{network}"](weights=2, activations=3, method=method)
    with torch.device("meta"):
        rows = lowbit.layer_table(prepare(_float_network(config.model.name), config.quantization))
    assert {row.method for row in rows} == {method} and {row.weight_bits for row in rows[1:-1]} == {2}


def test_options_reach_the_config() -> None:
    config = RECIPES["cifar10-resnet56"](weights=2, activations=4, method="lsq+")
    assert config.model.name == "cifar-resnet56"
    assert (config.quantization.weights, config.quantization.activations) == (2, 4)
    assert config.quantization.method == "lsq+"
    assert RECIPES["cifar10-resnet20"](weights=None, activations=None).quantization is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [("digits-cnn-fp", "full precision"), ("imagenet-preact-resnet18-fp", "full precision"), ("lsq-resnet18-w2a2", "it takes method")],
)  # fmt: skip
def test_an_option_a_recipe_does_not_have_is_refused(name: str, reason: str) -> None:
    with pytest.raises(LowbitError, match=f"{name}.*weights.*{reason}"):
        RECIPES[name](weights=3)


def test_short_trainings_start_activations_by_least_squares_where_the_rule_is_lsqs() -> None:
    for method, rule in (("lsq", "least-squares"), ("ewgs", "least-squares"), ("lg-lsq", "least-squares"),
                         ("lsq+", None), ("pact", None), ("dorefa", None), ("minmax", None)):  # fmt: skip
        for config in (RECIPES["cifar10-resnet20"](method=method), RECIPES["own"](method=method)):
            assert (config.quantization.init_activations, config.quantization.init_weights) == (rule, None)
    assert RECIPES["lsq-resnet18-w2a2"]().quantization.init_activations is None


def test_an_unknown_recipe_is_refused_with_close_names() -> None:
    with pytest.raises(LowbitError, match=r"unknown recipe 'cifar-resnet20'\. Did you mean 'cifar10-resnet20'"):
        get_recipe("cifar-resnet20")


def test_vgg_as_the_paper_spells_it() -> None:
    assert get_recipe("lsq-vgg16bn-w2a2") is RECIPES["lsq-vgg16-bn-w2a2"]
