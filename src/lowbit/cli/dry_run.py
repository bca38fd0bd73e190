"""`lowbit train RECIPE --dry-run`: what would be trained and what it would take."""

from __future__ import annotations

import json
from dataclasses import replace

from torch import nn

import lowbit
from lowbit._table import aligned
from lowbit.data import DataSet
from lowbit.data.own import OwnSplit
from lowbit.inputs import each, shapes
from lowbit.qat.summary import LayerRow
from lowbit.recipes import RECIPES
from lowbit.recipes.recipe import training_macs
from lowbit.train.build import build_float, build_teacher, go_on_from, prepare, recorded
from lowbit.train.checks import check_classes, check_shape, check_teacher
from lowbit.train.config import TrainConfig
from lowbit.train.estimate import StepCost, measure_step
from lowbit.train.resolve import resolve
from lowbit.train.shapes import example_inputs
from lowbit.train.tasks import kind_of


def show(config: TrainConfig) -> None:
    """Print the resolved config, a line per layer, and what memory and time training takes.

    Needs neither published weights nor, where the recipe says the number of classes, data; nothing is written.

    Raises:
        LowbitError: a network, weights (`model.init`, `quantization.start`) or data that are not there, or settings that don't fit.
    """
    data = DataSet(config.data)
    if config.data.path or not config.model.name:
        config = resolve(config, data)
        check_classes(config, data.train.num_classes)
    original = build_float(replace(config.model, pretrained=False))
    source = data.train if config.data.path else None
    example, target = (
        source.example() if isinstance(source, OwnSplit) else (example_inputs(config, original, data), None)
    )
    model = recorded(prepare(original, config.quantization), example)
    check_shape(config, original, example)
    teacher = build_teacher(config, published=False)
    check_teacher(config, teacher, example)
    if config.quantization is not None and config.quantization.start is not None:
        go_on_from(model, config.quantization, config.quantization.start)
    print(json.dumps(config.as_dict(), indent=2))
    without_values = each(lambda x: x.to("meta"), example)
    rows = lowbit.layer_table(model, without_values)
    of_teacher = None if teacher is None else _macs(lowbit.layer_table(teacher, without_values))
    cost = measure_step(config, original if teacher is None else teacher, model, example, target)
    # The grids of activations are known now, as random images give them.
    grids = {row.name: row.activation_grid for row in lowbit.layer_table(model)}
    rows = [replace(row, activation_grid=grids[row.name]) for row in rows]
    print(f"\n{aligned([_HEADS, *map(_cells, rows)], left=range(3))}")
    if config.quantization is not None:
        print("grid of A: as random images give it here; calibration decides")
    print()
    for name, text in {
        **_totals(rows, model, shapes(example)),
        **_estimate(config, data, _macs(rows), of_teacher, cost),
    }.items():
        print(f"{name + ':':<13} {text}")


_HEADS = ["layer", "kind", "shape", "W", "A", "grid of W", "grid of A", "granularity", "parameters", "MACs", "bit operations", "KiB"]  # fmt: skip


def _cells(row: LayerRow) -> list[str]:
    return [
        row.name,
        row.kind,
        "x".join(map(str, row.shape)),
        *(str(bits or "float") for bits in (row.weight_bits, row.activation_bits)),
        *(_range(grid) for grid in (row.weight_grid, row.activation_grid)),
        row.granularity,
        f"{row.parameters:,}",
        _short(row.macs or 0),
        _short(row.bit_operations or 0),
        f"{row.size_bits / 8 / 1024:,.1f}",
    ]


def _range(grid: str) -> str:
    """The integers of a grid, without its name."""
    return grid[grid.index("[") :] if "[" in grid else grid


def _totals(rows: list[LayerRow], model: nn.Module, shape: str) -> dict[str, str]:
    macs = _macs(rows)
    operations = sum(row.bit_operations or 0 for row in rows)
    steps = sum(p.numel() for _, quantizer in lowbit.quantizers(model) for p in quantizer.parameters())
    parameters = sum(p.numel() for p in model.parameters()) - steps
    size = lowbit.model_size_bits(model)
    return {
        "forward pass": f"{_short(macs)} multiply-accumulates (MACs) for a sample of {shape}, "
        f"{_short(operations)} bit operations (MACs x bits of W x bits of A), 1/{macs * 32 * 32 / max(operations, 1):.1f} of float32's",
        "size": f"{parameters:,} parameters{f' and {steps:,} steps and offsets' if steps else ''} in {_bytes(size / 8)}, "
        f"1/{parameters * 32 / size:.1f} of float32's",
    }


def _macs(rows: list[LayerRow]) -> int:
    return sum(row.macs or 0 for row in rows)


def _estimate(config: TrainConfig, data: DataSet, macs: int, of_teacher: int | None, cost: StepCost) -> dict[str, str]:
    """The work, the memory and the time of the whole training, and how each is known."""
    batch = config.data.batch_size
    images, known = _images(config, data)
    lines = {}
    if images is not None:
        work = training_macs(config, images, macs, of_teacher=of_teacher)
        passes = kind_of(config.task).passes
        lines["training"] = f"{config.epochs} epochs of {images:,} images ({known}), {work:.2g} MACs: " + (
            f"{passes} x the forward pass of each image"
            if of_teacher is None
            else f"{passes - 1} x the forward pass of each image, and the teacher's"
        )
    lines["memory"] = (
        f"{_bytes(cost.memory(batch))} at least in a step with all {batch} images of a batch: {_bytes(cost.weights)} weights, "
        f"{_bytes(cost.gradients)} gradients, {_bytes(cost.optimizer)} optimizer, {_bytes(cost.activations(batch))} kept for the "
        f"backward pass, {_bytes(cost.kept_per_image)} an image as measured on {cost.images}, uncompiled"
    )
    total = ""
    if images is not None:
        total = f"{_duration(cost.seconds * images * config.epochs)} in all on this machine, without evaluation: "
    lines["time"] = (
        f"{total}{_digits(1000 * cost.seconds)} ms an image forward and backward on {cost.device}, as measured on {cost.images} "
        "images, uncompiled; whole batches are faster"
    )
    return lines


def _images(config: TrainConfig, data: DataSet) -> tuple[int | None, str]:
    """Training images of an epoch, and from where that is known."""
    if kind_of(config.task).blockwise:  # each block takes its share of the network's work
        steps, batch = config.reconstruction.steps, config.reconstruction.batch_size
        return steps * batch, f"{steps:,} steps of {batch} images in each block"
    if config.data.path:
        images, known = len(data.train), config.data.path
    else:
        recipe = RECIPES.get(config.recipe)
        if recipe is None or recipe.images is None:
            return None, ""
        images, known = recipe.images - config.data.held_out_of(recipe.images), "the recipe's data set"
    return (images if config.data.limit is None else min(images, config.data.limit)), known


def _short(number: float) -> str:
    """Three digits and a unit: 1.81 G."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.3g}"


def _bytes(number: float) -> str:
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number / 1024:.1f} KiB"


def _duration(seconds: float) -> str:
    for factor, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * factor:
            return f"{_digits(seconds / factor)} {unit}"
    return f"{_digits(seconds)} seconds"


def _digits(number: float) -> str:
    """Three digits, written out."""
    return f"{float(f'{number:.3g}'):,g}"
