"""The plots of a report, made of logs and diagnoses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lowbit.report import svg
from lowbit.report.html import figure
from lowbit.report.run import Run
from lowbit.report.subject import Subject

_COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6")


def plots(subject: Subject) -> str:
    """All plots of one subject."""
    drawn = []
    if subject.run is not None:
        drawn.append(figure(_own_curves(subject.run, "accuracy"), "Accuracy", "in percent, over epochs"))
        drawn.append(figure(_own_curves(subject.run, "loss"), "Loss", "over epochs"))
        bounds = "over training, on a logarithmic scale; a step is bounded at 1/1024 and 1024 times its start"
        for side, ending in (("weights", True), ("activations", False)):
            drawn.append(figure(_steps(subject.run, ending), f"Steps of {side} over their start", bounds))
    if subject.diagnosis is not None:
        drawn.append(
            figure(
                depth([subject]),
                "Error along the network",
                "in the order of forward: signal-to-noise ratio, more is better",
                wide=True,
            )
        )
        drawn.append(
            figure(
                _sizes(subject.diagnosis),
                "Bits and bytes per layer",
                "of the weights, in the order of forward",
                wide=True,
            )
        )
    return f'<h2>Plots</h2><div class="plots">{"".join(drawn)}</div>' if any(drawn) else ""


def _own_curves(run: Run, quantity: str) -> str:
    series = []
    for (split, name), colour in zip(
        (("train", "training"), ("validation", "validation"), ("test", "test")), ("c2", "c3", "c1")
    ):
        points = [(epoch["epoch"] + 1, epoch.get(f"{split}_{quantity}")) for epoch in run.epochs]
        series.append(svg.Series(name, [(x, y) for x, y in points if y is not None], colour))
    return svg.lines(
        series, f"{quantity} over epochs", x_label="epoch", y_label="percent" if quantity == "accuracy" else "loss"
    )


def curves(subjects: Sequence[Subject], quantity: str) -> str:
    """Accuracy or loss of several runs over epochs, on the images that checkpoints are chosen by."""
    series = []
    for subject, colour in zip(subjects, _cycled(len(subjects))):
        run = subject.run
        assert run is not None
        points = []
        for epoch in run.epochs:
            chosen = epoch.get(f"validation_{quantity}", epoch.get(f"test_{quantity}"))
            points += [] if chosen is None else [(epoch["epoch"] + 1, chosen)]
        series.append(svg.Series(subject.name, points, colour))
    return svg.lines(
        series, f"{quantity} over epochs", x_label="epoch", y_label="percent" if quantity == "accuracy" else "loss"
    )


def _cycled(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _steps(run: Run, weights: bool) -> str:
    """Every step over its start; the three that have moved most are named."""
    found: dict[str, list[tuple[float, float]]] = {}
    for look in run.looks:
        for name, numbers in look["quantizers"].items():
            if numbers.get("moved") and name.endswith("weight_quantizer") == weights:
                found.setdefault(name, []).append((look["step"], numbers["moved"]))
    at = "step of the optimizer"
    if not found or max(map(len, found.values())) < 2:
        found, at = {}, "epoch"
        for epoch in run.epochs:
            for name, step in (epoch.get("steps") or {}).items():
                start = run.start_steps.get(name)
                if step and start and name.endswith("weight_quantizer") == weights:
                    found.setdefault(name, [(0, 1.0)]).append((epoch["epoch"] + 1, step / start))
    order = sorted(found, key=lambda name: -abs(math.log(found[name][-1][1])))
    named = dict(zip(order[:3], _COLOURS))
    series = [svg.Series(_layer(name), found[name], named.get(name, "faint")) for name in [*order[3:], *order[:3]]]
    return svg.lines(series, "steps over training", x_label=at, y_label="step / start", log=True)


def _layer(quantizer: str) -> str:
    layer, _, attribute = quantizer.rpartition(".")
    return layer if attribute in ("weight_quantizer", "input_quantizer") else quantizer.removesuffix("_quantizer")


def depth(subjects: Sequence[Subject]) -> str:
    """Signal-to-noise ratios along the network; of several subjects, of the layers' outputs alone."""
    series, names = [], []
    several = len(subjects) > 1
    for subject, colour in zip(subjects, _cycled(len(subjects))):
        layers = [each for each in (subject.diagnosis or {}).get("layers", ()) if each["accumulated"] is not None]
        names = names or [each["name"] for each in layers]
        points = [(i, each["accumulated"]) for i, each in enumerate(layers)]
        series.append(
            svg.Series(subject.name if several else "all quantizers on, at the layer's output", points, colour)
        )
        if not several:
            alone = [(i, each["alone"]) for i, each in enumerate(layers) if each["alone"] is not None]
            series.append(svg.Series("this layer alone quantized, at the network's output", alone, "c2"))
    return svg.lines(
        series,
        "error along the network",
        x_label="",
        y_label="dB",
        wide=True,
        names=names,
    )


def _sizes(diagnosis: dict[str, Any]) -> str:
    layers = [each for each in diagnosis["layers"] if each["parameters"]]
    widths = sorted({each["weight_bits"] or 32 for each in layers})
    colour = dict(zip(widths, _cycled(len(widths))))
    values = [
        (
            each["name"],
            each["size_bits"] / 8,
            colour[each["weight_bits"] or 32],
        )
        for each in layers
    ]
    legend = [(f"{bits} bits", colour[bits]) for bits in widths]
    return svg.bars(values, "bits and bytes per layer", x_label="", y_label="bytes", legend=legend)


def histograms(diagnosis: dict[str, Any]) -> str:
    """Values before quantization and codes after it, of every tensor."""
    groups = {True: [], False: []}
    for each in diagnosis["tensors"]:
        name = each["layer"] if each["tensor"] == "value" else f"{each['layer']} {each['tensor']}"
        drawn = svg.histogram(
            each["values"],
            each["values_low"],
            each["values_high"],
            each["code_counts"],
            each["qn"],
            f"values and codes of {name}",
        )
        clipped = 100 * (each["clipped_low"] + each["clipped_high"])
        text = f"{each['bits']} bits, {each['sqnr']:.1f} dB, {clipped:.2g} % clipped"
        groups[each["is_weight"]].append(figure(drawn, name, text))
    legend = (
        '<p class="legend first"><span><i class="swatch c2"></i>values before quantization, in steps</span>'
        '<span><i class="swatch c1"></i>codes after it</span></p>'
    )
    titles = {True: "Weights", False: "Activations"}
    return legend + "".join(
        f'<h3>{titles[weight]}</h3><div class="tensors">{"".join(figures)}</div>'
        for weight, figures in groups.items()
        if figures
    )
