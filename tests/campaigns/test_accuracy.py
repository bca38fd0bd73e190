"""The campaign of accuracy: cells of the digits, run, recorded and reported as those of its tables are."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from campaigns.accuracy import jobs, results, tables
from campaigns.accuracy.__main__ import main
from campaigns.accuracy.cell import Cell, Given
from campaigns.accuracy.replay import ReplayedTrainer, Restarted
from campaigns.accuracy.report import difference, spread
from campaigns.accuracy.run import Places, run_cell
from campaigns.accuracy.tables import TABLES, initialization, parts, plan
from campaigns.accuracy.tables.table import Table
from campaigns.accuracy.twins import Twins

import lowbit.data.memory
import lowbit.report
from lowbit import METHODS, Balance, train
from lowbit.data import DataConfig
from lowbit.errors import LowbitError
from lowbit.quantizer.initialization import INITS, least_squares_init
from lowbit.train import TrainConfig, assemble
from lowbit.train.trainer import CALMER, Trainer

DIGITS = DataConfig(
    path="", batch_size=64, limit=128, channels=1, mean=(0.3,), std=(0.35,), validation=100.0, workers=0
)
START = Cell("fp", "digits-cnn", "fp", bits=None, epochs=2, seed=0, data=DIGITS, ships=True)


def cell(row: str = "lsq+lsq", seed: int = 0, bits: int | None = 3, **more) -> Cell:
    options = initialization.options(row) if bits else ()
    return Cell("init", "digits-cnn", row, bits, 1, seed, options=options, start=START.name, data=DIGITS, **more)


WAITING = cell("lsq+least-squares", waiting="not built")
TABLES_OF_DIGITS = (
    Table("fp", "Full precision", ((0, START),)),
    Table("init", "Rules", ((2, cell(seed=1)), (1, cell("fp", bits=None)), (1, cell()), (3, WAITING)), "lsq+lsq"),
)  # fmt: skip


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """(recipe, whether it was resumed) of every run; the digits take longer to compile and to plot than to learn."""
    runs = []
    real = train.run

    def run(config: TrainConfig, *, resume: bool = False) -> train.Result:
        runs.append((config.recipe, resume))
        return real(replace(config, compile=False, bn_batches=1), resume=resume)

    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(lowbit.report, "plot_run", lambda folder: None)
    torch.set_num_threads(1)
    return runs


@pytest.fixture
def command(tmp_path: Path, trained) -> Callable[..., int]:
    places = ["--data", "sklearn:digits", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    return lambda *options: main([*options, *places], TABLES_OF_DIGITS)


def test_cells_run_in_order_once_and_are_recorded(command, trained, tmp_path, capsys) -> None:
    assert command() == 0
    order = [START.name, cell("fp", bits=None).name, cell().name, cell(seed=1).name]
    assert [recipe.removeprefix("accuracy/") for recipe, _ in trained] == order
    done = results.read(tmp_path / "results")
    assert list(done) == order  # and not the one that waits
    line = done[cell().name]
    assert line["config"]["quantization"]["method"] == line["config"]["quantization"]["init_weights"] == "lsq"
    assert line["config"]["data"]["validation"] == 100 and line["config"]["epochs"] == 1
    assert line["start"] == {"cell": START.name, "weights": done[START.name]["weights"]}
    assert str(tmp_path) not in json.dumps(done) and "sklearn" not in json.dumps(done)
    assert len(line["steps"]) == 10 and all(len(pair) == 2 for pair in line["steps"].values())
    for line in done.values():
        run = lowbit.report.read_run(tmp_path / "runs" / line["cell"])
        assert line["test"] == run.final["test_accuracy"] and line["validation"] == run.final["best_accuracy"]
        assert line["seconds"] == round(sum(epoch["seconds"] for epoch in run.epochs), 1)
        assert line["versions"]["torch"] == torch.__version__
        assert f"--only '{line['cell']}' --again" in line["command"]
    assert done[START.name]["weights"] == results.sha256(results.weights_file(tmp_path / "results", START.name))

    before = (tmp_path / "results" / "init.jsonl").read_bytes()
    assert command() == 0 and len(trained) == 4  # nothing is run again
    capsys.readouterr()
    assert command("--list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == f"{START.name}: test {done[START.name]['test']:.2f} %"
    assert listed[-1] == f"{WAITING.name}: waits: not built"
    assert (tmp_path / "results" / "init.jsonl").read_bytes() == before


def test_an_interrupted_cell_goes_on(command, trained, tmp_path, monkeypatch, capsys) -> None:
    real = Trainer._set_progress

    def stop(self, epochs_done):
        if epochs_done >= 1.5:
            raise KeyboardInterrupt
        real(self, epochs_done)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_set_progress", stop)
        assert command() == 130
    assert results.read(tmp_path / "results") == {}
    capsys.readouterr()
    command("--list")
    assert f"{START.name}: 1 of 2 epochs" in capsys.readouterr().out
    assert command("--only", START.name) == 0
    assert trained == [(f"accuracy/{START.name}", False), (f"accuracy/{START.name}", True)]
    resumed = results.read(tmp_path / "results")[START.name]
    assert command("--only", START.name, "--again") == 0
    assert f"test accuracy {resumed['test']:.2f} %, recorded {resumed['test']:.2f} %" in capsys.readouterr().out


def test_a_result_that_was_not_recorded_in_time_is_recorded_without_training(command, trained, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "append", killed)
        assert command("--only", START.name) == 130
    epochs = []
    monkeypatch.setattr(Trainer, "train_epoch", lambda *a, **k: epochs.append(a))
    assert command("--only", START.name) == 0
    assert epochs == [] and START.name in results.read(tmp_path / "results")


def test_running_again_records_nothing(command, tmp_path, capsys) -> None:
    command("--only", START.name, cell().name)
    files = {file: file.read_bytes() for file in (tmp_path / "results").rglob("*.*")}
    recorded = results.read(tmp_path / "results")[cell().name]
    for _ in range(2):  # from scratch each time
        capsys.readouterr()
        assert command("--only", cell().name, "--again") == 0
        said = capsys.readouterr().out.splitlines()
        assert said[-1] == f"{cell().name}: test accuracy {recorded['test']:.2f} %, recorded {recorded['test']:.2f} %"
        assert "nothing to resume" not in "".join(said)
    kept = results.weights_file(tmp_path / "results", START.name)
    files[kept] = b"others"
    kept.write_bytes(files[kept])
    assert command("--only", START.name, "--again") == 0
    assert {file: file.read_bytes() for file in (tmp_path / "results").rglob("*.*")} == files


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_that_diverges_is_a_result(command, tmp_path, monkeypatch, capsys, epoch: int) -> None:
    def fail(self, number, *others, **named):
        if number == epoch:
            raise LowbitError(f"the loss is nan at epoch {number + 1}: {CALMER}")
        return real(self, number, *others, **named)

    real = Trainer.train_epoch
    monkeypatch.setattr(Trainer, "train_epoch", fail)
    assert command("--only", START.name) == 0
    line = results.read(tmp_path / "results")[START.name]
    assert line["test"] is None and "the loss is nan" in line["diverged"]
    capsys.readouterr()
    command("--list", "--only", START.name)
    command("--report")
    said = capsys.readouterr().out
    assert f"{START.name}: diverged" in said and "1, 1 diverged" in said


def test_what_keeps_a_cell_from_running_is_said(command, tmp_path, capsys) -> None:
    assert command("--only", cell().name) == 2
    assert f"needs {START.name}, which has no result: run that first" in capsys.readouterr().err
    command("--only", START.name)
    results.weights_file(tmp_path / "results", START.name).write_bytes(b"others")
    assert command("--only", cell().name) == 2
    assert "not the weights that the result of" in capsys.readouterr().err
    assert command("--only", WAITING.name, "--again") == 2
    assert "waits: not built" in capsys.readouterr().err
    assert command("--only", "nothing*") == 2
    assert "--only nothing*: no cell fits" in capsys.readouterr().err
    assert command("--again") == 2
    assert "--only" in capsys.readouterr().err
    assert main(["--results", str(tmp_path)], TABLES_OF_DIGITS) == 2
    assert "--data: name the folder" in capsys.readouterr().err


def test_a_cell_starts_from_weights_that_are_given(command, tmp_path, monkeypatch, capsys) -> None:
    command("--only", START.name)
    trained = results.weights_file(tmp_path / "results", START.name)
    given = replace(cell(), start=Given("start.safetensors", results.sha256(trained)))
    places = ["--data", "sklearn:digits", "--runs", str(tmp_path / "given"), "--results", str(tmp_path / "new")]
    tables = (Table("init", "Rules", ((0, given),)),)
    assert main(places, tables) == 2
    assert "starts from start.safetensors: name its folder with --given" in capsys.readouterr().err
    places += ["--given", str(tmp_path)]
    assert main(places, tables) == 2
    assert "not the start.safetensors that the results are of" in capsys.readouterr().err
    (tmp_path / "start.safetensors").write_bytes(trained.read_bytes())
    assert main(places, tables) == 0
    line = results.read(tmp_path / "new")[given.name]
    assert line["start"] == {"cell": None, "weights": given.start.sha256}
    assert line["config"]["model"]["init"] == "start.safetensors" and "--given FOLDER" in line["command"]
    command("--only", cell().name)  # the same weights, as a cell that trained them
    assert line["test"] == results.read(tmp_path / "results")[cell().name]["test"]


def test_results_that_contradict_each_other_are_refused(tmp_path) -> None:
    line = {"cell": "t/a", "table": "t"}
    results.append(tmp_path, line)
    results.append(tmp_path, {"cell": "t/b", "table": "t"})
    with pytest.raises(LowbitError, match="t/a: has a result"):
        results.append(tmp_path, line)
    assert list(results.read(tmp_path)) == ["t/a", "t/b"]
    assert [file.name for file in tmp_path.iterdir()] == ["t.jsonl"]
    (tmp_path / "u.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(LowbitError, match=r"u\.jsonl line 1: a second result of t/a"):
        results.read(tmp_path)
    (tmp_path / "u.jsonl").write_text('{"table": "u"}\n')
    with pytest.raises(LowbitError, match=r"u\.jsonl line 1: not a result"):
        results.read(tmp_path)


def made_up(values: dict[tuple[str, int | None, int], float | None], tmp_path: Path) -> None:
    """Results with these test accuracies of (row, bits, seed); validation is one point above."""
    for (row, bits, seed), test in values.items():
        found = {"cell": cell(row, seed, bits).name, "table": "init", "network": "digits-cnn", "row": row, "bits": bits}
        found |= {
            "epochs": 1,
            "seed": seed,
            "test": test,
            "validation": None if test is None else test + 1,
            "seconds": 90.0,
        }
        results.append(tmp_path, found)


def test_report_is_of_recorded_results_alone(tmp_path, capsys) -> None:
    rows = {
        "lsq+lsq": (50.0, 54.0, 52.0),
        "least-squares+lsq": (61.0, 63.0, 62.0),
        "three-sigma+lsq": (50.5, 53.0, None),
    }
    values = {(row, 3, seed): test for row, tests in rows.items() for seed, test in enumerate(tests)}
    made_up(values | {("fp", None, 0): 70.0, ("lsq+lsq", 2, 0): 40.0}, tmp_path)
    cells = [cell(row, seed, bits) for row, bits, seed in values]
    cells += [cell("fp", 0, None), cell("lsq+lsq", 0, 2), cell("least-squares+lsq", 0, 2)]
    tables = (Table("init", "Rules", tuple((0, c) for c in cells), "lsq+lsq", note="Of digits."), TABLES_OF_DIGITS[0])
    assert main(["--report", "--results", str(tmp_path)], tables) == 0
    said = capsys.readouterr().out
    assert (
        "## Rules\n\nOf digits.\n\n11 of 12 cells are there." in said and "Full precision" not in said
    )  # what has no result has no table
    table = [
        [part.strip() for part in line.split("|")[1:-1]]
        for line in said[said.index("## Rules") :].splitlines()
        if line.startswith("|")
    ]
    head, _, *body = table
    assert head[:5] == ["bits", "row", "seeds", "validation %", "test %"]
    found = {(row[0], row[1]): row[2:] for row in body}
    assert list(found) == [("FP", "fp"), *(("W3A3", row) for row in rows), ("W2A2", "lsq+lsq")]
    assert found["W3A3", "lsq+lsq"] == ["3", "53.00 ± 2.00", "52.00 ± 2.00", "-20.00 (one seed)", "-"]
    assert found["W3A3", "least-squares+lsq"][3:5] == ["-9.00 (one seed)", "+10.00 ± 0.58"]
    # Paired: 0.5 and -1.0 over seeds 0 and 1, which is no difference.
    assert found["W3A3", "three-sigma+lsq"] == [
        "3, 1 diverged", "52.75 ± 1.77", "51.75 ± 1.77", "-19.50 (one seed)", "-0.25 ± 0.75, none",
    ]  # fmt: skip
    assert found["W2A2", "lsq+lsq"] == ["1", "41.00", "40.00", "-30.00 (one seed)", "-"]
    assert found["FP", "fp"][3:5] == ["-", "-"]
    assert main(["--page", "--results", str(tmp_path)], tables) == 0
    page = tmp_path.with_suffix(".md").read_text()
    assert page.startswith("# Accuracy\n") and page.endswith(said)


def test_error_and_changes_are_means_over_weights_and_looks_of_an_epoch() -> None:
    def look(epoch: int, **weights: tuple[float, float]) -> dict:
        quantizers = {name: {"changed": changed, "error": error} for name, (changed, error) in weights.items()}
        return {"epoch": epoch, "step": 0, "quantizers": quantizers | {"input": {"step": 0.5}}}

    looks = [look(0, a=(0.1, 0.3), b=(0.3, 0.5)), look(0, a=(0.0, 0.2), b=(0.0, 0.2)), look(1, a=(0.02, 0.1))]
    run = lowbit.report.Run(Path(), {}, {}, [{"epoch": 0}, {"epoch": 1}], looks, {}, None)
    assert results._of_weights(run) == {"changed_by_epoch": [0.1, 0.02], "error_by_epoch": [0.3, 0.1]}
    assert results._of_weights(replace(run, looks=[])) == {"changed_by_epoch": [], "error_by_epoch": []}


def test_spread_and_difference_of_nothing() -> None:
    assert spread([]) == "-" and difference([], []) == "-"


def test_the_page_shows_what_is_recorded(tmp_path) -> None:
    """The page in the repository is the report of the results in it."""
    page = results.FOLDER.with_suffix(".md")
    (tmp_path / "accuracy").symlink_to(results.FOLDER)
    assert main(["--page", "--results", str(tmp_path / "accuracy")]) == 0
    assert (tmp_path / "accuracy.md").read_text() == page.read_text()


def test_recorded_results_are_of_cells_that_exist() -> None:
    done = results.read(results.FOLDER)
    cells = {cell.name: cell for cell in plan()}
    assert done.keys() <= cells.keys()
    for name, line in done.items():
        assert line["config"]["data"]["validation"] == 5000 and line["seed"] == cells[name].seed
        assert "same_as" not in line or "same_as" not in done[line["same_as"]]
        if cells[name].ships:
            assert results.sha256(results.weights_file(results.FOLDER, name)) == line["weights"]
        start = cells[name].start
        if isinstance(start, Given):
            assert line["start"] == {"cell": None, "weights": start.sha256}
        elif start is not None:
            assert line["start"] == {"cell": start, "weights": done[start]["weights"]}


def test_every_cell_has_a_name_of_its_own_and_starts_from_an_earlier_one() -> None:
    cells = plan()
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names) > 300
    assert plan(TABLES[:1])[0].start is None and cells[0].ships  # what others start from comes first
    for number, cell in enumerate(cells):
        assert cell.start is None or isinstance(cell.start, Given) or cell.start in names[:number]
        assert cell.config(data="somewhere", init=None, output=Path("runs")).data.validation == 5000
    budgets = {(cell.table, cell.network, cell.epochs, cell.seed) for cell in cells if cell.table.startswith("init")}
    for table, network, epochs, seed in budgets:  # every budget has full precision's
        assert f"{table}/{network}-fp-{epochs}ep-s{seed}" in names
    names = [
        "fp",
        "init",
        "init20",
        "ship",
        "rates",
        "methods",
        "faster",
        "longer",
        "augmentation",
        "parts",
        "signed",
        "ablations",
        "oscillation",
    ]
    assert [table.name for table in TABLES] == [*names, "peers", "widths", "bits"]


def test_a_cell_goes_on_from_the_run_of_another(command, tmp_path) -> None:
    """At other bits: its weights are the other's to begin with, and the record names that, not a folder."""
    first, second = cell(bits=4), replace(cell(), row="after", after=cell(bits=4).name)
    tables = (Table("init", "Rules", ((0, first), (1, second)), by_epochs=False),)
    places = ["--data", "sklearn:digits", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert command("--only", START.name) == 0
    assert main([*places, "--only", second.name], tables) == 2
    assert main(places, tables) == 0
    line = results.read(tmp_path / "results")[second.name]
    assert line["config"]["quantization"]["start"] == first.name and str(tmp_path) not in json.dumps(line)
    assert jobs._next([second], {START.name}, "", set()) is None
    assert jobs._next([second], {START.name, first.name}, "", set()) is second
    assert main(["--results", str(tmp_path / "results"), "--report"], tables) == 0


def test_rows_of_the_initialization_are_lsq_but_for_where_steps_start_and_how_fast_they_learn() -> None:
    low_bit = cell("lsq+lsq").config(data="d", init="w", output=Path("runs")).quantization
    found = {}
    for row in initialization.ROWS:
        config = cell(row).config(data="d", init="w", output=Path("runs")).quantization
        found[row] = (config.init_activations, config.init_weights, config.balance)
        assert replace(config, init_activations="lsq", init_weights="lsq", balance=None) == low_bit
    assert found["least-squares+three-sigma"] == ("least-squares", "three-sigma", None)
    assert found["lsq+three-sigma,balanced"] == ("lsq", "three-sigma", 1.0)
    assert len(set(found.values())) == len(found) == 12
    assert {rules[:2] for rules in found.values()} == {(a, w) for a in INITS for w in INITS if "max" not in (a, w)}


def test_a_row_with_a_method_of_its_own(command, tmp_path) -> None:
    command("--only", START.name)
    own = replace(cell(), row="own", method=replace(METHODS["lsq"], name="campaign:own"))
    tables = (Table("init", "Rules", ((0, own),)),)
    places = ["--data", "sklearn:digits", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert main(places, tables) == 0
    command("--only", cell().name)
    done = results.read(tmp_path / "results")
    assert done[own.name]["config"]["quantization"]["method"] == "campaign:own" and "campaign:own" not in METHODS
    assert done[own.name]["test"] == done[cell().name]["test"]  # it is LSQ under another name


def test_rows_of_the_parts_differ_from_lsq_in_what_their_names_say() -> None:
    lsq, rows = METHODS["lsq"], {name: replace(method, name="lsq") for name, method in parts.ROWS.items()}
    assert rows["lsq"] == lsq and len(set(rows.values())) == len(rows)
    for name, method in rows.items():
        start, part = name.rpartition("least-squares, ")[1:] if name != "least-squares" else (name, "lsq")
        weights, activations = method, method.for_activations
        assert (weights.surrogate_gradient is not None) == (
            part.startswith("lg") or part in ("asr-weights", "asr-both", "asr5-weights", "ssg-slope")
        )
        assert (activations.surrogate_gradient is not None) == (part in ("asr-activations", "asr-both"))
        assert (weights.gradient_scaling is not None) == (
            part.startswith("lg") or part == "mde"
        ) and activations.gradient_scaling is None
        for side in (weights, activations):
            magnitude = part.startswith("ssg-magnitude") or part == "lg-lsq"
            assert (side.step_gradient.balance is not None) == magnitude
            assert (side.offset, side.signed) == (lsq.offset, lsq.signed)
        assert weights.init is lsq.init and activations.init is (least_squares_init if start else lsq.init)
    by_suffix = {suffix: {c.row.removesuffix(suffix) for _, c in parts.TABLE.cells if c.row.endswith(suffix)}
                 for suffix in ("@0.02", "@0.05", "@adam")}  # fmt: skip
    assert by_suffix["@0.02"] == by_suffix["@0.05"] == {*rows, *parts.REMEDIES, "fp"}
    assert by_suffix["@adam"] == {*parts.ADAM, "fp"}
    adam = next(c for _, c in parts.TABLE.cells if c.row == "lsq@adam").config(data="d", init="w", output=Path("runs"))
    assert (adam.optimizer.name, adam.optimizer.lr) == ("adam", 0.0005)


def test_full_precision_of_the_table_is_trained_as_low_bits_are() -> None:
    low, full = (
        cell(row, bits=bits).config(data="d", init="weights", output=Path("runs"))
        for row, bits in (("lsq+lsq", 4), ("fp", None))
    )
    assert full.quantization is None and full.model.init == "weights"
    assert replace(full, recipe="", quantization=None) == replace(low, recipe="", quantization=None)
    changed = cell(changes=(("optimizer.lr", 0.05), ("epochs", 7))).config(data="d", init="w", output=Path("runs"))
    assert (changed.optimizer.lr, changed.optimizer.momentum, changed.epochs) == (0.05, 0.9, 7)


class Repeated(ReplayedTrainer):
    """A `ReplayedTrainer` on a processor that can't replay: what was recorded runs again."""

    def can_replay(self) -> bool:
        return True

    def side_stream(self) -> None:
        return None

    def warm(self, step) -> None:
        step()

    def record(self, step):
        return step


@pytest.mark.parametrize("method", ["lsq", "annealed"])
def test_replayed_steps_train_as_others_do(command, tmp_path, monkeypatch, method: str) -> None:
    """Learning rate, annealed parts, batches and labels reach a step that was recorded once."""
    assert command("--only", START.name) == 0
    named = replace(METHODS["lsq"], name="campaign:annealed").varied(balance=Balance(final=0.1))
    one = replace(cell(method="lsq" if method == "lsq" else named), epochs=4)
    places = Places("sklearn:digits", tmp_path / "runs", tmp_path / "results")
    losses = {}
    for trainer in (Trainer, Repeated):
        monkeypatch.setattr(assemble, "Trainer", trainer)
        folder = tmp_path / trainer.__name__
        run_cell(one, places, folder, compile=False)
        losses[trainer] = [epoch["train_loss"] for epoch in lowbit.report.read_run(folder).epochs]
    assert losses[Repeated] == pytest.approx(losses[Trainer], rel=1e-4)
    assert len(set(losses[Repeated])) == 4


@pytest.mark.parametrize("method", ["lsq", "balanced"])
def test_the_seeds_of_a_row_share_a_trainer(command, tmp_path, monkeypatch, method: str) -> None:
    """A run that takes the trainer of the seed before is that of a trainer of its own, bit for bit."""
    assert command("--only", START.name) == 0
    named = "lsq" if method == "lsq" else replace(METHODS["lsq"], name="campaign:balanced").varied(balance=Balance())
    cells = [replace(cell(method=named), epochs=2, seed=seed) for seed in (0, 1)]
    places = Places("sklearn:digits", tmp_path / "runs", tmp_path / "results")
    accuracy = {}
    for trainer in (Repeated, Restarted(Repeated)):
        monkeypatch.setattr(assemble, "Trainer", trainer)
        folder = tmp_path / type(trainer).__name__
        lines = [run_cell(one, places, folder / one.name, compile=False) for one in cells]
        losses = [[epoch["train_loss"] for epoch in lowbit.report.read_run(folder / one.name).epochs] for one in cells]
        accuracy[type(trainer)] = losses, [(line["validation"], line["test"], line["steps"]) for line in lines]
    assert accuracy[type] == accuracy[Restarted]
    assert accuracy[type][0][0] != accuracy[type][0][1]


def test_cells_that_share_an_accelerator(trained, tmp_path, monkeypatch, capsys) -> None:
    """A process of its own would take seconds to begin: a thread does its work here."""

    class Context:
        Pipe = staticmethod(multiprocessing.Pipe)

        class Process(threading.Thread):
            def __init__(self, target, args, daemon) -> None:
                ours = Connection(os.dup(args[0].fileno()))  # as a process inherits it
                super().__init__(target=target, args=(ours, *args[1:]), daemon=daemon)

            def terminate(self) -> None:
                self.join()  # the pipe is closed

    monkeypatch.setattr(jobs.multiprocessing, "get_context", lambda kind: Context)
    for redirect in ("redirect_stdout", "redirect_stderr"):  # they are of a process
        monkeypatch.setattr(jobs, redirect, nullcontext)
    monkeypatch.setattr(lowbit.data.memory, "decode_all", lowbit.data.memory.decode_all)
    monkeypatch.setattr(assemble, "Trainer", Trainer)
    monkeypatch.setattr(lowbit.report, "plot_run", lowbit.report.plot_run)
    broken = replace(cell(), row="broken", network="no-such-network")
    monkeypatch.setattr(tables, "plan", lambda: [*plan(TABLES_OF_DIGITS), broken])
    places = Places("sklearn:digits", tmp_path / "runs", tmp_path / "results")
    jobs.run_at_once(tables.plan(), places, Twins(tables.plan()), jobs=1, minutes=2)
    said = capsys.readouterr().out
    assert list(results.read(places.results)) == [
        START.name,
        cell("fp", bits=None).name,
        cell().name,
        cell(seed=1).name,
    ]
    assert f"{broken.name}: " in said and "no-such-network" in said
    assert "4 cells finished, 0 not begun" in said


def test_cells_that_train_the_same_have_one_result(trained, tmp_path, capsys) -> None:
    """Whatever their tables, their rows and their method are called; not what others start from, and not another seed."""
    named = replace(METHODS["lsq"], name="campaign:lsq")
    changed = replace(named, activations=replace(METHODS["lsq"], signed=False))
    twins = [
        replace(cell(), table="other"),
        replace(cell(), row="named", method=named),
        replace(cell("lsq+lsq"), row="lsq+lsq, ships", ships=True),
    ]
    others = [replace(cell(), row="changed", method=changed), cell(seed=1), replace(cell(), row="4", bits=4)]
    table = Table("twins", "Twins", tuple((0, one) for one in (START, cell(), *twins, *others)))
    places = ["--data", "sklearn:digits", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert main(["--only", "fp/*", "*lsq+lsq*", *places], (table,)) == 0
    assert len(trained) == 4  # the start, the first, the one that ships, and another seed
    done = results.read(tmp_path / "results")
    for twin in twins[:2]:
        assert done[twin.name]["same_as"] == cell().name
        assert done[twin.name]["row"] == twin.row
        assert done[twin.name]["test"] == done[cell().name]["test"]
        assert done[twin.name]["command"] == twin.command
    assert not any("same_as" in line for name, line in done.items() if name not in {twin.name for twin in twins[:2]})
    at_once = [twins[0], others[0], twins[1], others[1]]
    assert Twins(at_once).without(at_once) == [twins[0], *others[:2]]


def test_a_cell_waits_for_its_start_and_follows_one_of_its_kind() -> None:
    first, other, same = cell(), cell("least-squares+lsq", method="ewgs"), cell(seed=1)
    assert jobs._next([first], set(), "", set()) is None
    assert jobs._next([other, same], {START.name}, jobs._kind(first), {jobs._kind(other)}) is same
    assert jobs._next([other, same], {START.name}, "", set()) is other
    assert jobs._next([other, same], {START.name}, "", {jobs._kind(other)}) is same
    assert jobs._next([other], {START.name}, "", {jobs._kind(other)}) is other
