"""One run of a table, and the config that a user would train it with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowbit import METHODS, Method
from lowbit.recipes.cifar10 import full_precision, low_bit
from lowbit.train import DataConfig, DistillationConfig, TrainConfig

RATE = 0.02
"""The learning rate at low bits of every row that does not change it, whatever the recipe's default is."""
CIFAR10 = DataConfig(path="", batch_size=128, augment="cifar", validation=5000.0)
"""CIFAR-10, of whose training images 5,000 decide what there is to decide. The path is an option of the command."""


@dataclass(frozen=True)
class Given:
    """Weights that no cell trains; the command takes the folder they lie in.

    Attributes:
        file: its name in that folder.
        sha256: of the file.
    """

    file: str
    sha256: str


@dataclass(frozen=True)
class Cell:
    """One run of a table.

    Attributes:
        table: which table it belongs to; its file of results has this name.
        network: by its name in `lowbit.models`.
        row: what the table compares; not part of the name in full precision.
        bits: of weights and activations, or None for full precision.
        epochs: how long it trains.
        seed: of order and augmentation. Runs of one seed see the same batches, so that rows can be paired by it.
        method: an entry of `lowbit.METHODS`, or a method that is one while the cell runs.
        options: fields of `QuantizationConfig` that are not the recipe's, as (name, value).
        start: the name of the cell whose best checkpoint it starts from, or weights that are given; None is random weights.
        changes: fields of the run's config that are not the recipe's, as (dotted name, value). A teacher's weights are
            the name of the cell that trained it.
        data: how images are read; the path is filled in when it runs.
        ships: keep its weights with the results, for other cells to start from.
        waiting: why it can't run yet, or None.
        shown_as: the network's name in results, if another.
        after: the name of a cell at other bits, from whose run this one goes on (`quantization.start`).
    """

    table: str
    network: str
    row: str
    bits: int | None
    epochs: int
    seed: int
    method: str | Method = "lsq"
    options: tuple[tuple[str, Any], ...] = ()
    start: str | Given | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    data: DataConfig = CIFAR10
    ships: bool = False
    waiting: str | None = None
    shown_as: str | None = None
    after: str | None = None

    @property
    def needs(self) -> list[str]:
        """Cells that must be finished before."""
        return [name for name in (self.start, self.after, self.teacher) if isinstance(name, str)]

    @property
    def teacher(self) -> str | None:
        """The name of the cell that trained the teacher, where it is another network."""
        return next((value.init for _, value in self.changes if isinstance(value, DistillationConfig)), None)

    @property
    def label(self) -> str:
        """The network's name in results."""
        return self.shown_as or self.network

    @property
    def name(self) -> str:
        """TABLE/NETWORK-WIDTHS-ROW-EPOCHS-SEED: the run folder below `--runs`, and the key of its result."""
        widths = self.row if self.bits is None else f"w{self.bits}a{self.bits}-{self.row}"
        return f"{self.table}/{self.label.rpartition(':')[2]}-{widths}-{self.epochs}ep-s{self.seed}"

    @property
    def command(self) -> str:
        """What runs this cell from scratch, whatever results are there."""
        given = " --given FOLDER" if isinstance(self.start, Given) else ""
        return f"python -m campaigns.accuracy --data CIFAR10_JPEG{given} --only '{self.name}' --again"

    def config(
        self, *, data: str, init: str | None, output: Path, after: Path | None = None, teacher: str | None = None
    ) -> TrainConfig:
        """The run: the recipe of CIFAR-10's networks at low bits, or from random weights that of full precision.

        Args:
            data: where the images are.
            init: the weights of `start`.
            output: the run folder.
            after: the run folder of the cell `after`.
            teacher: the weights of the teacher; None leaves its cell's name in their place.
        """
        recipe = f"accuracy/{self.name}"
        if self.start is None:
            config = full_precision(recipe, self.network)
        else:
            # In full precision too: what more training alone brings is the line that low bits are measured by.
            method = self.method if isinstance(self.method, str) else self.method.name
            config = low_bit(recipe, self.network, weights=self.bits, activations=self.bits, method=method)
            config = replace(config, optimizer=replace(config.optimizer, lr=RATE))
        config = replace(
            config,
            model=replace(config.model, init=init),
            data=replace(self.data, path=data),
            epochs=self.epochs,
            seed=self.seed,
            output=str(output),
        )
        if config.quantization is not None:
            # Without a rule among the options, the method's own.
            options = {"init_activations": None, **dict(self.options), "start": after and str(after)}
            config = replace(config, quantization=replace(config.quantization, **options))
        for name, value in self.changes:
            config = _changed(config, name.split("."), value)
        if teacher is not None:
            config = replace(config, distillation=replace(config.distillation, init=teacher))
        return config


def without_seed(name: str) -> str:
    """What the cells of a row that differ by the seed alone have in common of their names."""
    return name.rpartition("-s")[0]


@contextmanager
def in_methods(method: str | Method) -> Iterator[None]:
    """Within: the method has its name in `lowbit.METHODS`, where a config finds it."""
    if isinstance(method, str):
        yield
        return
    METHODS[method.name] = method
    try:
        yield
    finally:
        del METHODS[method.name]


def _changed(config: Any, names: list[str], value: Any) -> Any:
    """The config with another value of a field of it, or of a config within."""
    name, *inner = names
    return replace(config, **{name: _changed(getattr(config, name), inner, value) if inner else value})
