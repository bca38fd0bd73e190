"""Every recipe gives a config that prepares, with the paper's settings."""

from __future__ import annotations

import pytest

from lowbit.errors import LowbitError
from lowbit.recipes import RECIPES, get_recipe
from lowbit.train import TrainConfig
from lowbit.train.build import build_float, prepare


def test_the_promised_recipes_are_there() -> None:
    cifar = {f"cifar10-resnet{depth}{suffix}" for depth in (20, 32, 44, 56, 110) for suffix in ("", "-fp")}
    networks = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg16bn")
    imagenet = {f"lsq-{network}-w{bits}a{bits}" for network in networks for bits in (2, 3, 4, 8)}
    assert cifar | imagenet | {"digits-cnn", "digits-cnn-fp", "lsq-resnet50-w4a4-distill"} <= RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_config_is_whole(name: str) -> None:
    config = RECIPES[name]()
    assert config.recipe == name
    assert TrainConfig.from_dict(config.as_dict()) == config
    assert (config.quantization is None) == name.endswith("-fp")
    assert (config.task == "distill") == name.endswith("-distill")
    assert RECIPES[name].published and RECIPES[name].cost


@pytest.mark.parametrize("name", ["digits-cnn", "cifar10-resnet20", "cifar10-resnet20-fp"])
def test_network_of_a_recipe_prepares(name: str) -> None:
    config = RECIPES[name]()
    prepare(build_float(config.model), config.quantization)


@pytest.mark.parametrize(
    ("bits", "epochs", "lr", "decay"), [(2, 90, 0.01, 0.25e-4), (3, 90, 0.01, 0.5e-4), (4, 90, 0.01, 1e-4), (8, 1, 0.001, 1e-4)]
)  # fmt: skip
def test_lsq_on_imagenet_is_the_papers(bits: int, epochs: int, lr: float, decay: float) -> None:
    config = RECIPES[f"lsq-resnet18-w{bits}a{bits}"]()
    assert (config.quantization.weights, config.quantization.activations, config.quantization.first_last) == (
        bits,
        bits,
        8,
    )
    assert (config.epochs, config.optimizer.lr, config.optimizer.weight_decay) == (epochs, lr, decay)
    assert (config.optimizer.name, config.optimizer.momentum, config.schedule.kind) == ("sgd", 0.9, "cosine")
    assert (config.data.batch_size, config.data.augment) == (256, "imagenet-crop")
    assert config.model.name == "resnet18.tv_in1k" and config.model.pretrained


@pytest.mark.parametrize(
    ("weights", "decay"), [(None, 1e-4), (8, 1e-4), (4, 1e-4), (3, 0.5e-4), (2, 0.25e-4), (1, 0.25e-4)]
)
def test_cifar_decays_weights_by_their_width(weights: int | None, decay: float) -> None:
    assert RECIPES["cifar10-resnet20"](weights=weights, activations=8).optimizer.weight_decay == decay


def test_options_reach_the_config() -> None:
    config = RECIPES["cifar10-resnet56"](weights=2, activations=4, method="lsq+")
    assert config.model.name == "cifar-resnet56"
    assert (config.quantization.weights, config.quantization.activations) == (2, 4)
    assert config.quantization.method == "lsq+"
    assert RECIPES["cifar10-resnet20"](weights=None, activations=None).quantization is None


@pytest.mark.parametrize(
    ("name", "reason"), [("digits-cnn-fp", "full precision"), ("lsq-resnet18-w2a2", "it takes method")]
)
def test_an_option_a_recipe_does_not_have_is_refused(name: str, reason: str) -> None:
    with pytest.raises(LowbitError, match=f"{name}.*weights.*{reason}"):
        RECIPES[name](weights=3)


def test_an_unknown_recipe_is_refused_with_close_names() -> None:
    with pytest.raises(LowbitError, match=r"unknown recipe 'cifar-resnet20'\. Did you mean 'cifar10-resnet20'"):
        get_recipe("cifar-resnet20")
