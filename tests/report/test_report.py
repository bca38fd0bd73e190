"""Run folders as the training loop writes them, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowbit.errors import LowbitError
from lowbit.report import plot_run, read_run, render, table


def write_run(
    folder: Path, *, epochs: int = 3, quantizers: int = 2, final: float | None = None, tail: str = "", planned: int = 3
) -> Path:
    folder.mkdir()
    quantization = {"weights": 2, "activations": 3, "method": "lsq"} if quantizers else None
    config = {"model": {"name": "cifar-resnet20"}, "quantization": quantization, "seed": 7, "epochs": planned}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "versions.json").write_text('{"torch": "2.13.0"}')
    names = [f"layer{i}.{side}_quantizer" for i in range(quantizers) for side in ("weight", "input")]
    events = [{"event": "start", "steps": dict.fromkeys(names, 0.1)}, {"event": "something else"}]
    for epoch in range(epochs):
        numbers = {"train_loss": 2 - epoch / 10, "train_accuracy": 30 + epoch, "test_accuracy": 40.0 + epoch}
        steps = {name: 0.1 * (1 + epoch + i / 10) for i, name in enumerate(names)}
        seconds = {"seconds": 10.0 + epoch, "lr": 0.1, "test_loss": None if epoch == 0 else 1.5}
        events.append({"event": "epoch", "epoch": epoch, **numbers, **seconds, "steps": steps})
    if final is not None:
        events.append({"event": "final", "test_accuracy": final})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + tail)
    return folder


def test_read_run(tmp_path):
    run = read_run(write_run(tmp_path / "a", final=44.5))
    assert [epoch["epoch"] for epoch in run.epochs] == [0, 1, 2]
    assert run.config["model"]["name"] == "cifar-resnet20"
    assert run.versions == {"torch": "2.13.0"}
    assert run.start_steps["layer1.input_quantizer"] == 0.1
    assert run.final["test_accuracy"] == 44.5


@pytest.mark.parametrize("tail", ['{"event": "epoch", "epo', '{"event": "epoch"}', "[1]"])
def test_half_a_last_line_is_ignored(tmp_path, tail):
    assert len(read_run(write_run(tmp_path / "a", tail=tail)).epochs) == 3


def test_looks_during_training(tmp_path):
    looks = [
        {
            "event": "look",
            "epoch": 2,
            "step": step,
            "quantizers": {"a.weight_quantizer": {"changed": 0.1, "error": None}},
        }
        for step in (60, 10, 60)
    ]
    run = read_run(write_run(tmp_path / "a", tail="".join(json.dumps(look) + "\n" for look in looks)))
    assert [look["step"] for look in run.looks] == [10, 60]


@pytest.mark.parametrize(
    "look",
    [
        {"epoch": 0},
        {"epoch": 0, "step": 1, "quantizers": [1]},
        {"epoch": 0, "step": 1, "quantizers": {"a": {"changed": "x"}}},
    ],
)
def test_damaged_looks(tmp_path, look):
    tail = json.dumps({"event": "look", **look}) + "\n" + '{"event": "final", "test_accuracy": 44.0}\n'
    with pytest.raises(LowbitError, match=r"metrics\.jsonl line 6"):
        read_run(write_run(tmp_path / "a", tail=tail))


def test_damage_before_the_last_line_is_named(tmp_path):
    folder = write_run(tmp_path / "a", tail='{"event": "ep\n{"event": "other"}\n')
    with pytest.raises(LowbitError, match=r"metrics\.jsonl line 6"):
        read_run(folder)


def test_an_epoch_logged_again_counts_as_logged_last(tmp_path):
    again = json.dumps({"event": "epoch", "epoch": 2, "test_accuracy": 99.0})
    run = read_run(write_run(tmp_path / "a", final=44.0, tail=again))
    assert len(run.epochs) == 3 and run.epochs[2]["test_accuracy"] == 99.0
    assert run.final is None


def test_no_run_and_damaged_config(tmp_path):
    with pytest.raises(LowbitError, match="no run is there"):
        read_run(tmp_path)
    folder = write_run(tmp_path / "a")
    (folder / "config.json").write_text("{")
    with pytest.raises(LowbitError, match=r"config\.json"):
        read_run(folder)


def test_plots(tmp_path):
    import matplotlib.image

    paths = plot_run(write_run(tmp_path / "a", quantizers=45, final=44.0))
    assert [path.name for path in paths] == ["loss.png", "accuracy.png", "steps.png"]
    for path in paths:
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[1] > 800 and pixels[..., :3].std() > 0.05  # something is drawn
    assert sorted(p.name for p in (tmp_path / "a" / "plots").iterdir()) == ["accuracy.png", "loss.png", "steps.png"]


def test_steps_are_relative_to_the_start(tmp_path):
    from lowbit.report import plots

    figure = plots._steps(read_run(write_run(tmp_path / "a", quantizers=2)))
    weights, activations = figure.axes[:2]
    assert [len(weights.lines), len(activations.lines)] == [2, 2]
    assert weights.lines[0].get_xdata().tolist() == [0, 1, 2, 3]
    assert weights.lines[0].get_ydata().tolist() == pytest.approx([1, 1, 2, 3])
    labels = [text.get_text() for text in weights.get_legend().get_texts()]
    assert labels == ["layer1  x3.20", "layer0  x3.00"]  # what moved most comes first


def test_curves_of_a_run_that_chose_by_validation(tmp_path):
    from lowbit.report import plots

    folder = write_run(tmp_path / "a", final=44.0)
    log = (folder / "metrics.jsonl").read_text().splitlines()
    log = [line.replace("test_", "validation_") if '"epoch"' in line else line for line in log]
    (folder / "metrics.jsonl").write_text("\n".join(log))
    (axes,) = plots._curves(read_run(folder), "accuracy", "accuracy (%)").axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["train, last 32.00", "validation, last 42.00", "test, at the end 44.00"]


@pytest.mark.parametrize(("epochs", "quantizers", "count"), [(0, 2, 0), (1, 1, 3), (2, 0, 2)])
def test_plots_of_little(tmp_path, epochs, quantizers, count):
    assert len(plot_run(write_run(tmp_path / "a", epochs=epochs, quantizers=quantizers))) == count


def test_table(tmp_path):
    rows = table(
        [
            write_run(tmp_path / "done", final=41.5),
            read_run(write_run(tmp_path / "going", epochs=2, quantizers=0)),
            write_run(tmp_path / "new", epochs=0),
        ]
    )
    assert rows[0] == {
        "run": "done", "model": "cifar-resnet20", "bits": "W2A3", "method": "lsq", "seed": 7, "accuracy": 41.5,
        "best": 42.0, "epochs": "3", "seconds": 33.0, "seconds_per_epoch": 11.0,
    }  # fmt: skip
    assert (rows[1]["bits"], rows[1]["method"], rows[1]["epochs"], rows[1]["accuracy"]) == ("FP", "-", "2/3", 41.0)
    assert rows[2]["accuracy"] is None and rows[2]["epochs"] == "0/3"


def test_render():
    rows = [{"run": "a|b", "accuracy": 87.123, "seconds": 3.25}, {"run": "c", "accuracy": None, "seconds": 100.0}]
    assert render(rows) == (
        "run  accuracy  seconds\n---  --------  -------\na|b     87.12      3.2\nc           -    100.0\n"
    )
    assert render(rows, markdown=True).splitlines()[:3] == [
        "| run  | accuracy | seconds |",
        "| ---- | -------: | ------: |",
        "| a\\|b |    87.12 |     3.2 |",
    ]
    assert render([]) == ""
