"""One's own network, data and loss, from full precision to low bits, by the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from tests import own_code

import lowbit
from lowbit.cli.main import main
from lowbit.data import DataConfig, DataSet
from lowbit.errors import LowbitError
from lowbit.models import create, load_weights, save_weights
from lowbit.recipes import get_recipe
from lowbit.report import read_run
from lowbit.train import TrainConfig, load, run
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.resolve import epochs_for, resolve

OWN = "tests.own_code:"
QUICK = ("--no-compile", "--data.workers", "0", "--data.batch-size", "16")


def train(recipe: str, model: str, data: str, output: Path, *options: str) -> int:
    return main(["train", recipe, "--model", model, "--data", data, "--output", str(output), *QUICK, *options])


@pytest.mark.parametrize(
    ("model", "data", "fp_epochs", "accuracy"),
    [(f"{OWN}Waves", f"{OWN}waves", 4, 90), (f"{OWN}Pair", f"{OWN}pairs", 12, 90), ("ds-cnn", f"{OWN}keywords", 6, 25)],
    ids=["series", "two inputs by name", "MLPerf Tiny's keyword network"],
)
def test_a_network_learns_in_full_precision_and_at_low_bits_and_is_proved(
    tmp_path: Path, capsys, model: str, data: str, fp_epochs: int, accuracy: float
) -> None:
    fp, low = tmp_path / "fp", tmp_path / "low"
    quick = ("--data.validation", "36") if "pairs" not in data else ("--data.validation", "None", "--data.validation-split", "validation")  # fmt: skip
    assert train("own-fp", model, data, fp, "--epochs", str(fp_epochs), *quick) == 0
    assert read_run(fp).final["test_accuracy"] > accuracy
    options = ("--epochs", "2", "--quantization.integer-only", "--bits", "4", *quick)
    assert train("own", model, data, low, "--init", str(fp), *options) == 0
    final = read_run(low).final
    assert final["test_accuracy"] > accuracy - 5
    capsys.readouterr()
    assert main(["eval", str(low)]) == 0
    assert f"test accuracy {final['test_accuracy']:.2f} %" in capsys.readouterr().out
    file = str(tmp_path / "net.safetensors")
    assert main(["export", str(low), "--format", "lowbit", "--file", file]) == 0
    assert "verified: 0 of" in capsys.readouterr().out
    assert main(["eval", file, "--data", data]) == 0
    assert "(integers): test accuracy" in capsys.readouterr().out


def test_the_auto_encoder_of_mlperf_tiny_trains_by_its_loss(tmp_path: Path, capsys) -> None:
    fp, low = tmp_path / "fp", tmp_path / "low"
    options = ("--task", "autoencode", "--data.validation", "64")
    assert train("own-fp", "autoencoder", f"{OWN}machines", fp, "--epochs", "6", *options) == 0
    losses = [epoch["validation_loss"] for epoch in read_run(fp).epochs]
    assert losses[-1] < 0.7 * losses[0] and "train_accuracy" not in read_run(fp).epochs[0]
    assert train("own", "autoencoder", f"{OWN}machines", low, "--init", str(fp), "--epochs", "2", *options) == 0
    final = read_run(low).final
    assert final["test_loss"] < 1.5 * read_run(fp).final["test_loss"] and "test_accuracy" not in final
    capsys.readouterr()
    assert main(["eval", str(low)]) == 0
    assert capsys.readouterr().out == f"{low} (best): test loss {final['test_loss']:.4f}\n"
    model, _ = load(low)
    (x,) = own_code.machines()["test"].tensors
    assert float(torch.nn.functional.mse_loss(model(x), x)) == pytest.approx(final["test_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("task", "lr"),
    [("torch.nn:SmoothL1Loss", "0.1"), ("torch.nn.functional:mse_loss", "0.02"), (f"{OWN}absolute", "0.1")],
)
def test_any_loss_of_outputs_and_targets(tmp_path: Path, task: str, lr: str) -> None:
    options = ("--task", task, "--epochs", "8", "--optimizer.lr", lr)
    assert train("own-fp", f"{OWN}regressor", f"{OWN}lines", tmp_path / "run", *options) == 0
    epochs = read_run(tmp_path / "run").epochs
    assert epochs[-1]["validation_loss"] < 0.7 * epochs[0]["validation_loss"]
    best = min(epoch["validation_loss"] for epoch in epochs)
    assert read_run(tmp_path / "run").final["best_loss"] == best


def test_a_task_that_says_what_is_right(tmp_path: Path) -> None:
    output, options = tmp_path / "run", ("--task", f"{OWN}Huber", "--epochs", "8", "--optimizer.lr", "0.1")
    assert train("own-fp", f"{OWN}regressor", f"{OWN}lines", output, *options) == 0
    model, _ = load(output)
    x, y = own_code.lines()["test"].tensors
    right = ((model(x.float()) - y).abs().amax(1) < 0.5).float().mean().item()
    assert read_run(output).final["test_accuracy"] == pytest.approx(100 * right)


def own_config(output: Path, **changes) -> TrainConfig:
    config = get_recipe("own-fp")(model=f"{OWN}Pair")
    data = DataConfig(f"{OWN}pairs", batch_size=48, workers=0, mean=(), std=(), augment="auto")
    return replace(config, data=data, epochs=3, compile=False, output=str(output), **changes)


def test_order_and_chance_depend_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    """Not on the workers, nor on a stop in between."""
    configs = [own_config(tmp_path / name) for name in ("whole", "workers", "stopped")]
    run(configs[0])
    run(replace(configs[1], data=replace(configs[1].data, workers=2)))

    def stop(trainer, epochs_done: float) -> None:
        if epochs_done >= 1.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(configs[2], on_step=stop)
    run(configs[2], resume=True)
    whole, *others = (load_file(Checkpoints(Path(config.output)).weights("last")) for config in configs)
    for other in others:
        assert all(torch.equal(other[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        (f"{OWN}Wave", f"{OWN}waves", (), "network 'tests.own_code:Wave': tests.own_code has no 'Wave'. Did you mean 'Waves'"),
        ("nowhere:Net", f"{OWN}waves", (), "network 'nowhere:Net': there is no module 'nowhere'"),
        (f"{OWN}not_a_network", f"{OWN}waves", (), "is a int: give a class, or a function that returns a network"),
        (f"{OWN}fails", f"{OWN}waves", (), "network 'tests.own_code:fails' fails: KeyError: 'no such file' (own_code.py line "),
        (f"{OWN}Waves", f"{OWN}fails", (), "data 'tests.own_code:fails' fails: KeyError"),
        (f"{OWN}Waves", f"{OWN}gives_nothing", (), 'gives a int; give {"train": DATA, "test": DATA}'),
        (f"{OWN}Waves", f"{OWN}pairs", (), "does not take inputs of left 4, right 6"),
        (f"{OWN}Pair", f"{OWN}waves", (), "does not take inputs of 2x32"),
        (f"{OWN}regressor", f"{OWN}waves", ("--model.num-classes", "3"), "does not take inputs"),
        (f"{OWN}Waves", f"{OWN}waves", ("--model.num-classes", "2"), "3 classes, but the network has 2"),
        (f"{OWN}Waves", f"{OWN}waves", ("--task", "clasify"), "task: no task 'clasify'. Did you mean 'classify'"),
        (f"{OWN}Waves", f"{OWN}waves", ("--data.train-split", "all"), "gives no split all; it gives train, test"),
        (f"{OWN}Waves", f"{OWN}waves", ("--data.batch-size", "500"), "fewer than one batch of 500"),
        ("timm:resnet18", "sklearn:digits", (), "pretrained weights of resnet18 cannot be fetched"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_work(tmp_path: Path, monkeypatch, capsys, model, data, options, message) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert train("own-fp", model, data, tmp_path / "run", *options) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_network_has_to_be_named_and_trained(tmp_path: Path, capsys) -> None:
    assert main(["train", "own", "--data", f"{OWN}waves", "--output", str(tmp_path / "run")]) == 2
    assert "model.name: name a network (--model)" in capsys.readouterr().err
    assert train("own", f"{OWN}Waves", f"{OWN}waves", tmp_path / "run") == 2
    assert "would start at low bits from random weights" in capsys.readouterr().err


def test_the_dry_run_needs_the_data_alone(tmp_path: Path, capsys) -> None:
    assert train("own", f"{OWN}Pair", f"{OWN}pairs", tmp_path / "run", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "a sample of left 4, right 6" in out and "192 images" not in out  # a tenth is held out
    assert not (tmp_path / "run").exists()


def images(root: Path, size: int, classes: int = 3) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = (random.random((size, size, 3)) * 80 + 80 * label).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def test_a_folder_of_images_and_a_network_of_timms(tmp_path: Path, capsys) -> None:
    """As `lowbit train own --model timm:resnet18 --data FOLDER --bits 4` does, with a smaller network and a file of weights."""
    folder, weights = images(tmp_path / "images", 40), tmp_path / "weights.safetensors"
    save_weights(create("timm:test_resnet", num_classes=3).state_dict(), weights)
    options = ("--init", str(weights), "--bits", "4")
    assert train("own", "timm:test_resnet", str(folder), tmp_path / "run", *options, "--epochs", "4") == 0
    config = TrainConfig.load(tmp_path / "run" / "config.json")
    assert (config.data.augment, config.data.image_size, config.model.num_classes) == ("cifar", None, 3)
    assert read_run(tmp_path / "run").final["test_accuracy"] > 60
    load_weights(load(tmp_path / "run")[0], Checkpoints(tmp_path / "run").weights("best"))


@pytest.mark.parametrize(("samples", "epochs"), [(100, 60), (20_000, 25), (50_000, 10), (1_281_167, 5)])
def test_epochs_by_the_number_of_images(samples: int, epochs: int) -> None:
    assert epochs_for(samples) == epochs


def test_images_are_read_as_the_weights_were_trained(tmp_path: Path) -> None:
    def resolved(model: str, path: Path, init: str | None = None, **given: Any) -> DataConfig:
        config = get_recipe("own")(model=model)
        config = replace(config, data=replace(config.data, path=str(path), **given), model=replace(config.model, init=init, pretrained=False))  # fmt: skip
        return resolve(config, DataSet(config.data)).data

    small, large = images(tmp_path / "small", 32), images(tmp_path / "large", 128)
    assert resolved("timm:resnet18", small).augment == "cifar"
    found = resolved("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", large)
    assert (found.augment, found.image_size, found.mean, found.std) == ("imagenet", 224, (0.5,) * 3, (0.5,) * 3)
    assert resolved("timm:efficientnet_b4.ra2_in1k", large).image_size == 320
    assert resolved("resnet18", large).mean == DataConfig.mean
    # The folder of a run says how its images were read.
    before = replace(get_recipe("own-fp")(model="resnet8"), data=DataConfig(str(small), augment="cifar", crop_padding=1, channels=1, mean=(0.1,), std=(0.2,)))  # fmt: skip
    (tmp_path / "run").mkdir()
    before.save(tmp_path / "run" / "config.json")
    found = resolved("resnet8", large, str(tmp_path / "run"))
    assert (found.augment, found.crop_padding, found.channels, found.mean, found.std) == ("cifar", 1, 1, (0.1,), (0.2,))
    assert resolved("resnet8", large, str(tmp_path / "run"), crop_padding=0).crop_padding == 0
    with pytest.raises(LowbitError, match=r'data\.crop_padding is for .*"imagenet"'):
        resolved("resnet18", large, crop_padding=2)


def test_a_loaders_data_set_is_taken(tmp_path: Path) -> None:
    assert train("own-fp", f"{OWN}Waves", f"{OWN}waves_in_loaders", tmp_path / "run", "--epochs", "1") == 0
    assert len(list(lowbit.quantizers(load(tmp_path / "run")[0]))) == 0
