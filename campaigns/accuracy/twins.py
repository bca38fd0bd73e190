"""Cells of several tables that train the same: what one of them gave is the result of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from campaigns.accuracy import results
from campaigns.accuracy.cell import Cell, in_methods
from lowbit import METHODS


class Twins:
    """The cells of all tables, those that train the same together."""

    def __init__(self, every: Sequence[Cell]) -> None:
        groups: dict[str, list[Cell]] = {}
        self._group = {cell.name: groups.setdefault(_training(cell), []) for cell in every}
        for cell in every:
            self._group[cell.name].append(cell)
        # Others start from their weights or go on from their runs, so they need files of their own.
        self._needed = {cell.name for cell in every if cell.ships} | {name for cell in every for name in cell.needs}

    def without(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells without those that a cell before them is a twin of, so that none is trained while its twin is."""
        seen: set[int] = set()
        chosen = []
        for cell in cells:
            group = id(self._group[cell.name])
            if cell.name in self._needed or group not in seen:
                chosen.append(cell)
            seen.add(group)
        return chosen

    def record(self, cells: Sequence[Cell], folder: Path) -> None:
        """Give the cells and their twins without a result that of a twin, and say so in its line (`same_as`)."""
        done = results.read(folder)
        family = {twin.name: twin for cell in cells for twin in self._group[cell.name]}
        for cell in family.values():
            twin = next((one.name for one in self._group[cell.name] if one.name in done), None)
            if twin is not None and cell.name not in done and cell.name not in self._needed:
                trained = done[twin].get("same_as", twin)
                results.append(folder, done[twin] | results.about(cell) | {"same_as": trained})
                print(f"{cell.name}: trains as {trained} did, whose result it has", flush=True)


def _training(cell: Cell) -> str:
    """What a cell trains: its config and its method, without the names that they have in their table."""
    with in_methods(cell.method):
        config = cell.config(
            data="", init=str(cell.start), output=Path(), after=None if cell.after is None else Path(cell.after)
        )
        config = replace(config, recipe="")
        method = ""
        if config.quantization is not None:
            method = repr(replace(METHODS[config.quantization.method], name=""))
            config = replace(config, quantization=replace(config.quantization, method=""))
    return json.dumps([config.as_dict(), method], sort_keys=True)
