"""Whole runs on the digits: they learn, leave a complete folder, and repeat bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import lowbit
import lowbit.report
import lowbit.train.tracking
from lowbit.data import DataSet, InMemoryImages
from lowbit.errors import LowbitError
from lowbit.report import read_run
from lowbit.train import DistillationConfig, ModelConfig, OptimizerConfig, TrainConfig, evaluate_run, load, run
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.compiled import CompiledStep, check_gradients
from lowbit.train.tracking import Metrics
from lowbit.train.trainer import Trainer


def weights(folder: str | Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(Checkpoints(Path(folder)).weights(which))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_full_precision_learns(trained: Path) -> None:
    epochs = read_run(trained).epochs
    assert [e["epoch"] for e in epochs] == [0, 1, 2, 3]
    assert epochs[-1]["train_loss"] < 0.5 * epochs[0]["train_loss"]
    assert max(e["test_accuracy"] for e in epochs) > 90


def test_low_bit_run_learns_and_leaves_a_complete_folder(low_bit: TrainConfig, trained: Path, plots, capsys) -> None:
    low_bit = replace(low_bit, epochs=3, data=replace(low_bit.data, limit=None))
    result = run(low_bit)
    folder = Path(low_bit.output)
    said = capsys.readouterr().out
    assert "W3A3 by lsq" in said and "eager step" in said and "channels-last" in said and "epoch 3/3" in said

    read = read_run(folder)
    assert read.config["model"]["num_classes"] == 10
    assert read.versions["torch"] == torch.__version__
    names = {name for name, _ in lowbit.quantizers(load(folder)[0])}
    assert set(read.start_steps) == names and len(names) == 10
    for epoch in read.epochs:
        assert set(epoch["steps"]) == names and all(value > 0 for value in epoch["steps"].values())
    assert read.epochs[0]["steps"] != read.start_steps  # steps are learned
    assert read.final["test_accuracy"] == result.accuracy
    assert result.best_accuracy == max(e["test_accuracy"] for e in read.epochs)
    assert result.best_accuracy >= max(e["test_accuracy"] for e in read_run(trained).epochs) - 5

    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    assert list(folder.glob("**/*.png")) or list(folder.glob("**/*.svg"))
    assert sorted(p.name for p in folder.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp") == []


def test_loaded_network_scores_what_training_said(low_bit: TrainConfig) -> None:
    result = run(low_bit)
    for which, accuracy in (("last", result.accuracy), ("best", result.best_accuracy)):
        loss, found = evaluate_run(low_bit.output, checkpoint=which)
        assert found == accuracy and loss > 0
    model, config = load(low_bit.output, "last")
    assert config.model.num_classes == 10 and not model.training
    assert same(dict(model.state_dict()), weights(low_bit.output))


def test_same_seed_same_bits_other_seed_other_bits(low_bit: TrainConfig, tmp_path: Path) -> None:
    folders = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)  # whatever ran before must not matter
        folders.append(tmp_path / name)
        run(replace(low_bit, seed=seed, output=str(folders[-1])))
    a, b, c = map(weights, folders)
    assert same(a, b) and not same(a, c)


def test_accumulating_two_batches_steps_half_as_often(config: TrainConfig, monkeypatch) -> None:
    steps = []
    real = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a: steps.append(1) or real(self, *a))
    run(replace(config, accumulate=2, epochs=1))
    assert len(steps) == 2
    with pytest.raises(LowbitError, match="accumulate is 5"):
        run(replace(config, accumulate=5, output=config.output + "-2"))


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bf16"}, {"grad_clip": 0.1}, {"channels_last": False}, {"optimizer": OptimizerConfig("adam", 1e-3)}],
    ids=str,
)
def test_every_option_trains(low_bit: TrainConfig, changes: dict) -> None:
    low_bit = replace(low_bit, **changes)
    before = evaluate_run(low_bit.model.init)
    result = run(low_bit)
    assert result.best_accuracy > before[1] - 10
    assert all(step.dtype == torch.float32 for name, step in weights(low_bit.output).items() if "raw_step" in name)


def test_average_is_what_is_saved_and_evaluated(low_bit: TrainConfig, tmp_path: Path) -> None:
    plain, averaged = str(tmp_path / "plain"), str(tmp_path / "averaged")
    run(replace(low_bit, epochs=1, output=plain))
    result = run(replace(low_bit, epochs=1, ema=0.5, output=averaged))
    behind = Checkpoints(Path(averaged)).training_state()["trainer"]["behind_average"]["model"]
    assert same(behind, weights(plain))  # averaging does not change what is trained
    assert not torch.equal(weights(averaged)["conv2.weight"], behind["conv2.weight"])
    assert evaluate_run(averaged, checkpoint="last")[1] == result.accuracy


@pytest.mark.parametrize("keep", ["better", "always"])
def test_batchnorm_reestimation_reports_both_and_keeps_as_told(low_bit: TrainConfig, capsys, keep: str) -> None:
    result = run(replace(low_bit, bn_batches=4, bn_keep=keep))
    trained_accuracy = read_run(low_bit.output).epochs[-1]["test_accuracy"]
    assert result.reestimated_accuracy is not None
    kept = keep == "always" or result.reestimated_accuracy > trained_accuracy
    assert result.accuracy == (result.reestimated_accuracy if kept else trained_accuracy)
    assert evaluate_run(low_bit.output, checkpoint="last")[1] == result.accuracy
    assert read_run(low_bit.output).final["reestimated_accuracy"] == result.reestimated_accuracy
    assert "batch-norm re-estimated" in capsys.readouterr().out


def test_distillation_trains_with_the_teachers_probabilities(low_bit: TrainConfig, tmp_path: Path) -> None:
    """The same run by labels alone ends elsewhere."""
    runs = {
        task: replace(low_bit, task=task, epochs=1, output=str(tmp_path / task)) for task in ("classify", "distill")
    }
    accuracy = {task: run(config).best_accuracy for task, config in runs.items()}
    assert min(accuracy.values()) > 80
    plain, distilled = (weights(config.output) for config in runs.values())
    assert plain.keys() == distilled.keys() and not same(plain, distilled)


def test_another_network_teaches(low_bit: TrainConfig, taught: DistillationConfig, tmp_path: Path) -> None:
    """One whose weights say other classes teaches those."""
    settings = {"task": "distill", "distillation": replace(taught, share=1.0), "epochs": 8}
    config = replace(low_bit, output=str(tmp_path / "run"), **settings)
    run(config)
    images, labels = next(iter(DataSet(low_bit.data).loaders(seed=0).test))[:2]

    def answers(label: torch.Tensor) -> float:
        return float((load(config.output, "last")[0](images).argmax(1) == label).float().mean())

    assert answers((labels + 1) % 10) > 0.5 > 0.2 > answers(labels)


def distance_to_levels(folder: str | Path) -> float:
    """Mean |w − ŵ| of the weights of a run's last checkpoint, in steps."""
    layers = [
        m
        for m in load(folder, "last")[0].modules()
        if isinstance(getattr(m, "weight_quantizer", None), lowbit.Quantizer)
    ]
    with torch.no_grad():
        gaps = [(m.weight_quantizer(m.weight) - m.weight).abs() / m.weight_quantizer.step for m in layers]
    return float(torch.cat([gap.flatten().clamp_max(0.5) for gap in gaps]).mean())


def test_dampening_draws_weights_to_their_levels(low_bit: TrainConfig, tmp_path: Path) -> None:
    plain, dampened = (
        replace(
            low_bit, quantization=replace(low_bit.quantization, dampening=factor), output=str(tmp_path / str(factor))
        )
        for factor in (0.0, 5.0)
    )
    run(plain)
    assert run(dampened).best_accuracy > 80
    assert distance_to_levels(dampened.output) < 0.9 * distance_to_levels(plain.output)


def test_transition_rates_are_scheduled(low_bit: TrainConfig) -> None:
    """Where hardly a code may change, weights hardly move, while the rest goes on learning."""
    quantization = replace(low_bit.quantization, transition_rate=1e-6)
    assert run(replace(low_bit, quantization=quantization, epochs=3)).best_accuracy > 80
    (state,) = Checkpoints(Path(low_bit.output)).training_state()["trainer"]["attached"]
    assert len(state["lr"]) == 5 and bool((state["lr"] < low_bit.optimizer.lr).any())


def test_freezing_holds_weights_that_oscillate(low_bit: TrainConfig) -> None:
    quantization = replace(low_bit.quantization, freezing=1e-4)
    assert run(replace(low_bit, quantization=quantization)).best_accuracy > 80
    (state,) = Checkpoints(Path(low_bit.output)).training_state()["trainer"]["attached"]
    frozen = [value for name, value in state.items() if name.endswith(".frozen")]
    assert frozen and 0 < sum(int(each.sum()) for each in frozen) < sum(each.numel() for each in frozen)


def test_a_loss_that_is_not_finite_stops_the_run(config: TrainConfig) -> None:
    with pytest.raises(LowbitError, match=r"the loss is (nan|inf) at epoch \d+, step \d+: lower optimizer.lr"):
        run(replace(config, epochs=20, optimizer=OptimizerConfig(lr=1e30)))


@pytest.mark.parametrize("there_before", [False, True])
def test_a_run_that_fails_before_its_first_checkpoint_can_be_started_again(config: TrainConfig, there_before) -> None:
    folder = Path(config.output)
    if there_before:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        (folder / "tensorboard").mkdir()
        (folder / "tensorboard" / "events").write_text("mine")
    with pytest.raises(LowbitError, match="the loss is"):
        run(replace(config, optimizer=OptimizerConfig(lr=1e30)))
    if there_before:
        assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "tensorboard"]
        assert (folder / "tensorboard" / "events").read_text() == "mine"
    else:
        assert not folder.exists()
    run(replace(config, epochs=1))


def test_a_loss_that_is_not_finite_later_keeps_the_run(config: TrainConfig, monkeypatch) -> None:
    def at_second_epoch(trainer: Trainer, epochs_done: float) -> None:
        trainer.initial_lr = [0.1 if epochs_done < 1 else 1e30] * len(trainer.initial_lr)

    with pytest.raises(LowbitError, match="the loss is"):
        run(replace(config, epochs=4), on_step=at_second_epoch)
    assert Checkpoints(Path(config.output)).exists
    for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize(
    ("where", "name", "error", "begun"),
    [
        (Path, "mkdir", OSError(28, "No space left on device"), False),
        (lowbit.train.tracking, "_forget", OSError(28, "No space left on device"), False),
        (safetensors.torch, "save_file", SafetensorError("I/O error: No space left on device"), False),
        (lowbit.report, "plot_run", OSError(28, "No space left on device"), True),
    ],
)
def test_a_folder_that_cannot_be_written_is_a_clear_error(
    config: TrainConfig, monkeypatch, where, name: str, error: Exception, begun: bool
) -> None:
    def full(*_, **__):
        raise error

    with monkeypatch.context() as patch, pytest.raises(LowbitError, match=r"run.*: can't be written \(.*No space left"):
        patch.setattr(where, name, full)
        run(replace(config, epochs=1))
    assert Path(config.output).exists() is begun
    run(replace(config, epochs=1), resume=begun)


def test_a_log_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with Metrics(tmp_path, epochs_done=0, active=True) as metrics:
        metrics.path.mkdir()
        with pytest.raises(LowbitError, match=r"can't be written \(Is a directory\)"):
            metrics.write("start")


def after_epoch(number: int, change: Callable[[torch.nn.Module], object]) -> Callable:
    """`Trainer.train_epoch` that ends with a change of the network after this epoch, as the last step may make it."""

    def train_epoch(self, epoch, *arguments, real=Trainer.train_epoch, **named):
        numbers = real(self, epoch, *arguments, **named)
        if epoch + 1 == number:
            change(self.model)
        return numbers

    return train_epoch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda network: network.bn1.running_mean.fill_(math.nan), "the test loss is nan"),
        # Clipped to the largest level: the loss doesn't tell.
        (lambda network: network.conv2.weight.data[0, 0].fill_(math.inf), "conv2.weight holds NaN or infinity"),
    ],
)
def test_what_is_broken_by_the_last_step_replaces_no_checkpoint(
    low_bit: TrainConfig, monkeypatch, change, message: str
) -> None:
    monkeypatch.setattr(Trainer, "train_epoch", after_epoch(2, change))
    message += r" after epoch 2: lower optimizer.lr.*; the checkpoint of epoch 1 stays"
    with pytest.raises(LowbitError, match=message):
        run(low_bit)
    progress = Checkpoints(Path(low_bit.output)).training_state()["progress"]
    assert progress["epochs_done"] == 1 and not progress["finished"]
    assert math.isfinite(evaluate_run(low_bit.output, checkpoint="last")[0])


def test_statistics_that_are_not_finite_are_never_kept(config: TrainConfig, monkeypatch) -> None:
    monkeypatch.setattr(
        Trainer, "reestimate_batchnorm", lambda self, batches: self.network.bn1.running_mean.fill_(math.nan)
    )
    result = run(replace(config, bn_batches=1, bn_keep="always"))
    loss, accuracy = evaluate_run(config.output, checkpoint="last")
    assert math.isfinite(loss) and accuracy == result.accuracy > result.reestimated_accuracy


@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 works on an accelerator")
def test_precision_that_would_be_ignored_is_refused(config: TrainConfig) -> None:
    with pytest.raises(LowbitError, match=r"precision 'fp16' does not work here, on cpu: use bf16"):
        run(replace(config, precision="fp16"))


def test_images_of_a_shape_that_the_network_cannot_take(config: TrainConfig) -> None:
    grey = config.data
    coloured = replace(grey, channels=3)
    tiny = replace(grey, augment="imagenet", image_size=16, workers=0)
    for name, data, message in (
        ("digits-cnn", coloured, "digits-cnn does not take images of 3x8x8 .*to have 1 channels"),
        ("ds-cnn", grey, "ds-cnn does not take images of 1x8x8"),
        ("ds-cnn", tiny, "ds-cnn does not take images of 1x16x16"),
    ):
        with pytest.raises(LowbitError, match=message):
            run(replace(config, model=ModelConfig(name), data=data))
        assert not Path(config.output).exists()
    run(replace(config, epochs=1))
    of_run = TrainConfig.load(Path(config.output) / "config.json")
    replace(of_run, data=coloured).save(Path(config.output) / "config.json")
    with pytest.raises(LowbitError, match=r"a checkpoint of data\.channels 1, but the run's config has 3"):
        evaluate_run(config.output)


def test_low_bits_from_random_weights_must_be_meant(low_bit: TrainConfig) -> None:
    with pytest.raises(LowbitError, match=r"from random weights: give trained ones \(--init"):
        run(replace(low_bit, model=ModelConfig("digits-cnn")))
    run(replace(low_bit, model=ModelConfig("digits-cnn", from_scratch=True), epochs=1))


@pytest.mark.parametrize(
    ("field", "changes"),
    [("quantization.method", {"method": "ewgs"}), ("quantization.first_last", {"first_last": None})],
)
def test_a_checkpoint_of_another_method_or_network_is_refused(low_bit: TrainConfig, field: str, changes: dict) -> None:
    run(replace(low_bit, epochs=1))
    other = replace(low_bit, epochs=1, quantization=replace(low_bit.quantization, **changes))
    replace(other, model=replace(other.model, num_classes=10)).save(Path(low_bit.output) / "config.json")
    for call in (load, evaluate_run):
        with pytest.raises(LowbitError, match=rf"a checkpoint of {field} .*, but the run's config has"):
            call(low_bit.output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": None}, "output: no run folder"),
        ({"data": "no-such-folder"}, "no-such-folder"),
        ({"data": ""}, r"data.path: no data is given"),
        ({"model": ModelConfig("digits-cnm")}, "digits-cn"),
        ({"model": ModelConfig("digits-cnn", num_classes=3)}, "10 classes, but the network has 3"),
        ({"model": ModelConfig("digits-cnn", init="no-such-file.safetensors")}, "no-such-file"),
        ({"task": "distill"}, "teacher needs trained weights"),
        ({"distillation": DistillationConfig(temperature=2.0)}, "classify has no teacher, but distillation is set"),
        (
            {"task": "distill", "distillation": DistillationConfig("digits-cnn", init="no-such-file.safetensors")},
            "no-such-file",
        ),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(config: TrainConfig, changes: dict, message: str) -> None:
    if isinstance(changes.get("data"), str):
        changes = {"data": replace(config.data, path=changes["data"])}
    with pytest.raises(LowbitError, match=message):
        run(replace(config, **changes))
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lsqq"}, "unknown method 'lsqq'"),
        ({"weights": 9}, "bits"),
        ({"rules": ({"pattern": "x"},)}, "'x'"),
        ({"rules": ({"patern": "x"},)}, "quantization.rules"),
    ],
)
def test_bad_quantization_is_refused_and_leaves_nothing(low_bit: TrainConfig, changes: dict, message: str) -> None:
    with pytest.raises(LowbitError, match=message):
        run(replace(low_bit, quantization=replace(low_bit.quantization, **changes)))
    assert not Path(low_bit.output).exists()


def test_weights_of_another_network_are_refused(low_bit: TrainConfig, trained: Path, tmp_path: Path) -> None:
    wrong = replace(low_bit, model=ModelConfig("cifar-resnet20", init=str(trained)))
    with pytest.raises(LowbitError, match=r"model\.safetensors"):
        run(wrong)
    run(low_bit)
    with pytest.raises(LowbitError, match="a run at low bits"):
        run(replace(low_bit, model=ModelConfig("digits-cnn", init=low_bit.output), output=str(tmp_path / "other")))


def test_checkpoints_of_someone_else_are_left_alone(config: TrainConfig) -> None:
    theirs = Path(config.output) / "checkpoints" / "epoch-7" / "model.pt"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    with pytest.raises(LowbitError, match="checkpoints: exists already and belongs to no run"):
        run(config)
    assert theirs.exists()


def test_a_folder_with_a_run_is_not_overwritten(config: TrainConfig) -> None:
    run(replace(config, epochs=1))
    with pytest.raises(LowbitError, match=r"holds a run already; continue it with --resume"):
        run(config)


@pytest.mark.parametrize("call", [load, evaluate_run])
def test_no_run_no_network(tmp_path: Path, call) -> None:
    with pytest.raises(LowbitError, match="no run is there"):
        call(tmp_path)


def test_a_step_that_cannot_be_compiled_runs_as_it_is(monkeypatch) -> None:
    def failing(function, **_):
        def call(*_):
            raise RuntimeError("no compiler\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    said: list[str] = []
    step = CompiledStep(lambda x: x + 1, said.append)
    assert step(1) == 2 and step(2) == 3
    assert said == ["the step runs uncompiled: torch.compile does not work here (no compiler)"]


def test_a_compiled_step_without_gradients_is_refused(low_bit, monkeypatch) -> None:
    """As torch 2.11 compiled it: the loss falls, by what the bias of the last layer learns."""

    def without_gradients(function, **_):
        if function.__name__ != "_step":
            return function

        def step(*arguments):
            with torch.no_grad():
                loss, count = function(*arguments)
            return loss.requires_grad_(), count

        return step

    monkeypatch.setattr(torch, "compile", without_gradients)
    with pytest.raises(LowbitError, match=r"compiled by torch .* none of the \d+ quantized weights a gradient"):
        run(replace(low_bit, compile=True))
    model = lowbit.calibrate(lowbit.prepare(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))), [torch.randn(8, 4)])
    model(torch.randn(8, 4)).sum().backward()
    check_gradients(model)
    model[0].weight.grad = None
    check_gradients(model)  # the other has one
    model[1].weight.grad.zero_()
    with pytest.raises(LowbitError, match="none of the 2"):
        check_gradients(model)
    model.requires_grad_(False)
    check_gradients(model)


def test_compiled_step_says_so_and_computes_the_same(compiler: str) -> None:
    said: list[str] = []
    step = CompiledStep(lambda x: (x * 2).sum(), said.append)
    x = torch.arange(5.0)
    assert step(x) == step(x) == 20
    assert len(said) == 1 and said[0].startswith("step compiled in")


def test_every_epoch_has_its_own_order(config: TrainConfig, monkeypatch) -> None:
    epochs = []
    real = InMemoryImages.set_epoch
    monkeypatch.setattr(InMemoryImages, "set_epoch", lambda self, *place: epochs.append(place[0]) or real(self, *place))
    run(replace(config, epochs=3))
    assert epochs == [0, 1, 2]


def test_learning_rates_follow_the_schedule(low_bit: TrainConfig, monkeypatch) -> None:
    seen = []
    real = Trainer._set_progress

    def spy(self, epochs_done):
        real(self, epochs_done)
        seen.append((epochs_done, [group["lr"] for group in self.optimizer.param_groups]))

    monkeypatch.setattr(Trainer, "_set_progress", spy)
    config = replace(low_bit, optimizer=OptimizerConfig(lr=0.02, step_lr=0.001))
    run(config)
    assert [epochs_done for epochs_done, _ in seen] == [i / 4 for i in range(8)]
    for epochs_done, lrs in seen:
        factor = config.schedule.factor(epochs_done, 2)
        assert lrs == [0.02 * factor, 0.001 * factor]


def test_a_network_that_could_not_be_exported_says_so_before_training(
    low_bit: TrainConfig, monkeypatch, capsys
) -> None:
    def refused(model, example):
        assert example.shape[0] == 1 and not any(p.grad is not None for p in model.parameters())
        raise LowbitError("no integer form")

    integer = replace(low_bit.quantization, integer_only=True)
    run(replace(low_bit, epochs=1, quantization=integer))
    assert "warning" not in capsys.readouterr().out
    monkeypatch.setattr(lowbit, "to_integer", refused)
    run(replace(low_bit, epochs=1, quantization=integer, output=low_bit.output + "-refused"))
    assert "could not be exported as it starts: no integer form" in capsys.readouterr().out
