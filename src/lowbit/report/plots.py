"""Loss, accuracy and steps over epochs, and the frontier of bits within budgets, as files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.files import atomic_write
from lowbit.report.run import Run, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_TRAIN, _TEST, _FINAL = "#888888", "#1f5fa8", "#c2571a"
_NAMED_STEPS = 3  # forty names would cover a panel
_LINEAR_BELOW = 1.6  # a ratio of largest to smallest where a logarithmic axis would have hardly a tick


def plot_run(path: str | os.PathLike) -> list[Path]:
    """Write `loss.png`, `accuracy.png` and `steps.png` of a run under `<run>/plots`; return their paths.

    steps.png has each quantizer's mean step relative to its start (or to the first epoch, where the log has no start),
    weights and activations apart, coloured by the layer's place in the network; the steps that moved most are named.
    A run without quantizers has no steps.png, one whose task has no accuracy no accuracy.png; one without a finished
    epoch has no plots.

    Raises:
        LowbitError: no run is there; see `read_run`.
    """
    run = read_run(path)
    if not run.epochs:
        return []
    folder = run.path / "plots"
    folder.mkdir(exist_ok=True)
    figures = {"loss.png": _curves(run, "loss", "loss")}
    if any("train_accuracy" in epoch for epoch in run.epochs):
        figures["accuracy.png"] = _curves(run, "accuracy", "accuracy (%)")
    if any(epoch.get("steps") for epoch in run.epochs):
        figures["steps.png"] = _steps(run)
    for name, figure in figures.items():
        with atomic_write(folder / name) as temporary:
            figure.savefig(temporary, dpi=120)
    return [folder / name for name in figures]


def plot_frontier(points: Sequence[tuple[float, float, int | None]], cost: str, path: str | os.PathLike) -> None:
    """Draw what choices of bits are expected to lose against what they cost, in a file of the type that its name says.

    Args:
        points: of each choice (cost, expected loss, the width where all layers have the same). The best are joined,
            the uniform ones stand beside them.
        cost: what the first numbers are, with their unit.
        path: such as frontier.png or frontier.svg.
    """
    figure, (ax,) = _axes(1, 7, cost)
    best = sorted((x, loss) for x, loss, width in points if width is None)
    ax.plot([x for x, _ in best], [loss for _, loss in best], color=_TEST, marker=".", label="chosen bits")
    same = sorted((x, loss, width) for x, loss, width in points if width is not None)
    if same:
        ax.plot(
            [x for x, *_ in same], [loss for _, loss, _ in same], "D", color=_FINAL, markersize=5, label="uniform bits"
        )
    for x, loss, width in same:
        ax.annotate(f" {width}", (x, loss), fontsize=9, va="bottom")
    if all(loss > 0 for _, loss, _ in points):
        ax.set_yscale("log")
    ax.set_ylabel("expected loss a sample")
    ax.legend(frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format=Path(path).suffix.lstrip(".") or "png")


def _figure(run: Run, panels: int, width: float) -> tuple[Figure, Sequence[Axes]]:
    figure, axes = _axes(panels, width, "epoch")
    figure.suptitle(run.path.resolve().name, fontsize=11)
    for ax in axes:
        if len(run.epochs) == 1:
            ax.set_xlim(0, 2)
        ax.locator_params(axis="x", integer=True)
    return figure, axes


def _axes(panels: int, width: float, along: str) -> tuple[Figure, Sequence[Axes]]:
    # A Figure of its own, without pyplot: no global state, no window, nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for ax in axes:
        ax.set_xlabel(along)
        ax.set_axisbelow(True)
        ax.grid(color="#e4e4e4", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curves(run: Run, quantity: str, label: str) -> Figure:
    figure, (ax,) = _figure(run, 1, 7)
    for split, colour in (("train", _TRAIN), ("validation", _TEST), ("test", _TEST)):
        values = [(epoch["epoch"] + 1, epoch.get(f"{split}_{quantity}")) for epoch in run.epochs]
        values = [(x, y) for x, y in values if y is not None]
        if values:
            _line(ax, values, color=colour, label=f"{split}, last {values[-1][1]:.{_digits(quantity)}f}")
    final = None if run.final is None else run.final.get(f"test_{quantity}")
    if final is not None:
        text = f"test, at the end {final:.{_digits(quantity)}f}"
        ax.plot(run.epochs[-1]["epoch"] + 1, final, "D", color=_FINAL, markersize=5, label=text)
    ax.set_ylabel(label)
    if ax.lines:
        ax.legend(frameon=False)
    return figure


def _steps(run: Run) -> Figure:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    # Without the map's yellow end, which is hard to see on white.
    colours = ListedColormap([colormaps["viridis"](place) for place in range(216)])
    figure, axes = _figure(run, 2, 12)
    names = list(dict.fromkeys(name for epoch in run.epochs for name in epoch.get("steps") or {}))
    weights = [name for name in names if name.endswith("weight_quantizer")]
    activations = [name for name in names if name not in set(weights)]
    for ax, title, members in zip(axes, ("weights", "activations"), (weights, activations)):
        ax.set_title(f"{title}: {len(members)} steps", fontsize=10)
        ax.set_ylabel("step / initial step")
        _relative_steps(ax, run, members, colours)
    if len(names) > 2:
        bar = figure.colorbar(ScalarMappable(cmap=colours), ax=list(axes), ticks=[0, 1], aspect=40, pad=0.01)
        bar.ax.set_yticklabels(["first\nlayer", "last\nlayer"], fontsize=8)
        bar.outline.set_visible(False)
    return figure


def _relative_steps(ax: Axes, run: Run, names: list[str], colours: Colormap) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    lines, shown = [], []
    for place, name in enumerate(names):
        values = [(epoch["epoch"] + 1, (epoch.get("steps") or {}).get(name)) for epoch in run.epochs]
        values = [(0, run.start_steps.get(name)), *values]
        values = [(x, y) for x, y in values if y]  # neither None nor zero: both are no start to be relative to
        if not values:
            continue
        start = values[0][1]
        ratios = [y / start for _, y in values]
        colour = colours(place / max(len(names) - 1, 1))
        _line(ax, [(x, ratio) for (x, _), ratio in zip(values, ratios)], color=colour, linewidth=1.1, alpha=0.85)
        lines.append((abs(math.log(abs(ratios[-1]))), name, ratios[-1], ax.lines[-1]))
        shown += ratios
    if not lines:
        ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center", va="center", color="#888888")
        return
    low, high = min(*shown, 0.99) / 1.01, max(*shown, 1.01) * 1.01
    ax.set_ylim(low, high)
    if high / low > _LINEAR_BELOW:
        ax.set_yscale("log")
        ax.set_ylim(low, high)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low > 6 else (1, 1.5, 2, 3, 5, 7), numticks=12))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    lines.sort(key=lambda line: -line[0])
    ax.legend(
        [line for *_, line in lines[:_NAMED_STEPS]],
        [f"{name.rpartition('.')[0]}  x{ratio:.2f}" for _, name, ratio, _ in lines[:_NAMED_STEPS]],
        title="moved most", title_fontsize=8, fontsize=8, frameon=False, ncols=_NAMED_STEPS,
        loc="upper center", bbox_to_anchor=(0.5, -0.14),
    )  # fmt: skip


def _line(ax: Axes, values: list[tuple[int, float]], **style: Any) -> None:
    # Few points need marks: a single one would not show at all.
    ax.plot(*zip(*values), marker="o" if len(values) <= 30 else None, markersize=3, **style)


def _digits(quantity: str) -> int:
    return 4 if quantity == "loss" else 2
