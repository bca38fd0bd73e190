"""The benchmarks at minuscule size: what they count is right, what they write can be read. No test looks at a time."""

from __future__ import annotations

import math
import subprocess

import numpy as np
import pytest
import torch
from benchmarks.command import build_parser, main
from benchmarks.peer_quantizers import PEERS, Alone
from benchmarks.result import Bars, Lines, Table, plot
from benchmarks.saved import held_bytes
from benchmarks.workload import FULL_PRECISION, TrainingStep, compiled_alone
from torch import nn

import lowbit
from benchmarks import gradients, harness, operators, page, peers, scaling
from lowbit.saved import saved_bytes


def read(folder, name):
    return harness.read_csv(folder / f"{name}.csv")


# What a two-layer network keeps, worked out: 1000 samples; the hidden layer 128 wide, in place; tanh's output; the result squared.
HIDDEN, TANH, OUT = 1000 * 128 * 4, 1000 * 32 * 4, 1000 * 4


@pytest.fixture
def small():
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(inplace=True), nn.Linear(128, 32), nn.Tanh(), nn.Linear(32, 1))
    x = torch.randn(1000, 64)
    return net, x, lambda: net(x).square().sum()


def test_saved_bytes_are_the_closed_form(small):
    net, x, forward = small
    assert saved_bytes(forward, [x, *net.parameters()]) == HIDDEN + TANH + OUT
    # The first weight is not kept: x needs no gradient.
    given = x.numel() + net[2].weight.numel() + net[4].weight.numel()
    assert saved_bytes(forward, []) == HIDDEN + TANH + OUT + 4 * given


def test_saved_bytes_of_a_compiled_function(small, compiler):
    net, x, forward = small
    compiled = compiled_alone(forward)
    compiled().backward()
    assert saved_bytes(compiled, [x, *net.parameters()]) == HIDDEN + TANH + OUT
    assert held_bytes(compiled, "cpu")[0] == HIDDEN + TANH + OUT + 4


def test_a_storage_counts_once_and_whole():
    x = torch.randn(100, 10, requires_grad=True)

    def forward():
        y = x * 1.0  # saves nothing of size: the factor is a number
        half = y[:50]
        return (half * half).sum() + y.exp_().sum()  # the view and the whole are one storage, changed in place

    with pytest.raises(RuntimeError, match="inplace"):
        forward().backward()  # what was saved was changed: no such network trains, but the count stands
    assert saved_bytes(forward, [x]) == 4 * x.numel()


def test_what_is_freed_before_the_end_does_not_count():
    x = torch.randn(1000, requires_grad=True)

    def forward():
        x.exp().sum()  # its graph dies at once
        return x.sum()

    assert saved_bytes(forward, [x]) == 0


def test_the_allocator_agrees_and_sees_the_peak(small):
    net, _, forward = small
    forward().backward()
    net.zero_grad(set_to_none=True)
    held, peak = held_bytes(forward, "cpu")
    assert held == HIDDEN + TANH + OUT + 4  # and the loss
    # At the hidden layer: its output, the gradient there before and behind the ReLU; of the later layers their gradients.
    parameters = 4 * sum(p.numel() for p in net.parameters())
    assert 3 * HIDDEN <= peak <= 3 * HIDDEN + TANH + OUT + parameters


def test_the_allocator_sees_what_is_hidden_from_autograd():
    class Hides(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.kept = x.square()
            return x.sum()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.kept

    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: Hides.apply(x), [x]) == 0
    assert held_bytes(lambda: Hides.apply(x), "cpu")[0] == 4000 + 4


def test_ratios_are_of_neighbours():
    fast, slow = harness.Timing((1.0, 10.0, 2.0)), harness.Timing((2.0, 20.0, 4.0))
    assert slow.ratio_to(fast) == (2.0, 2.0, 2.0)
    assert slow.columns(fast)["median ms"] == "4000"


def test_contestants_take_turns():
    order = []
    times = harness.interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repetitions=3, warmup=1
    )
    assert "".join(order) == "ab" + "ababab"
    assert [len(timing.seconds) for timing in times.values()] == [3, 3]


def test_seconds_are_the_clocks():
    now = [0.0]

    def run():
        now[0] += 2.0

    times = harness.interleave({"a": run}, repetitions=2, clock=lambda: now[0])
    assert times["a"].seconds == (2.0, 2.0)


def test_step_and_memory(tmp_path):
    arguments = [
        "--networks",
        "resnet8",
        "--batch",
        "2",
        "--modes",
        "eager",
        "--methods",
        "lsq",
        "--output",
        str(tmp_path),
    ]
    main(["step", *arguments, "--repetitions", "2"])
    main(["memory", *arguments])
    rows = read(tmp_path, "step-resnet8-cpu")
    assert [row["step"] for row in rows] == ["eager full precision", "eager lsq"]
    assert rows[0]["ratio"] == "1.000" and float(rows[1]["lower quartile"]) <= float(rows[1]["upper quartile"])
    assert rows[0]["command"].endswith("--methods lsq --repetitions 2") and "torch" in rows[0]["machine"]
    base, low = read(tmp_path, "memory-resnet8-cpu")
    assert float(base["held MB"]) == pytest.approx(float(base["saved MB"]), rel=0.05)
    assert float(low["held MB"]) == pytest.approx(float(low["saved MB"]), rel=0.05)
    assert float(low["ratio"]) == pytest.approx(float(low["saved MB"]) / float(base["saved MB"]), rel=0.01)
    assert (tmp_path / "step-resnet8-cpu.png").stat().st_size > 1000


def test_a_step_trains_and_leaves_what_was_given():
    x = torch.randn(4, 3, 8, 8)
    model = scaling.chain(4, layers=1)
    one = TrainingStep(model, x, compiled=False)
    before = [p.detach().clone() for p in model.parameters()]
    one()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()) if b.dim() > 1)
    assert {id(t) for t in one.given()} >= {id(x), *map(id, model.parameters())}


def test_quantizer_alone_has_every_method_and_granularity(tmp_path):
    main(
        [
            "quantizer",
            "--shape",
            "2",
            "3",
            "4",
            "4",
            "--modes",
            "eager",
            "--repetitions",
            "2",
            "--output",
            str(tmp_path),
        ]
    )
    names = [row["quantizer"] for row in read(tmp_path, "quantizer-cpu")]
    assert names[:2] == ["floor", "floor, in place"]
    assert names[2:] == [f"eager {m}, {g}" for g in ("tensor", "channel") for m in lowbit.METHODS]


def test_fits():
    x = [1.0, 2.0, 4.0, 8.0]
    assert scaling.fit(x, [3 * v for v in x]) == pytest.approx((1.0, 1.0))
    r2, exponent = scaling.fit(x, [v**2 for v in x])
    assert exponent == pytest.approx(2.0) and r2 < 0.99
    assert math.isnan(scaling.fit([0.0, 1.0], [-1.0, 1.0])[1])  # one positive point has no slope


def test_growth_and_the_chain(monkeypatch):
    monkeypatch.setattr(scaling, "axes", lambda quick: {"quantized layers": [0, 2], "batch": [1, 2]})
    monkeypatch.setattr(scaling, "images", lambda batch, *_: torch.randn(min(batch, 2), 3, 8, 8))
    options = build_parser().parse_args(["scaling", "--quick", "--repetitions", "1"])
    points, fits = scaling.growth(options, "eager")
    assert [p["value"] for p in points] == ["0", "2", "0", "2", "1", "2", "1", "2"]
    assert [f["step time"] for f in fits] == [
        *(f"eager {series} against quantized layers" for series in ("lsq", "added")),
        *(f"eager {series} against batch" for series in (FULL_PRECISION, "lsq", "added")),
    ]
    low = scaling.prepared(scaling.chain(4), torch.randn(2, 3, 8, 8), options, quantized=3)
    weights = [name for name, _ in lowbit.quantizers(low) if name.endswith("weight_quantizer")]
    assert len(weights) == 3 + 2  # and the first and the last layer


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_inference(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    options = ["--networks", "resnet8", "--widths", "W4A4", "W8A8", "--repetitions", "2", "--output", str(tmp_path)]
    main(["inference", *options])
    rows = read(tmp_path, "inference-resnet8")
    kinds = ("float32", "W4A4", "W4A4 packed", "W8A8")
    assert [row["contestant"] for row in rows][1:] == [f"ONNX Runtime {kind}" for kind in kinds]
    assert float(rows[3]["file kB"]) < float(rows[2]["file kB"]) < float(rows[1]["file kB"])
    found = {row["operator"]: row for row in read(tmp_path, "operators-resnet8")}
    assert found["Conv"]["W4A4 ms"] == found["QLinearConv"]["float32 ms"] == "0.00"
    assert float(found["QLinearConv"]["W4A4 ms"]) > 0 < float(found["Conv"]["float32 ms"])
    with pytest.raises(SystemExit):
        main(["inference", "--widths", "4"])


def test_operators_are_sorted_and_small_ones_are_one_row():
    rows = operators.rows({"one": {"A": 1.0, "B": 98.5, "C": 0.5}, "two": {"A": 50.0, "C": 0.2, "D": 0.1}})
    assert [list(row.values()) for row in rows] == [
        ["A", "1.00", "50.00"], ["B", "98.50", "0.00"], ["others", "0.50", "0.30"], ["all", "100.00", "50.30"]
    ]  # fmt: skip


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("offset", [False, True])
def test_our_gradients_are_the_papers(channel, offset):
    found = gradients.verdicts(PEERS["lowbit"].alone, channel=channel, offset=offset)
    assert found == {"value": "equal", "x": "equal", "step": "equal", "offset": "equal" if offset else "-"}


def test_a_wrong_gradient_is_found():
    def wrong(grid, step, offset):
        right = PEERS["lowbit"].alone(grid, step, offset)
        return Alone(right.forward, right.parameters, lambda found: (1.01 * found[0], None))

    def no_g(grid, step, offset):
        right = PEERS["lowbit"].alone(grid, step, offset)
        g = gradients.lsq_scale(gradients.ROWS * gradients.COLUMNS, grid.qp)
        return Alone(right.forward, right.parameters, lambda found: (found[0] / g, None))

    assert gradients.verdicts(wrong, channel=True, offset=False)["step"] == "differs"
    assert gradients.verdicts(no_g, channel=False, offset=False)["step"] == "equal, without g"
    # torch's operator looks at the code, and the code half a step outside is still the last one.
    torchs = gradients.verdicts(PEERS["torch's learnable operator"].alone, channel=False, offset=False)
    assert torchs["value"] == "equal" and torchs["x"] == "differs half a step outside, at the ends"


def test_peers_that_torch_alone_can_run_and_one_that_is_not_there(monkeypatch):
    there = ["lowbit", "lsq-net's formulation", "torch's learnable operator"]
    absent = "torchao, LearnableFakeQuantize"
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization.pt2e", None)
    arguments = ["peers", "--network", "resnet8", "--batch", "2", "--modes", "eager", "--repetitions", "1"]
    options = build_parser().parse_args([*arguments, "--only", *there, absent])
    rows = {row["step"]: row for row in peers.steps_table(options).rows}
    assert list(rows) == [f"eager {name}" for name in (FULL_PRECISION, *there, absent)]
    assert all(float(rows[f"eager {name}"]["saved ratio"]) > 0.1 for name in there)
    assert rows[f"eager {absent}"]["ratio"] == "-" and "Error" in rows[f"eager {absent}"]["note"]


def test_the_published_formulation_starts_where_ours_does():
    x = torch.randn(2, 3, 32, 32)
    options = build_parser().parse_args(["peers", "--network", "resnet8"])
    made = peers.contestants(options, x)
    ours, published = made["lowbit"]().train(), made["lsq-net's formulation"]().train()
    torch.testing.assert_close(ours(x), published(x))


def test_without_a_gpu_there_is_a_clear_message(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("step", "memory", "quantizer", "all"):
        with pytest.raises(SystemExit) as stopped:
            main([name, "--gpu"])
        assert stopped.value.code == 2
        assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(tmp_path):
    small = [
        "--gpu",
        "--networks",
        "resnet18",
        "--batch",
        "4",
        "--size",
        "32",
        "--methods",
        "lsq",
        "--output",
        str(tmp_path),
    ]
    main(["step", *small, "--repetitions", "2"])
    main(["memory", *small])
    main(["quantizer", "--gpu", "--shape", "4", "8", "8", "8", "--repetitions", "2", "--methods", "lsq", "lsq+", "--dtype", "bfloat16", "--output", str(tmp_path)])  # fmt: skip
    assert len(read(tmp_path, "step-resnet18-cuda")) == len(read(tmp_path, "memory-resnet18-cuda")) == 4
    assert len(read(tmp_path, "quantizer-cuda-bfloat16")) == 2 + 8


def test_all_runs_each_in_a_process_of_its_own_and_reports_failures(monkeypatch, tmp_path, capsys):
    asked = []

    def run(command, check):
        asked.append(command[3:])
        return subprocess.CompletedProcess(command, 1 if "memory" in command else 0)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit) as stopped:
        main(["all", "--quick", "--output", str(tmp_path)])
    assert stopped.value.code == 1 and "failed: memory" in capsys.readouterr().err
    assert [command[0] for command in asked] == ["step", "memory", "quantizer", "scaling", "inference", "watch"]
    assert all(command[1:] == ["--output", str(tmp_path), "--quick"] for command in asked)


def test_plots(tmp_path):
    bars = [{"a": "one", "v": "1.5", "l": "1.4", "h": "1.6"}, {"a": "none", "v": "-", "l": "-", "h": "-"}]
    plot(Table("bars", "s", "m", bars, Bars("v", "l", "h")), tmp_path / "bars.png")
    points = [{"q": q, "x": str(x), "s": "lsq", "y": str(x)} for q in ("depth", "width") for x in (1, 2)]
    plot(Table("lines", "s", "m", points, Lines("x", "y", "s", "q")), tmp_path / "lines.png")
    assert {path.name for path in tmp_path.iterdir()} == {"bars.png", "lines.png"}


def test_the_page_shows_the_results(tmp_path):
    Table("one", "Subject", "Machine", [{"name": "a|b", "ratio": "1.5"}]).write(tmp_path, "python -m benchmarks step")
    text = "before\n<!-- table one -->\nold\n<!-- end -->\nmiddle\n<!-- table none -->\n<!-- end -->\nafter\n"
    once = page.render(text, tmp_path)
    assert "| name | ratio |\n| --- | --: |\n| a\\|b | 1.5 |\n" in once
    assert "Subject. Machine." in once and "    python -m benchmarks step\n" in once and "old" not in once
    assert "<!-- table none -->\nNot measured yet.\n<!-- end -->" in once
    assert once.startswith("before\n") and once.endswith("after\n")
    assert page.render(once, tmp_path) == once


def test_the_committed_page_is_that_of_the_committed_results():
    assert page.PAGE.read_text() == page.render(page.PAGE.read_text())


def test_positions_are_of_their_kind():
    grid = lowbit.Grid(3, signed=True)
    rng = np.random.default_rng(1)
    inside, near, far, ends = (gradients.positions(kind, grid, rng) for kind in gradients.KINDS)
    assert ((inside > grid.qn) & (inside < grid.qp)).all()
    assert (((near < grid.qn) | (near > grid.qp)) & (np.clip(np.round(near), grid.qn, grid.qp) == np.round(near))).all()
    assert ((np.round(far) < grid.qn) | (np.round(far) > grid.qp)).all()
    assert set(np.unique(ends)) == {grid.qn, grid.qp}


def test_watch(tmp_path):
    main(["watch", "--quick", "--networks", "digits-cnn", "--output", str(tmp_path)])
    (row,) = read(tmp_path, "watch-cpu")
    assert float(row["look ms"]) > 0
    assert float(row["share of training, %"]) == pytest.approx(
        100 * float(row["look ms"]) / (50 * float(row["step ms"])), rel=0.02
    )
