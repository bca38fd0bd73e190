"""Accuracy against size, of the networks that come with lowbit: README's picture, from recorded results alone.

    python -m campaigns.accuracy.picture

A point is an integer network: the bytes of its file, and its top-1 on the 10,000 test images. The hollow point is the network in full
precision that it was trained from: 4 bytes for each parameter.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

from campaigns.accuracy.results import FOLDER, Line, read
from campaigns.accuracy.tables import initialization_resnet20
from lowbit.models import SHIPPED, create
from lowbit.models.trained import path_of

PICTURE = FOLDER.parent / "accuracy-size.png"
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


def draw(networks: dict[str, list[tuple[str, float, float]]]) -> Figure:
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


def main() -> int:
    draw(points(read(FOLDER))).savefig(PICTURE, dpi=150)
    print(PICTURE.relative_to(Path.cwd()) if PICTURE.is_relative_to(Path.cwd()) else PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
