"""Checkpoints without pickle, replaced so that a killed process leaves the old pair of `last` and `best` or the new one.

    checkpoints/
      checkpoints.json        {"last": "epoch-0003", "best": "epoch-0002"}: the one file that decides
      epoch-0003/             model.safetensors, training.safetensors, training.json
      epoch-0002/

A new folder is complete before `checkpoints.json` names it, and an old one is removed only after nothing names it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.files import atomic_write

_OURS = re.compile(r"(epoch-\d+|final)(\.tmp)?")
"""Folders that `Checkpoints.save` may remove; others, such as a copy that someone keeps, stay."""

Which = Literal["last", "best"]


def pack(state: Any, tensors: dict[str, Tensor], name: str = "state") -> Any:
    """Split nested state into JSON data, which is returned, and tensors, which are put in `tensors` by name.

    Handles what optimizers keep: dicts with any plain keys, lists, tuples, tensors, numbers, strings, booleans, None.
    """
    if isinstance(state, Tensor):
        # A clone, because safetensors refuses tensors that share storage.
        tensors[name] = state.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(state, dict):
        return {"dict": [[key, pack(value, tensors, f"{name}.{key}")] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        kind = "list" if isinstance(state, list) else "tuple"
        return {kind: [pack(value, tensors, f"{name}.{i}") for i, value in enumerate(state)]}
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"{name}: a checkpoint holds tensors and plain values, not {type(state).__name__}")


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if not isinstance(packed, dict):
        return packed
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in value}
    items = [unpack(item, tensors) for item in value]
    return items if kind == "list" else tuple(items)


class Checkpoints:
    """The `checkpoints` folder of one run."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoints"
        self.pointer = self.folder / "checkpoints.json"

    def _names(self) -> dict[str, str]:
        if not self.pointer.exists():
            return {}
        try:
            return dict(json.loads(self.pointer.read_text()))
        except (ValueError, TypeError) as error:
            raise LowbitError(
                f"{self.pointer}: not what training wrote ({error}); the run can't be continued"
            ) from error

    def _path(self, which: Which) -> Path:
        names = self._names()
        if which not in names:
            raise LowbitError(f"{self.folder.parent}: no checkpoint yet; train it, or give the folder of another run")
        return self.folder / names[which]

    @property
    def exists(self) -> bool:
        return self.pointer.exists()

    def save(
        self,
        name: str,
        model_state: dict[str, Tensor],
        training: dict[str, Any],
        about: dict[str, str] | None = None,
        *,
        best: bool,
    ) -> None:
        """Write a checkpoint, make it the last (and, if `best`, the best), and remove what neither name needs.

        `name` is epoch-NUMBER or final.

        `about` says what network it is of.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary, final = self.folder / f"{name}.tmp", self.folder / name
        # Folders of these names, which nothing points to, are left from a killed process.
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            model_tensors: dict[str, Tensor] = {}
            for key, value in model_state.items():
                pack(value, model_tensors, key)
            safetensors.torch.save_file(model_tensors, temporary / "model.safetensors", metadata=about)
            tensors: dict[str, Tensor] = {}
            plain = pack(training, tensors)
            safetensors.torch.save_file(tensors, temporary / "training.safetensors")
            (temporary / "training.json").write_text(json.dumps(plain))
            for file in temporary.iterdir():
                _flush(file)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # half of it on a full disk would take the room of a whole one

        names = self._names() | {"last": name} | ({"best": name} if best else {})
        with atomic_write(self.pointer) as file:
            file.write_text(json.dumps(names))
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in names.values():
                shutil.rmtree(path)
            elif path.name.startswith(f".{self.pointer.stem}-"):  # a pointer that a killed process did not finish
                path.unlink()

    def weights(self, which: Which, about: dict[str, str] | None = None) -> Path:
        """The file with the network's tensors.

        Raises:
            LowbitError: the run has no checkpoint yet, or it was saved about something other than `about`.
        """
        path = self._path(which) / "model.safetensors"
        found = _about(path) if about else {}
        for key, value in found.items():
            if about is not None and value != about.get(key, value):
                raise LowbitError(f"{path}: a checkpoint of {key} {value}, but the run's config has {about[key]}")
        return path

    def training_state(self) -> dict[str, Any]:
        """What `save` got as `training`, of the last checkpoint.

        Raises:
            LowbitError: there is no checkpoint, or it is broken.
        """
        path = self._path("last")
        try:
            tensors = safetensors.torch.load_file(path / "training.safetensors")
            return unpack(json.loads((path / "training.json").read_text()), tensors)
        except (OSError, ValueError, SafetensorError) as error:
            raise LowbitError(f"{path}: a broken checkpoint ({error}); train anew in another folder") from error


def _about(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise LowbitError(f"{path}: a broken checkpoint ({error})") from error


def _flush(path: Path) -> None:
    """Wait until a file is on disk: what is renamed next must not be older than its new name."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
