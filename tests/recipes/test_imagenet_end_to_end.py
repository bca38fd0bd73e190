"""The ImageNet recipes from their data to a checkpoint that evaluates, in ImageNet's layout and on real images, but few.

ImageNet itself is too large for a test. What is left out is the size alone: a handful of crops of scikit-learn's two
photographs instead of 1.28 million images, 4 classes, 64 pixels, an epoch of two steps. A recipe whose network has
published weights starts from random ones here, since those are fetched; the others from a run of their own recipe in full
precision. Widths differ in a number alone, so one recipe stands for all of a network, method and task; and for the largest
networks the run with distillation, which has all that the plain one has, stands for both.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lowbit.report
from lowbit import models
from lowbit.cli.main import main
from lowbit.recipes import RECIPES, Recipe
from lowbit.train.checkpoint import Checkpoints

LARGE = ("resnet101", "resnet152", "vgg16")


def kind(recipe: Recipe) -> tuple[str, str, str]:
    config = recipe()
    return config.model.name, config.task, "-" if config.quantization is None else config.quantization.method


IMAGENET = [recipe for recipe in RECIPES.values() if (recipe.images or 0) > 10**6]
ONE_OF_EACH = [
    recipe
    for recipe in {kind(recipe): recipe for recipe in reversed(IMAGENET)}.values()
    if not (
        recipe.name.startswith("lsq-") and recipe().task == "classify" and any(name in recipe.name for name in LARGE)
    )
]
FROM_PUBLISHED = [recipe for recipe in ONE_OF_EACH if recipe.start == "published"]
FROM_THEIR_OWN = {recipe().model.name: [] for recipe in ONE_OF_EACH if recipe.start == "random"}
for recipe in ONE_OF_EACH:
    if recipe.start == "--init":
        FROM_THEIR_OWN[recipe().model.name].append(recipe)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`: crops of two photographs, a class for each of their halves."""
    datasets = pytest.importorskip("sklearn.datasets")
    from PIL import Image

    root = tmp_path_factory.mktemp("imagenet")
    for number, photograph in enumerate(datasets.load_sample_images().images):
        for half in (0, 1):
            for split, rows in (("train", (0, 140)), ("val", (280,))):
                folder = root / split / f"n0{number}{half}"
                folder.mkdir(parents=True)
                for row in rows:
                    left = 320 * half + row // 2
                    crop = photograph[row : row + 120, left : left + 150]
                    Image.fromarray(crop).save(folder / f"{row}.JPEG")
    return root


@pytest.fixture(autouse=True)
def offline_and_quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Random weights where published ones would be fetched; no plots and no kernels, which take longer than the training."""

    def create(name: str, *, pretrained: bool = False, real=models.create, **arguments) -> torch.nn.Module:
        return real(name, **arguments)

    monkeypatch.setattr(models, "create", create)
    monkeypatch.setattr(lowbit.report, "plot_run", lambda folder: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny steps lose more to waiting for threads than they win by them
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not outlive the test: the checkpoints of all of them are gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def run(name: str, images: Path, output: Path, capsys, *options: str) -> None:
    """Train a shortened recipe and evaluate what it left."""
    arguments = [
        "--data", str(images), "--data.batch-size", "4", "--data.image-size", "64", "--data.workers", "0",
        "--model.num-classes", "4", "--epochs", "1", "--no-compile", "--output", str(output),
        # Weights are random: batch-norms of what rounding has made equal give gradients of 1e25.
        "--grad-clip", "1.0", *options,
    ]  # fmt: skip
    assert main(["train", name, *arguments]) == 0, capsys.readouterr().err
    assert main(["eval", str(output), "--checkpoint", "last"]) == 0
    said = capsys.readouterr().out
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    [epoch] = [line for line in lines if "train_loss" in line]
    assert math.isfinite(epoch["train_loss"]) and math.isfinite(epoch["test_loss"])
    assert f"{name}: " in said and "8 training and 4 test images" in said
    assert f"test accuracy {lines[-1]['test_accuracy']:.2f} %" in said.splitlines()[-1]


@pytest.mark.parametrize("recipe", FROM_PUBLISHED, ids=lambda recipe: recipe.name)
def test_from_published_weights(recipe: Recipe, images: Path, runs: Path, capsys) -> None:
    run(recipe.name, images, runs / "run", capsys)


@pytest.mark.parametrize("network", FROM_THEIR_OWN)
def test_from_a_run_in_full_precision(network: str, images: Path, runs: Path, capsys) -> None:
    # Two steps from random weights leave batch-norm's running statistics far behind.
    statistics = ["--bn-batches", "2", "--bn-keep", "always"]
    run(f"imagenet-{network}-fp", images, runs / "fp", capsys, *statistics)
    trained = Checkpoints(runs / "fp").weights("last")
    for recipe in FROM_THEIR_OWN[network]:
        run(recipe.name, images, runs / recipe.name, capsys, "--init", str(trained))


def test_none_is_left_out() -> None:
    assert {kind(recipe)[::2] for recipe in ONE_OF_EACH} == {kind(recipe)[::2] for recipe in IMAGENET}
    assert len(ONE_OF_EACH) == len(FROM_PUBLISHED) + len(FROM_THEIR_OWN) + sum(map(len, FROM_THEIR_OWN.values()))
