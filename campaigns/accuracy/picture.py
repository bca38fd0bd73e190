"""The pictures of README and of the page of accuracy, from recorded results and the networks that ship alone.

    python -m campaigns.accuracy.picture

accuracy-size    Accuracy against size. A point is an integer network: the bytes of its file, and its top-1 on the 10,000 test images. The
                 hollow point is the network in full precision that it was trained from: 4 bytes for each parameter.
accuracy-bits    Accuracy against bits, of some rows of table "methods": means over seeds, with their standard deviations.
accuracy-steps   Steps of activations before and after training, by layer, for three ways to begin and to learn.
accuracy-codes   How often each code occurs among the weights of the networks that ship.
"""

from __future__ import annotations

import statistics
import sys

import torch
from matplotlib.figure import Figure

from campaigns.accuracy.report import FULL_PRECISION
from campaigns.accuracy.results import FOLDER, ROOT, Line, read
from campaigns.accuracy.tables import initialization_resnet20
from lowbit.grid import Grid
from lowbit.models import SHIPPED, create, load
from lowbit.models.trained import path_of

COLORS = ("#1f5fa8", "#c2571a", "#3d8a4e")
LABELS = {"resnet8": "ResNet-8", "cifar-resnet20": "ResNet-20"}


def points(done: dict[str, Line]) -> dict[str, list[tuple[str, float, float]]]:
    """For each network (label, kilobytes, top-1 in percent) of its integer networks, the smallest first, and last in full precision."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    full: dict[str, tuple[str, float, float]] = {}
    for name, shipped in SHIPPED.items():
        line = done[shipped.cell]
        network, start = line["network"], line["start"]["cell"]
        label = f"W{line['bits']}A{line['bits']}"
        found.setdefault(network, []).append((label, path_of(name).stat().st_size / 1000, shipped.test))
        parameters = sum(parameter.numel() for parameter in create(network, num_classes=10).parameters())
        test = initialization_resnet20.FULL_PRECISION if start is None else done[start]["test"]
        full[network] = ("float32", 4 * parameters / 1000, test)
    return {network: [*sorted(each, key=lambda point: point[1]), full[network]] for network, each in found.items()}


def draw_size(networks: dict[str, list[tuple[str, float, float]]]) -> Figure:
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for color, (network, each) in zip(COLORS, networks.items()):
        *low, full = each
        axes.plot([x for _, x, _ in each], [y for _, _, y in each], ":", color=color, linewidth=1)
        axes.plot(
            [x for _, x, _ in low], [y for _, _, y in low], "o-", color=color, label=f"{LABELS[network]}, integers only"
        )
        axes.plot(
            full[1], full[2], "o", color=color, markerfacecolor="white", label=f"{LABELS[network]}, full precision"
        )
        for label, x, y in each:
            axes.annotate(label, (x, y), textcoords="offset points", xytext=(6, -11), fontsize=8, color=color)
    axes.set_xscale("log")
    axes.margins(x=0.14, y=0.14)
    axes.set_xlabel("size, kB")
    axes.set_ylabel("top-1 on CIFAR-10 stored as JPEG, %")
    ticks = [tick for tick in (20, 30, 50, 100, 200, 300, 500, 1000) if axes.get_xlim()[0] < tick < axes.get_xlim()[1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def draw_bits(done: dict[str, Line], network: str = "resnet8") -> Figure:
    """Accuracy against bits: a line for each row that has several widths, and full precision trained as long."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    groups: dict[str, dict[int, list[float]]] = {}
    for line in done.values():
        if (line["table"], line["network"]) == ("methods", network) and line["test"] is not None:
            groups.setdefault(line["row"], {}).setdefault(line["bits"] or 0, []).append(line["test"])
    full = groups.pop(FULL_PRECISION)[0]
    axes.axhspan(min(full) - 0.05, max(full) + 0.05, color="black", alpha=0.2, label="full precision")
    several = {row: widths for row, widths in groups.items() if len(widths) > 1}
    for number, (row, widths) in enumerate(several.items()):
        shift = 0.04 * (number - (len(several) - 1) / 2)
        bits = sorted(widths)
        axes.errorbar(
            [each + shift for each in bits],
            [statistics.mean(widths[each]) for each in bits],
            [statistics.stdev(widths[each]) if len(widths[each]) > 1 else 0 for each in bits],
            fmt="o-", markersize=4, linewidth=1, capsize=2, label=row,
        )  # fmt: skip
    axes.set_xticks([2, 3, 4], ["W2A2", "W3A3", "W4A4"])
    axes.set_ylabel(f"top-1, {LABELS[network]}, %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def draw_steps(done: dict[str, Line]) -> Figure:
    """Steps of activations at the start and at the end of table "init20"'s runs at W2A2, by layer."""
    lines = [line for line in done.values() if (line["table"], line["bits"], line["seed"]) == ("init20", 2, 0)]
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    for axes, line in zip(figure.subplots(1, len(lines), sharey=True, squeeze=False)[0], lines):
        steps = [each for name, each in line["steps"].items() if name.endswith("input_quantizer")]
        for layer, (start, end) in enumerate(steps, 1):
            axes.plot([layer, layer], [start, end], color="gray", linewidth=1)
        axes.plot(range(1, len(steps) + 1), [start for start, _ in steps], "o", markersize=4, label="start",
                  color=COLORS[0], markerfacecolor="white")  # fmt: skip
        axes.plot(range(1, len(steps) + 1), [end for _, end in steps], "o", markersize=4, label="end", color=COLORS[1])
        axes.set_yscale("log")
        axes.set_title(f"{line['row']}: {line['test']:.2f} %", fontsize=9)
        axes.set_xlabel("layer")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("step of the layer's input")
    return figure


def draw_codes() -> Figure:
    """The share of each code among the weights of the networks that ship, without those of the first and the last layer."""
    networks = sorted({name.rpartition("-")[0] for name in SHIPPED})
    widths = sorted({name.rpartition("-")[2] for name in SHIPPED})
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    for row, network in zip(figure.subplots(len(networks), len(widths), squeeze=False), networks):
        for axes, width in zip(row, widths):
            graph = load(f"{network}-{width}").graph
            weights = [node.weight for node in graph.nodes if hasattr(node, "weight") and node.weight.bits < 8]
            codes = torch.cat([weight.codes.flatten().long() for weight in weights])
            grid = Grid(weights[0].bits, signed=True)
            levels = range(grid.qn, grid.qp + 1)
            counts = torch.bincount(codes - grid.qn, minlength=len(levels))
            axes.bar(levels, (100 * counts / len(codes)).tolist(), color=COLORS[0])
            axes.set_title(f"{network.partition('-')[0]}, {width}", fontsize=9)
            axes.tick_params(labelsize=8)
        row[0].set_ylabel("% of weights", fontsize=9)
    return figure


def main() -> int:
    done = read(FOLDER)
    pictures = {
        "size": draw_size(points(done)), "bits": draw_bits(done), "steps": draw_steps(done), "codes": draw_codes(),
    }  # fmt: skip
    for name, figure in pictures.items():
        file = FOLDER.parent / f"accuracy-{name}.png"
        figure.savefig(file, dpi=150)
        print(file.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
