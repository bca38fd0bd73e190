"""The ImageNet recipes from their data to a checkpoint that evaluates, in ImageNet's layout and on real images, but few.

ImageNet itself is too large for a test. What is left out is the size alone: a handful of crops of scikit-learn's two
photographs instead of 1.28 million images, 4 classes, 64 pixels, an epoch of two steps. A recipe whose network has
published weights starts from random ones here, since those are fetched; the others from a run of their own recipe in full
precision. Every network, method, task and kind of start is in one of the runs, not every product of them; and networks that
repeat another one's blocks more often, or have more channels, are built, prepared and counted in test_recipes alone.
"""

from __future__ import annotations

import json
import math
import re
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

# Of the blocks of resnet18 and resnet50, preact-resnet18 and preact-resnet50, and shufflenetv2-x1.0. vgg16-bn has convolutions,
# batch-norm and linear layers one after the other, and a step of its 138 million weights takes 7 GB.
REPEATED = re.compile(r"resnet(34|101|152)|shufflenetv2-x0\.5|vgg16")


def kind(recipe: Recipe) -> set[str]:
    config = recipe()
    method = "-" if config.quantization is None else config.quantization.method
    return {f"network {config.model.name}", f"task {config.task}", f"method {method}", f"start {recipe.start}"}


IMAGENET = [recipe for recipe in RECIPES.values() if (recipe.images or 0) > 10**6]
CHOSEN: list[Recipe] = []
# A run with distillation has all that the plain one has, and comes first.
for recipe in sorted(IMAGENET, key=lambda recipe: recipe().task != "distill"):
    if not REPEATED.search(recipe.name) and not kind(recipe) <= set().union(*map(kind, CHOSEN)):
        CHOSEN.append(recipe)
FROM_PUBLISHED = [recipe for recipe in CHOSEN if recipe.start == "published"]
FROM_THEIR_OWN = {recipe().model.name: [] for recipe in CHOSEN if recipe.start != "published"}
for recipe in CHOSEN:
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
    # A transformer's position embedding is of one size, and its warm-up is longer than an epoch.
    of_transformers = ["--data.image-size", "224", "--schedule.warmup-epochs", "0"]
    arguments = [
        "--data", str(images), "--data.batch-size", "4", "--data.workers", "0",
        *(of_transformers if name.startswith("deit") else ["--data.image-size", "64"]),
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
    left_out = set().union(*map(kind, IMAGENET)) - set().union(*map(kind, CHOSEN))
    assert left_out == {f"network {recipe().model.name}" for recipe in IMAGENET if REPEATED.search(recipe.name)}
    assert len(left_out) == 10 and len(CHOSEN) < 25
