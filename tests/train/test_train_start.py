"""Training that goes on from a run at low bits: `quantization.start`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.train.conftest import small_config

from lowbit.cli.main import main
from lowbit.errors import LowbitError
from lowbit.layers.sites import quantizers
from lowbit.report import read_run
from lowbit.train import ModelConfig, OptimizerConfig, QuantizationConfig, ReconstructionConfig, TrainConfig, load, run
from lowbit.train.build import build_float, go_on_from, prepare, read_config, start_of

STILL = OptimizerConfig(lr=1e-30)


@pytest.fixture(scope="module")
def reconstructed(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """The folder of a W2A2 run without labels."""
    config = small_config(
        tmp_path_factory.mktemp("reconstructed") / "run",
        model=ModelConfig(name="digits-cnn", init=str(trained)),
        quantization=QuantizationConfig(weights=2, activations=2, calibration_batches=2),
        task="reconstruct",
        reconstruction=ReconstructionConfig(images=64, steps=10),
    )
    run(config)
    return Path(str(config.output))


def on(config: TrainConfig, start: Path, **quantization: object) -> TrainConfig:
    settings = {"weights": 2, "activations": 2, "calibration_batches": 2, "start": str(start), **quantization}
    return replace(config, epochs=1, bn_batches=0, quantization=QuantizationConfig(**settings))


def test_a_run_goes_on_from_weights_and_quantizers_prepared_alike(
    config: TrainConfig, reconstructed: Path, trained: Path, capsys
) -> None:
    # Rules of initialization don't matter: what is initialized stays.
    config = on(config, reconstructed, init_weights="least-squares", init_activations="least-squares")
    result = run(replace(config, optimizer=STILL))
    assert f"from the weights of {reconstructed}, and its quantizers" in capsys.readouterr().out
    ours, theirs = (load(folder)[0].state_dict() for folder in (result.folder, reconstructed))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, theirs[name], msg=name)
    # Full precision is that of the run it went on from: the report compares with it, a teacher is made of it.
    assert read_run(result.folder).config["model"]["init"] == str(trained)
    original, wanted = (build_float(load(folder)[1].model).state_dict() for folder in (result.folder, reconstructed))
    assert all(torch.equal(value, wanted[name]) for name, value in original.items())


@pytest.mark.parametrize("changes", [{"weights": 3}, {"granularity": "channel"}, {"method": "lsq+"}])
def test_of_other_quantizers_the_weights_are_taken(
    config: TrainConfig, reconstructed: Path, changes: dict, capsys
) -> None:
    settings = on(config, reconstructed, init_weights="least-squares", init_activations="least-squares", **changes)
    result = run(replace(settings, optimizer=STILL))
    said = capsys.readouterr().out
    assert f"from the weights of {reconstructed}" in said and "and its quantizers" not in said
    ours, theirs = load(result.folder)[0], load(reconstructed)[0]
    for (name, layer), (_, other) in zip(ours.named_modules(), theirs.named_modules(), strict=False):
        if isinstance(layer, torch.nn.Conv2d):
            torch.testing.assert_close(layer.weight, other.weight, msg=name)
    assert all(each.initialized for _, each in quantizers(ours))
    if "weights" in changes:
        assert ours.get_submodule("conv2").weight_quantizer.bits == 3


def test_a_run_learns_on_from_it_and_resumes_without_it(
    config: TrainConfig, reconstructed: Path, tmp_path: Path, capsys
) -> None:
    start = tmp_path / "start"
    shutil.copytree(reconstructed, start)
    config = replace(on(config, start), epochs=2, optimizer=OptimizerConfig(lr=3e-3))
    whole = run(replace(config, output=str(tmp_path / "whole")))
    rounded = replace(config, output=str(tmp_path / "rounded"), model=load(reconstructed)[1].model)
    rounded = replace(rounded, quantization=replace(rounded.quantization, start=None))
    assert whole.accuracy > run(rounded).accuracy + 3
    one = replace(config, output=str(tmp_path / "one"))

    def stop(_: object, done: float) -> None:
        if done >= 1.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(one, on_step=stop)
    shutil.rmtree(start)
    run(read_config(tmp_path / "one"), resume=True)
    ours, theirs = (load(tmp_path / name)[0].state_dict() for name in ("one", "whole"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_what_is_refused(config: TrainConfig, reconstructed: Path, trained: Path, tmp_path: Path) -> None:
    cases = [
        (on(config, trained), "a run in full precision, but quantization.start"),
        (on(config, tmp_path / "nowhere"), "no run is there"),
        (replace(on(config, reconstructed), task="reconstruct"), "the target is the network in full precision"),
        (replace(config, model=ModelConfig(name="digits-cnn", init=str(reconstructed))), "quantization.start"),
    ]
    for wrong, message in cases:
        with pytest.raises(LowbitError, match=message):
            run(replace(wrong, model=replace(wrong.model, init=wrong.model.init or str(trained))))
        assert not (Path(str(config.output)) / "config.json").exists()
    other = prepare(torch.nn.Sequential(torch.nn.Linear(3, 2)), QuantizationConfig(weights=2, activations=2))
    with pytest.raises(LowbitError, match="a run of another network"):
        go_on_from(other, QuantizationConfig(weights=2, activations=2), reconstructed)


def test_on_the_command_line(reconstructed: Path, tmp_path: Path, capsys) -> None:
    quick = ["--epochs", "1", "--data.limit", "128", "--no-compile", "--output", str(tmp_path / "run")]
    assert main(["train", "digits-cnn", "--bits", "2", "--start", str(reconstructed), *quick]) == 0
    assert "and its quantizers" in capsys.readouterr().out
    assert start_of(load(tmp_path / "run")[1]) is not None
    assert main(["train", "digits-cnn", "--bits", "2", "--start", str(reconstructed), "--dry-run"]) == 0
    assert main(["train", "digits-cnn", "--bits", "2", "--start", str(tmp_path), "--dry-run"]) == 2
    assert main(["train", "digits-cnn-fp", "--start", str(reconstructed)]) == 2
    assert "nothing is quantized here" in capsys.readouterr().err
