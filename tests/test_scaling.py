"""The planning numbers, against the same sums done by hand."""

from __future__ import annotations

import csv

import pytest
from campaigns.scaling import IMAGENET_IMAGES, Plan, gradient_size, main, step_from_csv

PLAN = dict(parameters=1_000_000, images=1000, epochs=3, batch=10)


def test_what_is_counted():
    plan = Plan(**PLAN)
    assert [plan.steps(n) for n in (1, 4, 64)] == [300, 75, 3]
    # A ring of four: three parts of four are sent while summing, three while handing out the sums.
    assert plan.moved(4) == 2 * 3 / 4 * 4e6 and plan.moved(1) == 0
    assert plan.moved(4, bytes_each=2) == plan.moved(4) / 2
    assert plan.communication(1) == 0 and plan.communication(2) is None
    assert plan.seconds(1, hidden=True) is None and plan.slowest(1) is None


def test_what_is_computed_from_rates():
    plan = Plan(**PLAN, step=0.1, inside=1e8, between=1e7, decode=50, cores=2, gpus_per_machine=4)
    assert plan.communication(4) == pytest.approx(6e6 / 1e8)
    assert plan.communication(8) == pytest.approx(2 * 7 / 8 * 4e6 / 1e7)
    assert plan.input_step() == pytest.approx(10 / 100)
    assert plan.seconds(4, hidden=True) == pytest.approx(75 * 0.1)
    assert plan.seconds(4, hidden=False) == pytest.approx(75 * 0.16)
    assert plan.slowest(8) == "communication"
    slow_input = Plan(**PLAN, step=0.1, inside=1e8, between=1e8, decode=25, cores=2)
    assert slow_input.slowest(4) == "input"
    assert slow_input.seconds(4, hidden=True) == pytest.approx(75 * 0.2)
    row = slow_input.row(4)
    assert (row["images/s"], row["cores to decode"], row["batch"]) == ("400", "16.0", 40)


def test_resnet50_is_the_published_one_and_its_steps():
    parameters, steps = gradient_size("resnet50", 2)
    assert steps == 2 * 54 and parameters == 25_557_032 + steps


def test_command(tmp_path, capsys):
    main(["--network", "cifar-resnet20", "--gpus", "1", "8", "--csv", str(tmp_path / "counted.csv")])
    with (tmp_path / "counted.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["batch"] for row in rows] == ["32", "256"]
    assert rows[1]["steps"] == f"{IMAGENET_IMAGES // 256 * 90:,}"
    assert "hours, hidden" not in rows[0]  # no step time was given, and none is made up
    step = tmp_path / "step.csv"
    step.write_text('step,median ms,subject\ncompiled lsq,40,"resnet50, batch 64, 224x224"\n')
    assert step_from_csv(step, "compiled lsq", None) == (0.04, 64)
    with pytest.raises(SystemExit, match="no row 'eager lsq'; there are compiled lsq"):
        step_from_csv(step, "eager lsq", None)
    main(
        [
            "--network",
            "cifar-resnet20",
            "--gpus",
            "1",
            "--step-csv",
            str(step),
            "--measure-decode",
            "--decode-images",
            "4",
        ]
    )
    printed = capsys.readouterr().out
    assert "measured: " in printed and "cores to decode" in printed and "hours, hidden" in printed
