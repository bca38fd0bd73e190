"""Nothing damaged, edited or swapped behind a run's back is evaluated or trained on."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.train.conftest import small_config
from tests.train.test_train_resume import interrupt

import lowbit.train.tracking
from lowbit.cli.main import main
from lowbit.errors import LowbitError
from lowbit.models import save_weights, saved_about
from lowbit.train import OptimizerConfig, TrainConfig, evaluate_run, load, run
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.state import Saved

FILES = ["checkpoints.json", "model.safetensors", "training.json", "training.safetensors"]


@pytest.fixture(scope="module")
def half(trained: Path, tmp_path_factory) -> Path:
    """The folder of a run at low bits with an average and a freezer, stopped in its second epoch."""
    config = small_config(tmp_path_factory.mktemp("half") / "run", ema=0.9, epochs=2)
    config = replace(
        config,
        model=replace(config.model, init=str(trained)),
        quantization=lowbit.train.QuantizationConfig(weights=3, activations=3, freezing=0.02, calibration_batches=2),
        optimizer=OptimizerConfig(lr=0.02),
    )
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, config, 1.5)
    return Path(config.output)


@pytest.fixture
def folder(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "copy"))


def resumed(folder: Path, **changes: Any) -> None:
    run(replace(TrainConfig.load(folder / "config.json"), output=str(folder), **changes), resume=True)


def path_of(folder: Path, file: str) -> Path:
    checkpoints = folder / "checkpoints"
    return checkpoints / file if file == "checkpoints.json" else checkpoints / "epoch-0001" / file


def sign(folder: Path) -> None:
    """Give a changed checkpoint checksums that fit."""
    checkpoints = Checkpoints(folder)
    pointer = checkpoints._pointer()
    pointer.files = None
    files = checkpoints._checksums(pointer)
    checkpoints.pointer.write_text(pointer.moved("epoch-0001", files, best=True).text())


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_is_found(folder: Path, file: str) -> None:
    config, path = TrainConfig.load(folder / "config.json"), path_of(folder, file)
    data, chooser = path.read_bytes(), random.Random(file)
    Saved.last(Checkpoints(folder), config)
    for _ in range(60):
        place, bit = chooser.randrange(len(data)), chooser.randrange(8)
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        with pytest.raises(LowbitError, match=r"checkpoints\.json|checksum"):
            Saved.last(Checkpoints(folder), config)
        if file in ("checkpoints.json", "model.safetensors"):
            with pytest.raises(LowbitError, match=r"checkpoints\.json|checksum"):
                load(folder)


def test_weights_that_were_taken_out_of_a_run_have_a_checksum_of_their_own(folder: Path, tmp_path: Path) -> None:
    data, chooser = path_of(folder, "model.safetensors").read_bytes(), random.Random(0)
    file, config = tmp_path / "weights.safetensors", TrainConfig.load(folder / "config.json")
    model = lowbit.train.build.prepare(lowbit.models.create("digits-cnn"), config.quantization)
    file.write_bytes(data)
    lowbit.models.load_weights(model, file)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    header = 8 + int.from_bytes(data[:8], "little")
    for number in range(60):
        place = chooser.randrange(*((8, header) if number % 2 else (header, len(data))))
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << chooser.randrange(8)]) + data[place + 1 :])
        try:
            lowbit.models.load_weights(model, file)
        except LowbitError:
            continue
        # Of the header alone: the name of the checksum, so that there is none, or what no tensor depends on.
        assert place < header and all(value.equal(expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("checkpoints.json", b"[]"),
        ("checkpoints.json", b'{"last": 3, "best": 3}'),
        ("checkpoints.json", b'{"last": "../../elsewhere", "best": "epoch-0001"}'),
        ("checkpoints.json", b'{"last": "epoch-0001", "best": "epoch-0001", "files": 1, "sha256": "0"}'),
        ("checkpoints.json", b"[" * 100_000),
        ("checkpoints.json", b"\xff\xfe"),
        ("training.json", b"[" * 100_000),
        ("training.json", b'{"dict": 3}'),
        ("training.json", b'{"tensor": "none"}'),
        ("training.json", b'{"dict": [["progress", {"dict": [["epochs_done", "x"]]}]]}'),
        ("training.json", b'{"dict": [["progress", 1], ["trainer", 1]]}'),
        ("training.json", b"1e400"),
        ("training.safetensors", b"x"),
        ("model.safetensors", b"x"),
    ],
)
def test_odd_files_of_a_checkpoint_end_in_words(folder: Path, file: str, content: bytes, capsys) -> None:
    path_of(folder, file).write_bytes(content)
    if file != "checkpoints.json":
        sign(folder)
    assert main(["train", "--resume", "--output", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "lowbit: error:" in said and "checkpoints" in said


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[1]"),
        ("config.json", "{"),
        ("config.json", '{"data": {}}'),
        ("config.json", '{"model": {"num_classes": "x"}}'),
        ("metrics.jsonl", "[1]\n{}\n"),
        ("metrics.jsonl", '{"event": "epoch", "epoch": 0, "train_loss": "x"}\n{}\n'),
        ("metrics.jsonl", '{"event": "epoch", "epoch": "x"}\n{}\n'),
        ("metrics.jsonl", '{"event": "start", "steps": [1]}\n{}\n'),
        ("metrics.jsonl", '{"event": "epoch", "epoch": 0, "steps": {"a": "b"}}\n{}\n'),
        ("versions.json", "[1]"),
        ("versions.json", "\udcff"),
    ],
)
def test_odd_files_of_a_run_are_found_before_the_last_epoch(folder, file, content, monkeypatch, capsys) -> None:
    (folder / file).write_text(content, errors="surrogateescape")
    monkeypatch.setattr(lowbit.train.loop, "assemble", lambda *_: pytest.fail("training began"))
    assert main(["train", "--resume", "--output", str(folder)]) == 2
    assert file in capsys.readouterr().err


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = path_of(folder, "model.safetensors")
    tensors, about = safetensors.torch.load_file(path), saved_about(path)
    change(tensors)
    save_weights(tensors, path, about)
    sign(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_evaluated(folder: Path, value: float, capsys) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        next(t for name, t in sorted(tensors.items()) if name.endswith("weight")).flatten()[0] = value

    change_weights(folder, spoil)
    for command in (["eval", str(folder)], ["export", str(folder)], ["train", "--resume", "--output", str(folder)]):
        assert main(command) == 2
        assert "holds NaN or infinity" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_outputs_that_are_not_finite_are_no_accuracy(folder: Path, value: float, monkeypatch, capsys) -> None:
    """Also minus infinity for a class that no image has, which leaves loss and accuracy as they are."""
    forward = lowbit.models.DigitsCnn.forward

    def spoiled(self, x):
        logits = forward(self, x)
        return logits if self.training else logits.index_fill(1, torch.tensor([3]), value)

    monkeypatch.setattr(lowbit.models.DigitsCnn, "forward", spoiled)
    with pytest.raises(LowbitError, match="outputs are not finite"):
        evaluate_run(folder)
    assert main(["eval", str(folder)]) == 2
    assert "outputs are not finite" in capsys.readouterr().err


# ---------------------------------------------------------------- edits


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 5), ("epochs", 3), ("ema", 0.5), ("optimizer.lr", 0.3), ("optimizer.momentum", 0.5), ("data.limit", 128),
        ("data.mean", [0.4]), ("quantization.weights", 4), ("quantization.freezing", 0.5), ("quantization", None),
        ("model.name", "cifar-resnet20"), ("precision", "bf16"),
    ],
)  # fmt: skip
def test_an_edited_config_is_refused_by_the_name_of_the_field(folder: Path, field: str, value: Any, capsys) -> None:
    values = json.loads((folder / "config.json").read_text())
    *groups, name = field.split(".")
    place = values
    for group in groups:
        place = place[group]
    place[name] = value
    (folder / "config.json").write_text(json.dumps(values))
    for command in (["train", "--resume", "--output", str(folder)], ["eval", str(folder)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"a checkpoint of {field}" in said and "but the run's config has" in said


def test_what_may_change_is_said(folder: Path, tmp_path: Path, capsys) -> None:
    config = TrainConfig.load(folder / "config.json")
    workers = replace(config.data, workers=1, eval_batch_size=100)
    resumed(folder, data=workers, model=replace(config.model, init="elsewhere"))
    said = capsys.readouterr().out
    for words in (f'output: "{config.output}"', "workers: null, now 1", "eval_batch_size: 256, now 100", 'init: "'):
        assert words in said
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    events = [event for event in events if event["event"] != "look"]
    assert [event["event"] for event in events] == ["start", "epoch", "resume", "epoch", "final"]
    assert "data.workers: null, now 1" in events[2]["changed"]


def test_of_a_run_that_was_moved_nothing_else_is_said(folder: Path, capsys) -> None:
    resumed(folder)
    line = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("not as at the last checkpoint")
    )
    assert line.startswith("not as at the last checkpoint: output: ") and ";" not in line


@pytest.mark.parametrize(("package", "refused"), [("lowbit", True), ("torch", False), ("timm", False)])
def test_other_versions(folder: Path, package: str, refused: bool, monkeypatch, capsys) -> None:
    found = lowbit.train.tracking.versions()
    monkeypatch.setattr(lowbit.train.assemble, "versions", lambda: found | {package: "99.0"})
    status = main(["train", "--resume", "--output", str(folder)])
    said = capsys.readouterr()
    if refused:
        assert status == 2 and f"was trained by lowbit {found['lowbit']}, and this is 99.0" in said.err
    else:
        assert status == 0 and f"{package}: {found[package]}, now 99.0" in said.out


def image_run(tmp_path: Path) -> TrainConfig:
    from tests.data.images import write_folder

    write_folder(tmp_path / "images", {split: {"a": 5, "b": 4} for split in ("train", "test", "val")}, size=(8, 8))
    config = small_config(tmp_path / "run")
    return replace(config, data=replace(config.data, path=str(tmp_path / "images"), batch_size=4, limit=None))


@pytest.mark.parametrize(
    ("split", "change"),
    [
        ("train", "removed"), ("train", "added"), ("train", "renamed"), ("train", "moved to another class"),
        ("train", "another size"), ("test", "another size"), ("val", "another size"),
    ],
)  # fmt: skip
def test_other_images_under_the_same_path_are_refused(tmp_path: Path, split: str, change: str, monkeypatch) -> None:
    config = image_run(tmp_path)
    config = replace(config, data=replace(config.data, validation_split="val"))
    interrupt(monkeypatch, config, 1.5)
    image = tmp_path / "images" / split / "a" / "3.png"
    if change == "removed":
        image.unlink()
    elif change == "added":
        shutil.copy(image, image.with_name("9.png"))
    elif change == "renamed":
        image.rename(image.with_name("9.png"))
    elif change == "moved to another class":
        image.rename(tmp_path / "images" / split / "b" / "9.png")
    else:
        image.write_bytes(image.read_bytes() + b"\0")
    name = {"train": "training", "val": "validation"}.get(split, split)
    with pytest.raises(LowbitError, match=f"images: the {name} images are not those that the run was started with"):
        run(config, resume=True)


def test_the_same_images_elsewhere_are_taken(tmp_path: Path, monkeypatch, capsys) -> None:
    config = image_run(tmp_path)
    interrupt(monkeypatch, config, 1.5)
    (tmp_path / "images").rename(tmp_path / "moved")
    run(replace(config, data=replace(config.data, path=str(tmp_path / "moved"))), resume=True)
    assert f'data.path: "{tmp_path / "images"}", now "{tmp_path / "moved"}"' in capsys.readouterr().out


def test_another_teacher_is_refused(low_bit: TrainConfig, trained: Path, tmp_path: Path, monkeypatch) -> None:
    config = replace(low_bit, task="distill")
    interrupt(monkeypatch, config, 1.5)
    tensors = safetensors.torch.load_file(Checkpoints(trained).weights("best"))
    name = next(name for name, tensor in tensors.items() if name.endswith("weight"))
    tensors[name].flatten()[0] += 1
    save_weights(tensors, tmp_path / "other.safetensors")
    with pytest.raises(
        LowbitError, match=r"the teacher's weights \(model\.init, or distillation\.init\) are not those"
    ):
        run(replace(config, model=replace(config.model, init=str(tmp_path / "other.safetensors"))), resume=True)


def test_another_teacher_of_another_network_is_refused(low_bit, taught, tmp_path, monkeypatch) -> None:
    config = replace(low_bit, task="distill", distillation=taught)
    interrupt(monkeypatch, config, 1.5)
    run(replace(config, model=replace(config.model, init="gone")), resume=True)  # which nobody needs any more
    config = replace(config, output=str(tmp_path / "second"))
    interrupt(monkeypatch, config, 1.5)
    with pytest.raises(LowbitError, match="the teacher's weights"):
        run(replace(config, distillation=replace(taught, init=str(tmp_path / "teacher2.safetensors"))), resume=True)


# ---------------------------------------------------------------- training state that does not fit


def scalar_momentum(tensors: dict[str, torch.Tensor]) -> None:
    name = max((n for n in tensors if n.endswith("momentum_buffer")), key=lambda n: tensors[n].numel())
    tensors[name] = torch.ones(1)  # would be broadcast


def double_momentum(tensors: dict[str, torch.Tensor]) -> None:
    name = next(n for n in tensors if n.endswith("momentum_buffer"))
    tensors[name] = tensors[name].double()


def vector_count(tensors: dict[str, torch.Tensor]) -> None:
    name = next(n for n in tensors if n.endswith("behind_average.count"))
    tensors[name] = tensors[name].float() + 0.5


def scalar_frozen(tensors: dict[str, torch.Tensor]) -> None:
    tensors[next(n for n in tensors if n.endswith(".frozen"))] = torch.zeros(1, dtype=torch.bool)


def average_of_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    name = next(n for n, value in tensors.items() if ".behind_average.model." in n and value.dim() > 1)
    tensors[name] = tensors[name].flatten()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scalar_momentum, r"momentum_buffer of .* is torch\.float32 of shape \(1,\), not torch\.float32 of \("),
        (double_momentum, r"momentum_buffer of .* is torch\.float64"),
        (vector_count, r"number of averaged steps is torch\.float32"),
        (scalar_frozen, "freezer belongs to another network"),
        (average_of_another_shape, "does not fit this run's network"),
    ],
)
def test_training_state_of_another_shape_or_type_is_refused(folder: Path, change, message: str) -> None:
    path = path_of(folder, "training.safetensors")
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    sign(folder)
    with pytest.raises(LowbitError, match=message):
        resumed(folder)


def packed(state: dict, *keys: Any) -> list:
    """The entries of a packed dictionary below `keys`."""
    for key in keys:
        state = next(value for name, value in state["dict"] if name == key)
    return state["dict"] if "dict" in state else state["list"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("trainer", "attached"), "shorter"),
        (("trainer", "optimizer"), "not in this network"),
        (("progress",), "progress"),
    ],
)
def test_training_state_with_parts_missing_or_strange_is_refused(folder: Path, keys: tuple, message: str) -> None:
    path = path_of(folder, "training.json")
    state = json.loads(path.read_text())
    if keys == ("progress",):
        packed(state, *keys)[0][1] = 99
    elif keys[-1] == "attached":
        packed(state, *keys).pop()
    else:
        packed(state, *keys)[0][0] = "not in this network"
    path.write_text(json.dumps(state))
    sign(folder)
    with pytest.raises(LowbitError, match=message):
        resumed(folder)


def test_checkpoints_of_earlier_versions_go_on_and_say_so(folder: Path, capsys) -> None:
    """They have neither checksums nor a record of what they were made from."""
    path = path_of(folder, "training.json")
    state = json.loads(path.read_text())
    state["dict"] = [entry for entry in state["dict"] if entry[0] != "origin"]
    packed(state, "progress").append(["held_out", None])
    packed(state, "trainer", "attached").insert(0, {"dict": [["running", {"tensor": "running"}]]})
    tensors = safetensors.torch.load_file(path_of(folder, "training.safetensors"))
    safetensors.torch.save_file(tensors | {"running": torch.ones(2, 0)}, path_of(folder, "training.safetensors"))
    path.write_text(json.dumps(state))
    (folder / "checkpoints" / "checkpoints.json").write_text('{"last": "epoch-0001", "best": "epoch-0001"}')
    weights = path_of(folder, "model.safetensors")
    safetensors.torch.save_file(
        safetensors.torch.load_file(weights),
        weights,
        metadata={"model.name": '"digits-cnn"', "quantization.weights": "3"},
    )
    load(folder)
    resumed(folder)
    assert "an earlier version of lowbit wrote the checkpoint, without checksums" in capsys.readouterr().out
    load(folder)
    Saved.last(Checkpoints(folder), TrainConfig.load(folder / "config.json"))
