"""What a step takes: the estimate from a few images against a whole batch, and against figures by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowbit.errors import LowbitError
from lowbit.recipes import get_recipe
from lowbit.saved import saved_bytes
from lowbit.train import DataConfig, ModelConfig, TrainConfig
from lowbit.train.build import build_float, prepare
from lowbit.train.estimate import StepCost, measure_step
from lowbit.train.shapes import example_inputs


def measure(config: TrainConfig) -> StepCost:
    original = build_float(config.model)
    return measure_step(config, original, prepare(original, config.quantization), torch.zeros(1, 1, 8, 8))


def test_saved_bytes_by_hand() -> None:
    x, weight = torch.randn(4, 10), torch.randn(6, 10, requires_grad=True)
    hidden = 4 * 6 * 4  # bytes of what ReLU keeps: its output
    assert saved_bytes(lambda: (x @ weight.T).relu().sum(), [x, weight]) == hidden
    assert saved_bytes(lambda: (x @ weight.T).relu().sum(), [weight]) == hidden + 4 * 10 * 4
    # One storage that two operations keep counts once, and what is dropped on the way not at all.
    assert saved_bytes(lambda: (lambda h: (h * h).sum() + h.exp().detach().sum())((x @ weight.T).relu()), [x, weight]) == hidden  # fmt: skip


@pytest.mark.parametrize("recipe", ["digits-cnn", "digits-cnn-fp"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_few_images_tell_what_a_batch_keeps(recipe: str, precision: str) -> None:
    config = replace(get_recipe(recipe)(), precision=precision)
    cost = measure(config)
    # The same counted on a whole batch.
    original = build_float(config.model)
    model = prepare(original, config.quantization)
    measure_step(config, original, model, torch.zeros(1, 1, 8, 8))  # starts the quantizers
    images = torch.randn(32, 1, 8, 8).contiguous(memory_format=config.memory_format)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return F.cross_entropy(model(images), torch.zeros(32, dtype=torch.int64))

    whole = saved_bytes(forward, [*model.parameters(), *model.buffers(), images]) + images.nbytes
    assert cost.activations(32) == pytest.approx(whole, rel=0.002)
    assert cost.memory(32) == cost.weights + cost.gradients + cost.optimizer + cost.activations(32)
    assert cost.seconds > 0 and cost.device == "cpu"


def test_weights_gradients_and_optimizer() -> None:
    config = get_recipe("digits-cnn-fp")()
    model = build_float(config.model)
    parameters = sum(p.nbytes for p in model.parameters())
    buffers = sum(b.nbytes for b in model.buffers())
    plain = measure(config)
    assert (plain.weights, plain.gradients, plain.optimizer) == (parameters + buffers, parameters, parameters)
    assert measure(replace(config, ema=0.99)).weights == 2 * plain.weights
    sgd = replace(config.optimizer, momentum=0.0)
    assert measure(replace(config, optimizer=sgd)).optimizer == 0
    adam = measure(replace(config, optimizer=replace(config.optimizer, name="adam"))).optimizer
    assert 2 * parameters <= adam <= 2 * parameters + 4 * len(list(model.parameters()))


def test_a_teacher_is_counted_and_needs_no_weights_here() -> None:
    config = get_recipe("digits-cnn")()
    plain, taught = measure(config), measure(replace(config, task="distill"))
    full_precision = build_float(config.model)
    tensors = [*full_precision.parameters(), *full_precision.buffers()]
    assert taught.weights - plain.weights == sum(tensor.nbytes for tensor in tensors)


def test_computing_activations_again_keeps_fewer() -> None:
    config = get_recipe("cifar10-resnet20")()
    shape = (3, 16, 16)
    kept = []
    for again in (False, True):
        original = build_float(config.model)
        model = prepare(original, config.quantization)
        kept.append(
            measure_step(
                replace(config, grad_checkpointing=again), original, model, torch.zeros(1, *shape)
            ).kept_per_image
        )
    assert kept[1] < kept[0] / 2


def test_shape_of_a_sample() -> None:
    def shape(model: str, **data) -> tuple[int, ...]:
        config = TrainConfig(model=ModelConfig(name=model), data=DataConfig(**{"path": "", **data}))
        return tuple(example_inputs(config, build_float(config.model)).shape[1:])

    assert shape("cifar-resnet20") == (3, 32, 32)
    assert shape("ds-cnn") == (1, 49, 10)
    assert shape("digits-cnn", path="sklearn:digits", channels=1, mean=(0.3,), std=(0.3,)) == (1, 8, 8)
    assert shape("cifar-resnet20", path="sklearn:digits") == (3, 8, 8)
    assert shape("cifar-resnet20", image_size=40) == (3, 40, 40)
    assert shape("cifar-resnet20", augment="imagenet-crop") == (3, 224, 224)
    assert shape("resnet10t") == (3, 176, 176)  # timm says it
    config = TrainConfig(model=ModelConfig(name="own"), data=DataConfig(path=""))
    with pytest.raises(LowbitError, match=r"own has none of its own; give data\.image_size or data\.path"):
        example_inputs(config, nn.Linear(2, 2))


def test_shape_of_a_sample_where_the_first_image_is_broken(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "0.png").write_bytes(b"broken")
    config = TrainConfig(data=DataConfig(str(tmp_path)))
    with pytest.raises(LowbitError, match="none of 1 images can be read"):
        example_inputs(config, nn.Linear(2, 2))
    PIL.Image.new("RGB", (9, 8)).save(tmp_path / "train" / "a" / "1.png")
    assert example_inputs(config, nn.Linear(2, 2)).shape == (1, 3, 8, 9)
